"""The beginning of an answer, which the model continues: one text for all rows, or a template over their columns."""

from collections.abc import Collection, Mapping
from typing import Any

from job.data import omissions
from job.data.templates import Template
from job.errors import reason_of
from job.records import RowRejected

PREFILL_MARK = f"{omissions.MARK}-prefill"
"""What a chat template gets in place of a prefill: it may trim a text, or take reasoning out of it."""


class Prefill:
    """What the answer to a row begins with; it may be nothing."""

    def __init__(self, text: str | None, columns: Collection[str]) -> None:
        """Compile it, if it is a template: a text with ``{{`` or ``{%``. JSON has single braces.

        Args:
            text: None: there is none.
            columns: columns of the dataset that are known so far.

        Raises:
            UsageError: it is a template, and an invalid one.
        """
        self.is_given = text is not None
        self.constant = text or ""
        """The text if all rows have the same, else empty."""
        self.columns: list[str] = []
        """The columns that it needs."""
        self.needed: list[str] = []
        """The same; ``*`` if they are known only while it is rendered."""
        self._template: Template | None = None
        if "{{" in self.constant or "{%" in self.constant:
            self._template, self.constant = Template(self.constant, columns, option="--prefill"), ""
            self.columns = list(self._template.columns)
            self.needed = ["*"] if self._template.needs_all else self.columns

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text for a row.

        Raises:
            RowRejected: it cannot be rendered.
        """
        if self._template is None:
            return self.constant
        try:
            return self._template.render({name: values.get(name) for name in self.columns})
        except Exception as error:  # a template raises whatever its expressions raise
            raise RowRejected("template_error", f"--prefill: {reason_of(error)}") from None
