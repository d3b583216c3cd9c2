"""From files to a checked table: products with their images and the split.

Names are loaded when they are used: classifying one photo needs no tables, and importing pyarrow takes time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
