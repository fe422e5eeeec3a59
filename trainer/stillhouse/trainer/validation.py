"""A candidate and its parent on the *validation* tasks of a benchmark: what steers the next window and feeds the gates.

The benchmark is named in `[trainer] benchmark` as `module:Class`; the trainer knows no environment of its own.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from stillhouse.schemas.errors import RetryableError, UsageError
from stillhouse.schemas.student_folder import ADAPTER, sha256_of
from stillhouse.trainer.evaluation.benchmark import Benchmark, ChatPolicy, Episode, ReplicaPrice
from stillhouse.trainer.evaluation.engine import StudentEngine, student_engine
from stillhouse.trainer.evaluation.gate import family_gate
from stillhouse.trainer.evaluation.journal import read_journal
from stillhouse.trainer.evaluation.report import PolicyReport, compare
from stillhouse.trainer.evaluation.runner import EvaluationSettings, Step, evaluate
from stillhouse.trainer.jobs import Progress
from stillhouse.trainer.named import load_named
from stillhouse.trainer.settings import TrainerSettings
from stillhouse.trainer.windows_types import EvaluatedFacts

PART = "validation"
_FREE = ReplicaPrice(usd_per_hour=0.0)  # validation is not priced: the report of a held-out evaluation is


class MakesBenchmark(Protocol):
    """What `[trainer] benchmark` names: something that takes how many tasks a part has, and a seed."""

    def __call__(self, counts: Mapping[str, int], seed: int) -> Benchmark:
        """Make the benchmark."""
        ...


class _Measured(NamedTuple):
    report: PolicyReport
    episodes: list[Episode]


class Validation:
    """Implements `jobs.Evaluate` with a student server of its own.

    Args:
        trainer: `[trainer]`, with the benchmark and its number of tasks.
        base_model: folder of the base model.
        log: file of the student server's log.
        work: folder for the journals, one for each student.

    Raises:
        UsageError: the benchmark cannot be loaded, or has no validation tasks.
    """

    def __init__(self, trainer: TrainerSettings, base_model: Path, log: Path, work: Path) -> None:
        setting, counts = "[trainer] benchmark", {PART: trainer.benchmark_tasks}
        make = load_named(trainer.benchmark, setting=setting, what="benchmark", takes="(counts, seed)")
        self.benchmark = cast(MakesBenchmark, make)(counts, trainer.seed)
        if not self.benchmark.tasks(PART):
            raise UsageError(
                "the benchmark has no validation tasks", where=f"{setting} = {trainer.benchmark}", fix="Raise benchmark_tasks."
            )
        self._trainer, self._base_model, self._log, self._work = trainer, base_model, log, work

    def __call__(self, candidate: Path, parent: Path | None, progress: Progress, /) -> EvaluatedFacts:
        """Measure both on the same tasks. A parent that was measured before on them is not run again.

        Raises:
            RetryableError: some tasks have no outcome, or the student server is away. What was measured is kept.
        """
        with student_engine(self._base_model, log=self._log, threads=self._trainer.threads or 2) as engine:
            own = self._measure(engine, "candidate", candidate, progress)
            old = self._measure(engine, parent.name, parent, progress) if parent else None
        families = own.report.parts[PART].families
        return EvaluatedFacts(
            success=own.report.all.success.value,
            parent_success=old.report.all.success.value if old else None,
            format_errors=own.report.all.format_error_rate,
            parent_format_errors=old.report.all.format_error_rate if old else None,
            failure_rates={name: 1.0 - found.success.k / found.success.n for name, found in families.items()},
            report=_report(own, old),
        )

    def _measure(self, engine: StudentEngine, who: str, folder: Path, progress: Progress) -> _Measured:
        """A student is known here by its weights: what was a candidate's is its own when it is a parent, whatever a store called it."""

        def tell(step: Step) -> None:
            progress({"event": "evaluate", "policy": who, "done": step.done, "total": step.total, "succeeded": step.succeeded})

        name = f"weights-{sha256_of(folder / ADAPTER[1])[:16]}"
        journal = self._work / f"{name}.jsonl"
        engine.load(name, folder)
        policy = ChatPolicy(name=name, base_url=engine.base_url, model=name, price=_FREE, max_tokens=self._trainer.answer_tokens)
        found = asyncio.run(evaluate(self.benchmark, [PART], [policy], journal=journal, settings=EvaluationSettings(), progress=tell))
        engine.unload(name)
        (report,) = found.policies
        if report.all.errors:
            reason, count = max(report.all.errors.items(), key=lambda item: item[1])
            raise RetryableError(
                f"{sum(report.all.errors.values())} validation tasks of {who} have no outcome ({count}: {reason})",
                where=str(self._log), fix="See the server's log, then run the window again: it asks only for what is missing.",
            )  # fmt: skip
        lines = (entry for entry in read_journal(journal) if entry.benchmark == self.benchmark.name)
        return _Measured(report, [line.outcome.episode for line in lines if line.outcome.episode])


def _report(own: _Measured, old: _Measured | None) -> dict[str, Any]:
    """Counts of both and, on the tasks that both ran, the difference of their success and the verdict on every family."""
    if old is None:
        return {"candidate": _brief(own.report), "parent": None}
    return {
        "candidate": _brief(own.report),
        "parent": _brief(old.report),
        "difference": msgspec.to_builtins(compare(own.episodes, old.episodes)),
        "family_gate": msgspec.to_builtins(family_gate(old.episodes, own.episodes)),
    }


def _brief(report: PolicyReport) -> dict[str, Any]:
    families = {name: [int(found.success.k), found.success.n] for name, found in report.parts[PART].families.items()}
    return {"k": int(report.all.success.k), "n": report.all.success.n, "families": families}
