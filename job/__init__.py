"""A batch offline inference job over datasets."""

__version__ = "0.2.0"
