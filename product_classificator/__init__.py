"""Predicts product characteristics (category, sex, season, ...) from photos and text.

The verbs are `read_catalog`, `embed`, `fit_heads`, `HeadBundle.predict` and `evaluate`; `Trainer` and `Classificator`
are façades over them. Importing this module imports neither torch nor pandas: names are loaded when they are used.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("product_classificator")
