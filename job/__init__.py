"""A batch offline inference job over datasets."""

__version__ = "0.1.0"
