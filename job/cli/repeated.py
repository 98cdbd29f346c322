"""Options that were given several times but have one value: the last one counts, which nobody may notice."""

from collections import Counter

import click

_KEY = "job.repeated"


class RepeatingCommand(click.Command):
    """Remembers which options with a single value were repeated.

    They are not refused: scripts pass options of their own and then the user's, which win.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        rest = super().parse_args(ctx, args)
        single = [p for p in order if isinstance(p, click.Option) and not p.multiple and not p.is_flag]
        ctx.meta[_KEY] = [
            f"{param.opts[0]} was given {count} times; the last one counts{_shown(param.name, ctx.params[param.name])}"
            for param, count in Counter(single).items()
            if count > 1 and param.name in ctx.params
        ]
        return rest


def _shown(name: str, value: object) -> str:
    """Return a value for a note; nothing of one that may hold a secret."""
    return "" if name == "on_end" else f": {value}"


def notes_on_repeats() -> list[str]:
    """Return notes about options that were given several times to the command that runs."""
    notes: list[str] = click.get_current_context().meta.get(_KEY, [])
    return notes
