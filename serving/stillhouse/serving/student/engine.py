"""One step of the model: admit, compute, choose tokens, keep what can be used again. Runs in one thread; knows no HTTP."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from stillhouse.serving.student.attention import arrange
from stillhouse.serving.student.catalog import NoSuchModelError
from stillhouse.serving.student.generation import FinishReason, Generation, Result
from stillhouse.serving.student.lanes import Lanes, cut_segment
from stillhouse.serving.student.model import ServedModel
from stillhouse.serving.student.prefix_tree import PrefixTree
from stillhouse.serving.student.sampling import Chooser, choose, logprobs
from stillhouse.serving.student.scheduler import Limits, Row, Running, Scheduler

# Tokens from which a segment is attended where it is, once for all sequences that have it; a shorter one is copied to each lane.
_LONG = 256


@dataclass(slots=True)
class Counters:
    """What the engine has done since it started; metrics read it."""

    busy_s: float = 0.0
    steps: int = 0
    prefilled: int = 0
    reused: int = 0
    generated: int = 0


@dataclass(eq=False, slots=True)
class _Work:
    """`apart` holds the segments (layers, 2, heads, tokens, head_dim) of the first `running.apart` tokens."""

    generation: Generation
    running: Running
    chooser: Chooser
    result: Result
    apart: list[torch.Tensor] = field(default_factory=list)


class Engine:
    """Continuous batching over one model.

    Args:
        model: the model.
        limits: the scheduler's bounds.
        kv_bytes: bytes of keys and values kept for later requests; 0 keeps none.
        clock: seconds, monotonic.
        on_step: told the sequences of each step and the seconds it took.
    """

    def __init__(
        self,
        model: ServedModel,
        limits: Limits,
        kv_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.model = model
        self.scheduler = Scheduler(limits)
        self.tree: PrefixTree[torch.Tensor] = PrefixTree(kv_bytes, model.shape.bytes_per_token, cut_segment)
        self.counters = Counters()
        self._lanes = Lanes(model.shape, limits.batch)
        self._clock = clock
        self._on_step = on_step
        self._work: dict[int, _Work] = {}
        self._next = 0

    def submit(self, generation: Generation) -> int:
        """Queue a generation; the key cancels it.

        Raises:
            QueueFullError: too many wait.
            NoSuchModelError: its adapter is not loaded any more. In a step it would take everybody else's generations with it.
        """
        if generation.adapter not in self.model.weights:
            raise NoSuchModelError(f"The model `{generation.adapter}` was unloaded")
        self._next += 1
        running = Running(
            self._next, generation.adapter, generation.prompt, generation.max_new, self._clock(), scored=generation.score_prompt
        )
        self.scheduler.add(running)
        self._work[running.key] = _Work(generation, running, Chooser(generation.sampling), Result())
        if generation.score_prompt:
            self._work[running.key].result.prompt_logprobs.append(None)
        return running.key

    def cancel(self, key: int) -> None:
        """End a generation early, wherever it is; nothing happens when it has ended."""
        if key in self._work:
            self._finish(self._work[key], "abort")

    def delay(self) -> float | None:
        """Seconds until `step` has something to do; None: only `submit` can change that."""
        return self.scheduler.delay(self._clock())

    def forget(self, adapter: str) -> None:
        """Drop an adapter's keys and values, and end what still runs on it."""
        for work in [w for w in self._work.values() if w.generation.adapter == adapter]:
            self._finish(work, "abort")
        self.tree.drop(adapter)

    def fail(self, error: Exception) -> None:
        """End everything with an error."""
        for work in list(self._work.values()):
            work.result.error = error
            self._finish(work, "abort")

    def step(self) -> None:
        """Admit what can be admitted and take one step with all that runs."""
        began = self._clock()
        for running in self.scheduler.admit(began, self._cached):
            running.done = self._reuse(running)
        if rows := self.scheduler.rows():
            self._compute(rows)
            seconds = self._clock() - began
            self.counters.steps += 1
            self.counters.busy_s += seconds
            self._on_step(len(rows), seconds)

    def _cached(self, running: Running) -> int:
        return 0 if running.scored else self.tree.matched(running.adapter, running.prompt[:-1])

    def _reuse(self, running: Running) -> int:
        """Take what the cache has of a prompt: all to the end of its last long segment as it is, the rest as copies in the lane.

        Also short segments before a long one: two prompts that part early cut their beginning there, and what follows a cut copied
        to its lane would make every lane as long as that. The last token is always computed: its logits are needed.
        """
        if running.scored:
            return 0
        work, found = self._work[running.key], self.tree.match(running.adapter, running.prompt[:-1])
        kept = max((i for i, (_, n) in enumerate(found, 1) if n >= _LONG), default=0)
        for segment, n in found[:kept]:
            work.apart.append(segment[..., :n, :])
            running.apart += n
        reused = running.apart + self._lanes.load(running.lane, found[kept:])
        work.result.reused = reused
        self.counters.reused += reused
        return reused

    def _compute(self, rows: list[Row]) -> None:
        ordered, layout = arrange(rows, {r.sequence.key: self._work[r.sequence.key].apart for r in rows})
        self._lanes.reserve(max(r.start + r.count - r.sequence.apart for r in ordered))
        ids = [t for r in ordered for t in r.sequence.ids[r.start : r.start + r.count]]
        wanted: list[int] = []
        at = 0
        for row in ordered:
            end = at + row.count
            wanted += range(at, end) if row.sequence.scored and row.sequence.prefilling else range(end - row.last, end)
            at = end
        adapters = [r.sequence.adapter for r in ordered for _ in range(r.count)]
        logits = self.model.forward(adapters, ids, self._lanes, layout, wanted)
        self._advance(ordered, logits)

    def _advance(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Account for computed rows, score prompts, and let those that are through take their next token."""
        last, at = [], 0
        for row in rows:
            running, work = row.sequence, self._work[row.sequence.key]
            count = row.count if running.scored and running.prefilling else int(row.last)
            if running.prefilling:
                self.counters.prefilled += row.count
                if running.scored:
                    targets = running.prompt[row.start + 1 : row.start + row.count + 1]
                    work.result.prompt_logprobs += logprobs(logits[at : at + len(targets)], targets, work.generation.logprobs or 0)
            running.done += row.count
            if row.last:
                last.append((work, at + count - 1))
                if running.done == len(running.prompt):
                    self._keep(work)
            self._set_apart(work)
            at += count
        tokens = choose(logits[[i for _, i in last]], [w.chooser for w, _ in last]) if last else []
        for (work, i), token in zip(last, tokens, strict=True):
            self._take(work, token, logits[i])

    def _take(self, work: _Work, token: int, logits: torch.Tensor) -> None:
        generation, result = work.generation, work.result
        if generation.max_new == 0:
            return self._finish(work, "length")
        result.tokens.append(token)
        work.running.ids.append(token)
        self.counters.generated += 1
        if generation.logprobs is not None:
            result.logprobs += logprobs(logits[None], [token], generation.logprobs)
        if generation.on_token:
            generation.on_token(token)
        if token in generation.stop_ids:
            self._finish(work, "stop")
        elif len(result.tokens) >= generation.max_new:
            self._finish(work, "length")
        return None

    def _set_apart(self, work: _Work) -> None:
        """Move a lane that has grown long to a segment of its own: lanes are all as long as the longest."""
        running = work.running
        if running.done - running.apart >= _LONG:
            work.apart.append(self._lanes.take(running.lane, 0, running.done - running.apart))
            running.apart = running.done

    def _keep(self, work: _Work) -> None:
        """Store keys and values under their tokens, so that the next prompt that begins with them finds them."""
        self.tree.insert(work.running.adapter, work.running.ids[: work.running.done], partial(self._take_kv, work))

    def _take_kv(self, work: _Work, start: int, end: int) -> torch.Tensor:
        """A copy of the keys and values of tokens `start … end-1`, wherever they are."""
        pieces, at = [], 0
        for segment in work.apart:
            pieces.append(segment[..., max(0, start - at) : max(0, end - at), :])
            at += segment.shape[-2]
        if end > at:
            pieces.append(self._lanes.take(work.running.lane, max(0, start - at), end - at))
        return torch.cat(pieces, -2)

    def _finish(self, work: _Work, reason: FinishReason) -> None:
        running = work.running
        del self._work[running.key]
        self.scheduler.remove(running.key)
        if running.lane >= 0 and running.done > len(running.prompt) and work.result.error is None:
            self._keep(work)
        work.result.finish = reason
        work.generation.on_end(work.result)
