"""`summary.json`: the demo's figures in the form that its readers rely on."""

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.console.demo.run import Story
from stillhouse.console.demo.settings import DemoSettings
from stillhouse.console.demo.trials import as_fields
from stillhouse.trainer.evaluation.costs import break_even
from stillhouse.trainer.evaluation.report import PolicyReport

Fields = dict[str, Any]


def policy(report: PolicyReport, name: str, window: int | None) -> Fields:
    """One evaluated policy."""
    parts = {
        part: {
            "k": int(found.all.success.k),
            "n": found.all.success.n,
            "interval": [found.all.success.interval.low, found.all.success.interval.high],
            "errors": found.all.errors,
        }
        for part, found in report.parts.items()
    }
    families: dict[str, Fields] = {}
    for part, found in report.parts.items():
        for family, measured in found.families.items():
            families.setdefault(family, {})[part] = {"k": int(measured.success.k), "n": measured.success.n}
    cost = report.cost
    return {
        "name": name,
        "window": window,
        "success": parts,
        "steps_mean": report.all.steps_mean,
        "format_error_rate": report.all.format_error_rate,
        "cost_per_success_usd": {"marginal": cost.marginal_per_success_usd, "loaded": cost.loaded_per_success_usd},
        "cost_usd": {"marginal": cost.marginal_usd, "loaded": cost.loaded_usd, "basis": cost.basis},
        "latency_s": {"p50": report.all.latency.p50_s, "p95": report.all.latency.p95_s} if report.all.latency else None,
        "families": families,
    }


def summary(
    settings: DemoSettings,
    seed: int,
    *,
    phases: Mapping[str, float],
    cpu_seconds: float,
    notice: str,
    teacher: PolicyReport,
    base: PolicyReport,
    students: Sequence[tuple[int, PolicyReport, Fields]],
    rejected: Mapping[int, Fields],
) -> Fields:
    """The whole file.

    Args:
        settings: what ran.
        seed: with which seed.
        phases: seconds by phase.
        cpu_seconds: of all processes.
        notice: what the teacher is.
        teacher: its evaluation.
        base: the base model's.
        students: each student's window, evaluation, and the result of the job that made it, oldest first.
        rejected: the results of the windows that made no student, by number.
    """
    made = [{**policy(report, report.name, number), **_training(result)} for number, report, result in students]
    return {
        "seed": seed,
        "claims": settings.claims,
        "notice": notice,
        "phases": dict(phases),
        "cpu_seconds": round(cpu_seconds, 1),
        "tasks": dict(settings.held_out),
        "teacher": policy(teacher, teacher.name, None),
        "base": policy(base, base.name, None),
        "students": made,
        "rejected": [{"window": number, "reason": result["reason"]} for number, result in rejected.items()],
        "waterfalls": {report.name: result["waterfall"] for _, report, result in students},
    }


def loop_fields(story: Story) -> Fields:
    """What the loop did: champion, canaries, money and events."""
    accounts = story.accounts
    assert accounts is not None, "written when the demo is over"
    return {
        "champion": story.champion,
        "canaries": [as_fields(trial, story.served[trial.student]) for trial in story.trials],
        "reruns": story.reruns,
        "cost": {
            "teacher_only_usd": round(accounts.teacher_only_usd, 6),
            "spent_usd": round(accounts.spent_usd, 6),
            "ledger": {variant: round(usd, 6) for variant, usd in accounts.ledger.items()},
        },
        "events": {"emitted": accounts.emitted, "stored": accounts.stored, "dlq": accounts.dlq},
    }


def paid_back(found: Fields, story: Story, settings: DemoSettings) -> Fields:
    """What distilling cost, and from which volume on it has paid.

    The agents' own runs are not in it: the teacher would have done them anyway. What was bought for training is: the runs that the
    teacher did again, and the machine for as long as windows were curated, trained and validated.
    """
    assert story.accounts is not None, "written when the demo is over"
    hours = sum(seconds for name, seconds in found["phases"].items() if name.startswith("window ")) / 3600
    spend = story.accounts.reruns_usd + hours * settings.replica_usd_per_hour
    teacher, last = (p["cost_per_success_usd"]["loaded"] for p in (found["teacher"], found["students"][-1]))
    reached = break_even(spend, teacher_usd=teacher, student_usd=last)
    return {"distillation_usd": round(spend, 6), "successes": reached.successes, "why": reached.why}


def failures(settings: DemoSettings, story: Story) -> list[str]:
    """Why the demo did not show what it is there to show; empty where it did, or claims nothing."""
    if not settings.claims:
        return []
    found = [] if story.champion else ["no student became champion"]
    noisy, again = story.trial("noisy"), story.trial("again")
    if noisy is not None and noisy.verdict != "rollback":
        found.append(f"the noisy student stayed: {noisy.verdict}")
    if again is not None and again.verdict == "rollback":
        found.append(f"the champion was rolled back under another name: {again.reason}")
    return found


def _training(result: Fields) -> Fields:
    evaluation = result.get("evaluation") or {}
    return {
        "mode": result.get("mode"),
        "validation": {"success": evaluation.get("success"), "failure_rates": evaluation.get("failure_rates", {})},
        "validation_loss": result.get("validation_loss"),
        "parent_loss": result.get("parent_loss"),
        "base_loss": result.get("base_loss"),
    }


def ratio_of_costs(found: Mapping[str, Any]) -> Fields:
    """How many times cheaper the last student's success is than the teacher's; None where one of them has none."""
    teacher, last = found["teacher"]["cost_per_success_usd"], found["students"][-1]["cost_per_success_usd"]
    return {kind: teacher[kind] / last[kind] if teacher[kind] and last[kind] else None for kind in ("marginal", "loaded")}
