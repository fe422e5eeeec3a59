"""Teacher, base and every student on the same held-out tasks, by address."""

from dataclasses import dataclass
from pathlib import Path

from stillhouse.console.context import Context
from stillhouse.console.demo.phases import Phases
from stillhouse.console.demo.settings import DemoSettings
from stillhouse.console.demo.teacher import Teacher
from stillhouse.console.stack.record import StackRecord
from stillhouse.examples.order_desk.benchmark import OrderDeskBenchmark
from stillhouse.trainer import models
from stillhouse.trainer.evaluation.base import measure_base
from stillhouse.trainer.evaluation.benchmark import ChatPolicy, ListPrice, ReplicaPrice
from stillhouse.trainer.evaluation.engine import StudentServer
from stillhouse.trainer.evaluation.report import PolicyReport
from stillhouse.trainer.evaluation.runner import EvaluationSettings, Step, evaluate


@dataclass(frozen=True)
class Evaluated:
    """What was measured: the base model by its better way; students oldest first."""

    teacher: PolicyReport
    base: PolicyReport
    students: tuple[PolicyReport, ...]


async def evaluate_all(
    settings: DemoSettings,
    seed: int,
    loaded: Context,
    record: StackRecord,
    base: Path,
    teacher: Teacher,
    students: list[str],
    phases: Phases,
) -> Evaluated:
    """Evaluate everybody; every episode goes to `report/trajectories.jsonl`."""
    benchmark = OrderDeskBenchmark(settings.held_out, seed)
    parts = list(settings.held_out)
    journal = loaded.config.state_dir("report") / "trajectories.jsonl"
    engine = StudentServer(str(record.student))
    price = ReplicaPrice(usd_per_hour=settings.replica_usd_per_hour)
    how = EvaluationSettings()
    asked = ChatPolicy(name="teacher", base_url=teacher.url, model=teacher.model, price=ListPrice(model=teacher.priced_as))
    with phases.phase("evaluate teacher") as news:
        report = await evaluate(benchmark, parts, [asked], journal=journal, settings=how, progress=lambda s: news(_news(s)))
        measured = report.policies[0]
        news(_score(measured))
    found = []
    for name in students:
        with phases.phase(f"evaluate {name}") as news:
            engine.load(name, loaded.state / "students" / name)
            policy = ChatPolicy(name=name, base_url=engine.base_url, model=name, price=price, max_tokens=settings.answer_tokens)
            report = await evaluate(benchmark, parts, [policy], journal=journal, settings=how, progress=lambda s: news(_news(s)))
            found.append(report.policies[0])
            engine.unload(name)
            news(_score(report.policies[0]))
    with phases.phase("evaluate base") as news:
        policy = ChatPolicy(name="base", base_url=engine.base_url, model=engine.base, price=price, max_tokens=settings.answer_tokens)
        cache = loaded.config.state_dir("models")
        ways = await measure_base(
            benchmark, parts, policy, benchmark.shots(), base_id=models.model_id(base), cache=cache, settings=how,
            progress=lambda s: news(_news(s)), journal=journal,
        )  # fmt: skip
        news(_score(ways.best))
    return Evaluated(teacher=measured, base=ways.best, students=tuple(found))


def _news(step: Step) -> str:
    return f"{step.part} {step.done}/{step.total}, {step.succeeded} solved{f', {step.errors} errors' if step.errors else ''}"


def _score(report: PolicyReport) -> str:
    return ", ".join(f"{part} {found.all.success.k:g}/{found.all.success.n}" for part, found in report.parts.items())
