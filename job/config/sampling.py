"""How completions are generated: the options of sampling."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from job.errors import require
from job.modes.options import option
from job.tasks import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig(SamplingParams):
    """How completions are generated: the parameters of each request, and the settings that concern text and rows."""

    stop: tuple[str, ...] = option(
        (), "Text that ends a completion and is cut off; repeat for several. A line break in bash: $'\\n'."
    )
    logit_bias: str | None = option(
        None,
        "Add to the logits of tokens, from -100 to 100: an object of biases by token id, or by the text of a token.",
        metavar="JSON",
        is_object=True,
    )
    bad_words: tuple[str, ...] = option(
        (), "Text that no completion may contain, with or without a space before it; repeat for several."
    )
    num_samples: int = option(1, "Completions per row. More than 1 needs a temperature above 0.")

    def __post_init__(self) -> None:
        SamplingParams.__post_init__(self)
        require("" not in self.stop, "stop", "", "a non-empty text")
        require("" not in self.bad_words, "bad-words", "", "a non-empty text")
        for token, bias in self.biases_by_name.items():
            is_number = isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100
            require(is_number, f"logit-bias of {token!r}", bias, "a number from -100 to 100")
        require(0 < self.num_samples < 2**31, "num-samples", self.num_samples, "at least 1")

    def options(self) -> dict[str, Any]:
        """Return the values of the sampling options."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(self) if "option" in field.metadata}

    @property
    def params(self) -> SamplingParams:
        """The parameters of each request, without what needs the tokenizer: see ``job.modes.token_texts``."""
        return SamplingParams(**{field.name: getattr(self, field.name) for field in fields(SamplingParams)})

    @property
    def biases_by_name(self) -> dict[str, Any]:
        """The values of ``logit_bias``, by the id or the text of a token."""
        biases: dict[str, Any] = json.loads(self.logit_bias or "{}")
        return biases

    @property
    def ends_early(self) -> str | None:
        """The first option, if there is one, that ends a completion elsewhere than where the model ends it."""
        flags = {"--stop": self.stop, "--stop-token-ids": self.stop_token_ids, "--ignore-eos": self.ignore_eos}
        return next((flag for flag, value in flags.items() if value), None)
