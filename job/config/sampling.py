"""How completions are generated: the options of sampling."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from job.errors import require
from job.modes.options import option
from job.tasks import EARLY_STOPPING, SamplingParams

MAX_BEAMS = 64
BEAMS_NEED = f"1 (no search) to {MAX_BEAMS}"


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
    num_beams: int | None = option(
        None,
        "Encoder-decoders only: search with this many beams for the most likely completion (1: none) [default: what "
        "the model's generation_config.json says, else 1].",
        metavar="N",
    )
    length_penalty: float | None = option(
        None,
        "With beams: a completion's score is its log probability divided by its length to this power, so that above 0 "
        "longer ones win more often [default: what the model's generation_config.json says, else 1].",
        metavar="POWER",
    )
    early_stopping: str | None = option(
        None,
        "With beams: when a row is done that has as many finished completions as beams. true: at once. false: when the "
        "best beam would not be better if it ended now. never: when it could not become better at any length [default: "
        "what the model's generation_config.json says, else false].",
        choices=EARLY_STOPPING,
    )

    def __post_init__(self) -> None:
        SamplingParams.__post_init__(self)
        require("" not in self.stop, "stop", "", "a non-empty text")
        require("" not in self.bad_words, "bad-words", "", "a non-empty text")
        for token, bias in self.biases_by_name.items():
            is_number = isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100
            require(is_number, f"logit-bias of {token!r}", bias, "a number from -100 to 100")
        require(0 < self.num_samples < 2**31, "num-samples", self.num_samples, "at least 1")
        require(self.num_beams is None or 0 < self.num_beams <= MAX_BEAMS, "num-beams", self.num_beams, BEAMS_NEED)
        power, stopping = self.length_penalty, self.early_stopping
        require(power is None or -10 <= power <= 10, "length-penalty", power, "between -10 and 10")
        stoppings = f"one of {', '.join(EARLY_STOPPING)}"
        require(stopping is None or stopping in EARLY_STOPPING, "early-stopping", stopping, stoppings)

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
    def searches(self) -> bool:
        """Whether completions are searched for with beams, once it is known what the model's files say."""
        return self.num_beams is not None and self.num_beams > 1

    @property
    def ends_early(self) -> str | None:
        """The first option, if there is one, that ends a completion elsewhere than where the model ends it."""
        flags = {"--stop": self.stop, "--stop-token-ids": self.stop_token_ids, "--ignore-eos": self.ignore_eos}
        return next((flag for flag, value in flags.items() if value), None)
