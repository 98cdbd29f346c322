"""The type of options whose value is a text that may be a number alone, which a TOML file has without quotes."""

import click


class TextOrNumber(click.types.StringParamType):
    """A text, such as ``9400`` or ``0.0.0.0:9400``."""
