"""What the model loop is asked for, and what it answers. No torch, no HTTP."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `seed` makes sampled tokens repeatable in whatever company."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (nats) of a token where it stands, and of the likeliest ones there, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Result:
    """What came of a generation. `prompt_logprobs[0]` is None: nothing stands before the first token."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    reused: int = 0
    finish: FinishReason | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to the model loop.

    Attributes:
        adapter: whose weights; empty for the base model.
        prompt: token ids, at least one.
        max_new: tokens to generate; 0 only scores the prompt.
        stop_ids: tokens that end it (kept in the result's tokens).
        logprobs: how many of the likeliest tokens to report with each token's own log-probability; None for neither.
        score_prompt: report the prompt's log-probabilities too.
        on_token: called in the model's thread after each token, when given.
        on_end: called in the model's thread once, at the end.
    """

    adapter: str
    prompt: tuple[int, ...]
    max_new: int
    stop_ids: frozenset[int]
    on_end: Callable[[Result], None]
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    score_prompt: bool = False
    on_token: Callable[[int], None] | None = None
