"""Runs the command line, as `python -m product_classificator` or through a launcher of several processes."""

from product_classificator.cli import main

if __name__ == "__main__":
    main()
