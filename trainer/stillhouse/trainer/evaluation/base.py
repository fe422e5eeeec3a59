"""The base model, given every chance: the teacher's full prompt and tools, without and with three worked examples.

Its best number counts. Measured once and kept, because neither the base model nor the tasks change from window to window.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from stillhouse.schemas.messages import Message, encode_messages
from stillhouse.trainer.evaluation.benchmark import Benchmark, ChatPolicy
from stillhouse.trainer.evaluation.journal import copy_entries
from stillhouse.trainer.evaluation.report import EvaluationReport, PolicyReport
from stillhouse.trainer.evaluation.runner import EvaluationSettings, Progress, evaluate


class BaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """The base model's better way, and both ways by their names."""

    best: PolicyReport
    ways: tuple[PolicyReport, ...]


async def measure_base(
    benchmark: Benchmark, parts: Sequence[str], policy: ChatPolicy, shots: Sequence[Message], *,
    base_id: str, cache: Path, settings: EvaluationSettings = EvaluationSettings(), progress: Progress = lambda step: None,  # noqa: B008
    journal: Path | None = None,
) -> BaseReport:  # fmt: skip
    """Measure the base model without and with examples, or take what was measured before.

    Args:
        benchmark: as for `evaluate`.
        parts: as for `evaluate`.
        policy: the base model at its server; its own `shots` are not used.
        shots: worked examples, system prompt left out.
        base_id: what identifies the weights (the sha256 of the base model's manifest).
        cache: folder that results are kept in, under the hash of base, tasks and examples.
        settings: as for `evaluate`.
        progress: as for `evaluate`.
        journal: a report's journal, which gets these episodes too, also when they were measured before.

    Raises:
        UsageError: as for `evaluate`.
    """
    key = _key(benchmark, parts, policy, shots, base_id, settings)
    kept, own = cache / f"base-{key}.json", cache / f"base-{key}.jsonl"
    if kept.exists():
        report = msgspec.json.decode(kept.read_bytes(), type=EvaluationReport)
        copy_entries(own, journal)
        return _best(report)
    ways = [
        msgspec.structs.replace(policy, shots=()),
        msgspec.structs.replace(policy, name=f"{policy.name}+{_examples(shots)} shots", shots=tuple(shots)),
    ]
    # The journal lies beside the result: a killed measurement goes on where it was.
    report = await evaluate(benchmark, parts, ways, journal=own, settings=settings, progress=progress)
    if not any(way.all.errors for way in report.policies):
        partial = kept.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(report))
        partial.replace(kept)
    copy_entries(own, journal)
    return _best(report)


def _best(report: EvaluationReport) -> BaseReport:
    return BaseReport(best=max(report.policies, key=lambda p: p.all.success.value or 0.0), ways=report.policies)


def _examples(shots: Sequence[Message]) -> int:
    """An example begins with a user message after anything but one."""
    roles = ["", *(m.role for m in shots)]
    return sum(role == "user" and before != "user" and before != "tool" for before, role in pairwise(roles))


def _key(
    benchmark: Benchmark, parts: Sequence[str], policy: ChatPolicy, shots: Sequence[Message], base_id: str, settings: EvaluationSettings
) -> str:
    tasks = {part: [task.id for task in benchmark.tasks(part)] for part in parts}
    how = [base_id, benchmark.name, tasks, encode_messages(list(shots)), policy.temperature, policy.max_tokens, settings.runs]
    return hashlib.sha256(msgspec.json.encode(how)).hexdigest()[:16]
