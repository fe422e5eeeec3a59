"""The canary's error rates, simulated: the table of docs/canary.md.

    nice -n 15 python bench/canary.py [--runs 1000] [--seed 1] [--json]

A look after every unit; outcomes come 20 units late (200 where said), 5 % never. The ramp is 1, 5, 10, 25 and 50 %. "Trend": success
moves by 20 points in all arms while the canary ramps up. alpha is 5 %, the margin 5 points, guardrails 2.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import msgspec
import numpy as np

from bench.canary_streams import PRODUCT, PROMOTED, ROLLED_BACK, Floats, Outcome, Rules, World, simulate
from stillhouse.schemas.assign import Arm
from stillhouse.serving.canary.experiment import CanarySettings, Experiment, plan
from stillhouse.serving.canary.sequence import MICRO, Moments, tuned_rho
from stillhouse.serving.canary.units import GUARDRAILS, Metric, Scales

ALPHA, MARGIN, CLEAN = 0.05, 0.05, 0.98
TRENDS = ((0.5, 0.2), (0.5, -0.2), (0.8, 0.2), (0.8, -0.2))
LEVELS = ((0.5, 0.0), (0.8, 0.0), (0.95, 0.0), (0.995, 0.0))
SETTINGS = CanarySettings(alpha=ALPHA, margin=MARGIN)
DEMO = CanarySettings(
    alpha=0.15, margin=0.15, stages=(0.25, 0.50), max_canary_units=150, holdback=0.02,
    format_margin=0.15, steps_margin=0.15, latency_margin=0.15, fallback_margin=0.15,
)  # fmt: skip


def history(rate: float, units: int = 500) -> Moments:
    """What a reference with this rate had scored before the canary."""
    good = round(rate * units)
    return Moments(units, good * MICRO, good * MICRO * MICRO)


def experiment(rate: float, *, champion: bool = True, settings: CanarySettings = SETTINGS, units: int = 6000) -> Experiment:
    """A canary planned for so many units of all arms, its references at this success rate, over the whole ramp."""
    past = {Metric.SUCCESS: history(rate), **{metric: history(CLEAN) for metric in GUARDRAILS}}
    planned = plan(
        name="simulated", route="simulated", student="simulated", champion=champion, settings=settings, scales=Scales(),
        version=1, units_per_day=units * 86_400 / settings.max_age_s, history={Arm.CHAMPION: past, Arm.TEACHER: past},
    )  # fmt: skip
    return msgspec.structs.replace(planned, stages=settings.stages)


def single(planned: Experiment) -> Experiment:
    """With one rollback test only, the first, which then has all of alpha."""
    first, *others = planned.tests
    alpha = planned.settings.alpha
    # The planned rho is that variance tuned for alpha/m; tuning is linear in it.
    rho = tuned_rho(first.rollback_rho / tuned_rho(1.0, planned.rollback_alpha), alpha)
    quiet = [msgspec.structs.replace(test, rollback_below=None) for test in others]
    return msgspec.structs.replace(planned, rollback_alpha=alpha, tests=(msgspec.structs.replace(first, rollback_rho=rho), *quiet))


def world(rate: float, loss: float = 0.0, trend: float = 0.0, *, delay: int = 20, guards: float | None = None) -> World:
    """Success at this rate, the canary's less by `loss`; with guardrails, if wanted, the canary's less by `guards`."""
    rates = {Metric.SUCCESS: (rate - loss, rate, rate)}
    if guards is not None:
        rates |= {metric: (CLEAN - guards, CLEAN, CLEAN) for metric in GUARDRAILS}
    return World(rates, trend=trend, delay=delay, missing=0.05)


def peeking(variance: Floats, rho: Floats, alpha: float) -> Floats:
    """A z-test that is looked at after every unit."""
    return np.asarray(NormalDist().inv_cdf(1 - alpha) * np.sqrt(variance) + 0 * rho)


@dataclass(frozen=True)
class Cell:
    """One row of the table: what is simulated, which share of runs is the claim, and its limit."""

    group: str
    name: str
    experiment: Experiment
    world: World
    verdict: int
    rules: Rules = PRODUCT
    units: int = 6000
    limit: str = ""


WATCH = Rules(crown=False)  # nobody is crowned, so that a false rollback has all 6,000 units to happen in
LONE = Rules(rollback=False)


def named(rate: float, trend: float) -> str:
    """A cell's traffic in words."""
    return f"{rate:.1%}" + (f", trend {trend * 100:+.0f} points" if trend else "")


def false_rollbacks() -> Iterator[Cell]:
    """No difference: one rollback test and all six, and what other tests do with the same units."""
    for rate, trend in (*LEVELS, *TRENDS):
        one = single(experiment(rate))
        for kind, rules in (
            ("one test", WATCH),
            ("the same, pooled arms", replace(WATCH, pooled=True)),
            ("the same, peeking z-test", replace(WATCH, half=peeking)),
        ):
            yield Cell(
                "rolled back at no difference",
                f"{named(rate, trend)}: {kind}",
                one,
                world(rate, trend=trend),
                ROLLED_BACK,
                rules,
                limit="5.0 %",
            )
    for rate, trend in ((0.5, 0.2), (0.8, 0.0), (0.95, 0.0)):
        yield Cell(
            "rolled back at no difference", f"{named(rate, trend)}: six tests", experiment(rate), world(rate, trend=trend, guards=0.0),
            ROLLED_BACK, WATCH, limit="5.0 %",
        )  # fmt: skip
    late = single(experiment(0.8))
    yield Cell(
        "rolled back at no difference",
        "80.0%, outcomes 200 units late: one test",
        late,
        world(0.8, delay=200),
        ROLLED_BACK,
        WATCH,
        limit="5.0 %",
    )


