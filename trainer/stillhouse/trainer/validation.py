"""A candidate and its parent on the *validation* tasks of a benchmark: what steers the next window and feeds the gates.

The benchmark is named in `[trainer] benchmark` as `module:Class`; the trainer knows no environment of its own.
"""

import asyncio
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from stillhouse.schemas.errors import UsageError
from stillhouse.trainer.evaluation.benchmark import Benchmark, ChatPolicy, ReplicaPrice
from stillhouse.trainer.evaluation.engine import StudentEngine, student_engine
from stillhouse.trainer.evaluation.report import PolicyReport
from stillhouse.trainer.evaluation.runner import EvaluationSettings, Step, evaluate
from stillhouse.trainer.jobs import Progress
from stillhouse.trainer.settings import TrainerSettings
from stillhouse.trainer.windows_types import EvaluatedFacts

PART = "validation"
_FREE = ReplicaPrice(usd_per_hour=0.0)  # validation is not priced: the report of a held-out evaluation is


class MakesBenchmark(Protocol):
    """What `[trainer] benchmark` names: something that takes how many tasks a part has, and a seed."""

    def __call__(self, counts: Mapping[str, int], seed: int) -> Benchmark:
        """Make the benchmark."""
        ...


def load_benchmark(path: str) -> MakesBenchmark:
    """The maker of a benchmark, by its `module:name`.

    Raises:
        UsageError: no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        return cast(MakesBenchmark, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError, ValueError) as error:
        fix = "Give it as module:name of something that takes (counts, seed)."
        raise UsageError(f"the benchmark cannot be loaded: {error}", where=f"[trainer] benchmark = {path}", fix=fix) from error


class Validation:
    """Implements `jobs.Evaluate` with a student server of its own.

    Args:
        trainer: `[trainer]`, with the benchmark and its number of tasks.
        base_model: folder of the base model.
        log: file of the student server's log.
        work: folder for the journals, one for each candidate.
    """

    def __init__(self, trainer: TrainerSettings, base_model: Path, log: Path, work: Path) -> None:
        counts = {PART: trainer.benchmark_tasks}
        self.benchmark = load_benchmark(trainer.benchmark)(counts, trainer.seed)
        self._trainer, self._base_model, self._log, self._work = trainer, base_model, log, work

    def __call__(self, candidate: Path, parent: Path | None, progress: Progress, /) -> EvaluatedFacts:
        """Measure both on the same tasks. A parent that was measured before on them is not run again."""
        with student_engine(self._base_model, log=self._log, threads=self._trainer.threads or 2) as engine:
            own = self._measure(engine, "candidate", candidate, self._work / candidate.parent.parent.name, progress)
            old = self._measure(engine, parent.name, parent, self._work, progress) if parent else None
        families = own.parts[PART].families
        return EvaluatedFacts(
            success=own.all.success.value,
            parent_success=old.all.success.value if old else None,
            format_errors=own.all.format_error_rate,
            parent_format_errors=old.all.format_error_rate if old else None,
            failure_rates={name: 1.0 - (found.success.value or 0.0) for name, found in families.items()},
            report={"candidate": _brief(own), "parent": _brief(old) if old else None},
        )

    def _measure(self, engine: StudentEngine, name: str, folder: Path, work: Path, progress: Progress) -> PolicyReport:
        def tell(step: Step) -> None:
            progress({"event": "evaluate", "policy": name, "done": step.done, "total": step.total, "succeeded": step.succeeded})

        engine.load(name, folder)
        policy = ChatPolicy(name=name, base_url=engine.base_url, model=name, price=_FREE, max_tokens=self._trainer.answer_tokens)
        work.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(
            evaluate(
                self.benchmark, [PART], [policy], journal=work / f"{name}.jsonl", settings=EvaluationSettings(), progress=tell,
            )
        )  # fmt: skip
        engine.unload(name)
        return report.policies[0]


def _brief(report: PolicyReport) -> dict[str, Any]:
    families = {name: [int(found.success.k), found.success.n] for name, found in report.parts[PART].families.items()}
    return {"k": int(report.all.success.k), "n": report.all.success.n, "families": families, "errors": report.all.errors}
