"""From logits to tokens and log-probabilities."""

from collections.abc import Sequence

import torch

from stillhouse.serving.student.generation import Sampling, TokenLogprob


class Chooser:
    """Chooses the tokens of one generation; its random numbers are its own, so company never changes them."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether it always takes the likeliest token."""
        return self._sampling.temperature == 0.0

    def sample(self, logits: torch.Tensor) -> int:
        """A token from logits (vocabulary,), after temperature and nucleus."""
        probabilities = torch.softmax(logits.double() / self._sampling.temperature, -1)
        if self._sampling.top_p < 1.0:
            ranked, order = probabilities.sort(descending=True)
            ranked[ranked.cumsum(-1) - ranked >= self._sampling.top_p] = 0.0
            probabilities = torch.zeros_like(probabilities).scatter_(0, order, ranked)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def choose(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """One token for each row of logits (rows, vocabulary)."""
    best = logits.argmax(-1).tolist()
    return [token if c.greedy else c.sample(logits[i]) for i, (token, c) in enumerate(zip(best, choosers, strict=True))]


def logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Log-probabilities (at temperature 1) of `tokens` under rows of logits (rows, vocabulary)."""
    if not tokens:
        return []
    scores = torch.log_softmax(logits.float(), -1)
    own = scores.gather(-1, torch.tensor(list(tokens))[:, None])[:, 0].tolist()
    if not top:
        return [TokenLogprob(x) for x in own]
    values, ids = scores.topk(min(top, scores.shape[-1]), -1)
    ranked = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(x, r) for x, r in zip(own, ranked, strict=True)]