def false_crowns() -> Iterator[Cell]:
    """A student that loses exactly the margin; no rollback takes it away before the crown can err, and then as it is."""
    for rate, trend in (*LEVELS, *TRENDS):
        first = experiment(rate, champion=False)
        for kind, rules in (
            ("against the teacher alone, no rollback", LONE),
            ("the same, pooled arms", replace(LONE, pooled=True)),
            ("the same, peeking z-test", replace(LONE, half=peeking)),
        ):
            yield Cell(
                "crowned at minus the margin",
                f"{named(rate, trend)}: {kind}",
                first,
                world(rate, MARGIN, trend),
                PROMOTED,
                rules,
                limit="3.0 %",
            )
        yield Cell(
            "crowned at minus the margin",
            f"{named(rate, trend)}: as it is, with a champion",
            experiment(rate),
            world(rate, MARGIN, trend),
            PROMOTED,
            limit="3.0 %",
        )
    uneven = replace_stages(experiment(0.95, champion=False), (0.10,))
    yield Cell("crowned at minus the margin", "95.0%: if 10 % of the units could crown", uneven, world(0.95, MARGIN), PROMOTED, LONE)


def replace_stages(planned: Experiment, stages: tuple[float, ...]) -> Experiment:
    """The same canary over other stages."""
    return msgspec.structs.replace(planned, stages=stages)


def power() -> Iterator[Cell]:
    """What becomes of students that are equal, and of those that are worse."""
    for rate, trend in ((0.5, 0.0), (0.8, 0.0), (0.95, 0.0), (0.8, 0.2)):
        for champion in (True, False):
            kind = "champion and teacher" if champion else "teacher alone"
            yield Cell(
                "equal students crowned",
                f"{named(rate, trend)}: {kind}, all guardrails",
                experiment(rate, champion=champion),
                world(rate, trend=trend, guards=0.0),
                PROMOTED,
            )
    for rate, trend in ((0.5, 0.0), (0.8, 0.0), (0.95, 0.0), (0.5, 0.2), (0.8, 0.2), (0.8, -0.2)):
        planned = experiment(rate)
        yield Cell(
            "10 points worse, rolled back",
            f"{named(rate, trend)}: six tests",
            planned,
            world(rate, 0.10, trend, guards=0.0),
            ROLLED_BACK,
            limit="≥ 99 %",
        )
        yield Cell(
            "20 points worse, rolled back",
            f"{named(rate, trend)}: one test",
            single(planned),
            world(rate, 0.20, trend),
            ROLLED_BACK,
            limit="median ≤ 60",
        )
        yield Cell(
            "20 points worse, rolled back",
            f"{named(rate, trend)}: six tests",
            planned,
            world(rate, 0.20, trend, guards=0.0),
            ROLLED_BACK,
            limit="median ≤ 80",
        )
    yield Cell(
        "10 points worse, rolled back",
        "80.0%: teacher alone, beyond the margin",
        experiment(0.8, champion=False),
        world(0.8, 0.10),
        ROLLED_BACK,
    )


def demo() -> Iterator[Cell]:
    """The demo's route: 25 and 50 %, margins of 15 points, alpha 15 %, 300 units of all arms, the teacher alone."""
    planned = experiment(0.95, champion=False, settings=DEMO, units=300)
    for name, loss, verdict, limit in (
        ("equal, rolled back", 0.0, ROLLED_BACK, "15.0 %"),
        ("equal, crowned", 0.0, PROMOTED, ""),
        ("5 points worse, crowned", 0.05, PROMOTED, ""),
        ("15 points worse, crowned", 0.15, PROMOTED, "9.1 %"),
        ("40 points worse, rolled back", 0.40, ROLLED_BACK, ""),
        ("60 points worse, rolled back", 0.60, ROLLED_BACK, ""),
    ):
        traffic = replace(world(0.95, loss, guards=0.0), missing=0.0)
        yield Cell("the demo's route", f"teacher 95 %: {name}", planned, traffic, verdict, units=300, limit=limit)


def row(cell: Cell, runs: int, seed: int) -> dict[str, object]:
    """Simulate one cell."""
    outcome: Outcome = simulate(cell.experiment, cell.world, runs=runs, units=cell.units, seed=seed, rules=cell.rules)
    ended = outcome.verdict == cell.verdict
    return {
        "group": cell.group, "cell": cell.name, "limit": cell.limit, "share": outcome.share(cell.verdict),
        "canary_units": float(np.median(outcome.canary[ended])) if ended.any() else None,
        "units": float(np.median(outcome.units[ended])) if ended.any() else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    args = parser.parse_args()
    started, rows, group = time.monotonic(), [], ""
    for cell in (*false_rollbacks(), *false_crowns(), *power(), *demo()):
        rows.append(found := row(cell, args.runs, args.seed))
        if args.json:
            continue
        if cell.group != group:
            group = cell.group
            print(f"\n| {group} | runs | limit | median canary units | median units |\n|---|---|---|---|---|")
        medians = [f"{found[key]:.0f}" if found[key] is not None else "" for key in ("canary_units", "units")]
        print(f"| {cell.name} | {found['share']:.1%} | {cell.limit} | {' | '.join(medians)} |", flush=True)
    seconds = round(time.monotonic() - started, 1)
    print(
        json.dumps({"runs": args.runs, "seed": args.seed, "seconds": seconds, "cells": rows})
        if args.json
        else f"\n{args.runs} runs a cell, {seconds} s"
    )


if __name__ == "__main__":
    main()
