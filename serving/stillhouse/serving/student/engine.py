"""One step of the model: admit, compute, choose tokens, keep what can be used again. Runs in one thread; knows no HTTP."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch

from stillhouse.serving.student.generation import FinishReason, Generation, Result
from stillhouse.serving.student.lanes import Lanes, arrange, cut_segment
from stillhouse.serving.student.model import ServedModel
from stillhouse.serving.student.prefix_tree import PrefixTree
from stillhouse.serving.student.sampling import Chooser, choose, logprobs
from stillhouse.serving.student.scheduler import Limits, Row, Running, Scheduler


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
    generation: Generation
    running: Running
    chooser: Chooser
    result: Result


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
        """
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
        rows = self.scheduler.rows()
        for _, group in groupby(sorted(rows, key=lambda r: r.sequence.adapter), key=lambda r: r.sequence.adapter):
            self._compute(list(group))
        if rows:
            seconds = self._clock() - began
            self.counters.steps += 1
            self.counters.busy_s += seconds
            self._on_step(len(rows), seconds)

    def _cached(self, running: Running) -> int:
        return 0 if running.scored else self.tree.matched(running.adapter, running.prompt[:-1])

    def _reuse(self, running: Running) -> int:
        """Load what the cache has of a prompt. The last token is always computed: its logits are needed."""
        if running.scored:
            return 0
        reused = self._lanes.load(running.lane, self.tree.match(running.adapter, running.prompt[:-1]))
        self._work[running.key].result.reused = reused
        self.counters.reused += reused
        return reused

    def _compute(self, rows: list[Row]) -> None:
        ordered, layout = arrange(rows)
        self._lanes.reserve(max(r.start + r.count for r in ordered))
        ids = [t for r in ordered for t in r.sequence.ids[r.start : r.start + r.count]]
        wanted: list[int] = []
        at = 0
        for row in ordered:
            end = at + row.count
            wanted += range(at, end) if row.sequence.scored and row.sequence.prefilling else range(end - row.last, end)
            at = end
        logits = self.model.forward(ordered[0].sequence.adapter, ids, self._lanes, layout, wanted)
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
                    self._keep(running)
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

    def _keep(self, running: Running) -> None:
        """Store a lane's keys and values under their tokens, so that the next prompt that begins with them finds them."""
        self.tree.insert(running.adapter, running.ids[: running.done], lambda a, b: self._lanes.take(running.lane, a, b))

    def _finish(self, work: _Work, reason: FinishReason) -> None:
        running = work.running
        del self._work[running.key]
        self.scheduler.remove(running.key)
        if running.lane >= 0 and running.done > len(running.prompt) and work.result.error is None:
            self._keep(running)
        work.result.finish = reason
        work.generation.on_end(work.result)
