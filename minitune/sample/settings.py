"""What a user can choose about a continuation, checked on construction."""

import math
from dataclasses import dataclass

from minitune.config import flag
from minitune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How a text goes on and where it ends; what each does to the distribution stands in filters.py, in that order."""

    max_tokens: int = 256
    """Most tokens to make."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; 1 draws from the model's own distribution; above 1 it is flatter."""
    top_k: int = 0
    """Draw only among the so many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw only among the likeliest tokens that together reach this probability; 1 for all."""
    min_p: float = 0.0
    """Draw only among tokens at least this times as likely as the likeliest; 0 for all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the prompt or the text already has become less likely; 1 changes nothing."""
    stop: tuple[str, ...] = ()
    """Text that ends the answer and is not printed; may be given several times."""
    logprobs: int | None = None
    """Keep the log probability of each token and of so many alternatives, by the model's own distribution."""

    def __post_init__(self) -> None:
        # Numbers that a caller in Python gives as another type are taken as what they mean; text is not a number.
        for name, kind in (("max_tokens", int), ("top_k", int), ("temperature", float), ("top_p", float)):
            self._check_number(name, kind)
        for name in ("min_p", "repetition_penalty"):
            self._check_number(name, float)
        if self.logprobs is not None:
            self._check_number("logprobs", int)
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"--stop is {list(self.stop)!r}; every stop string must be text, and not empty")

    def _check_number(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        least, most = _RANGES[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (kind is float and isinstance(value, float))) or not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            upper = f"at most {most:g}" if math.isfinite(most) else "finite"
            raise ConfigError(f"{flag(name)} is {value!r}; it must be {what}, at least {least:g} and {upper}")
        if name == "repetition_penalty" and value == 0:
            raise ConfigError("--repetition-penalty is 0; it must be above 0 (1 changes nothing)")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, so that nothing is drawn."""
        return self.temperature == 0

    @property
    def plain(self) -> bool:
        """Whether the largest logit is all that is asked of a step."""
        return self.greedy and self.repetition_penalty == 1 and self.logprobs is None


_RANGES = {
    "max_tokens": (1, 2**31 - 1),
    "temperature": (0, 1e6),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0, 1e6),
    "logprobs": (0, 1000),
}


def checked_seed(seed: int) -> int:
    """``seed`` if it is a whole number of at least 0 and below 2^63; else ConfigError."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number of at least 0 and below 2^63")
    return seed
