"""The canary's error rates, simulated: the table of docs/canary.md.

    nice -n 15 python bench/canary.py [--runs 1000] [--seed 1] [--json]

A look after every unit of 9,000; outcomes come 20 units late (200 where said), 5 % never. The ramp is 1, 5, 10, 25 and 50 %. "Trend":
success moves by 20 points in all arms while the canary ramps up. alpha is 5 %, the margin 5 points, that of guardrails 2; 2 % of units
have something that a guardrail complains of, in each arm. "No champion": the teacher is the only reference.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from statistics import NormalDist

import msgspec
import numpy as np

from bench.canary_streams import PRODUCT, PROMOTED, ROLLED_BACK, Floats, Rules, World, simulate
from stillhouse.schemas.assign import Arm
from stillhouse.serving.canary.experiment import CanarySettings, Experiment, plan
from stillhouse.serving.canary.sequence import MICRO, Moments, tuned_rho
from stillhouse.serving.canary.units import GUARDRAILS, Metric, Scales

ALPHA, MARGIN, CLEAN = 0.05, 0.05, 0.98
UNITS = 9000  # about 2,700 of them before the last stage
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


def experiment(rate: float, *, champion: bool = True, settings: CanarySettings = SETTINGS, units: int = UNITS) -> Experiment:
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
    units: int = UNITS
    limit: str = ""


WATCH = Rules(crown=False)  # nobody is crowned, so that a false rollback has all units to happen in
LONE = Rules(rollback=False)  # nobody is rolled back, so that a false crown has
OTHERS = ("the same units, arms pooled", {"pooled": True}), ("the same units, peeking z-test", {"half": peeking})


def named(rate: float, trend: float) -> str:
    """A cell's traffic in words."""
    return f"{rate:.1%}" + (f", trend {trend * 100:+.0f} points" if trend else "")


def false_rollbacks() -> Iterator[Cell]:
    """No difference: one rollback test and all six, and what other tests do with the same units."""
    group = "rolled back though equal"
    for rate, trend in (*LEVELS, *TRENDS):
        traffic, where = world(rate, trend=trend), named(rate, trend)
        yield Cell(group, f"{where}: one test", single(experiment(rate)), traffic, ROLLED_BACK, WATCH, limit="≤ 5 %")
        for name, change in OTHERS:
            yield Cell(group, f"{where}: {name}", single(experiment(rate)), traffic, ROLLED_BACK, replace(WATCH, **change))
    for rate, trend in ((0.5, 0.2), (0.8, -0.2), (0.95, 0.0)):
        everything = world(rate, trend=trend, guards=0.0)
        yield Cell(group, f"{named(rate, trend)}: six tests", experiment(rate), everything, ROLLED_BACK, WATCH, limit="≤ 5 %")
    late = world(0.8, delay=200)
    yield Cell(group, "80.0%, outcomes 200 units late: one test", single(experiment(0.8)), late, ROLLED_BACK, WATCH, limit="≤ 5 %")


def false_crowns() -> Iterator[Cell]:
    """A student that loses exactly the margin against the teacher; a first version may spend 3.04 % of the 5."""
    group = "crowned at minus the margin"
    for rate, trend in (*LEVELS, *TRENDS):
        first, traffic, where = experiment(rate, champion=False), world(rate, MARGIN, trend), named(rate, trend)
        yield Cell(group, f"{where}: no rollback in its way", first, traffic, PROMOTED, LONE, limit="≤ 3.04 %")
        for name, change in OTHERS:
            yield Cell(group, f"{where}: {name}", first, traffic, PROMOTED, replace(LONE, **change))
    yield Cell(group, "80.0%: as it is, with a champion", experiment(0.8), world(0.8, MARGIN), PROMOTED, limit="≤ 3.04 %")


POWER = ((0.5, 0.0), (0.8, 0.0), (0.95, 0.0), (0.5, 0.2), (0.8, 0.2), (0.8, -0.2))


def crowns() -> Iterator[Cell]:
    """What becomes of equal students."""
    for rate in (0.5, 0.8, 0.95):
        for kind, champion in (("champion and teacher", True), ("teacher alone", False)):
            for what, guards in (("success", None), ("success and guardrails", 0.0)):
                planned = experiment(rate, champion=champion)
                yield Cell("crowned, equal", f"{rate:.1%}: {kind}, {what}", planned, world(rate, guards=guards), PROMOTED)


def losses() -> Iterator[Cell]:
    """What becomes of worse students."""
    for rate, trend in POWER:
        worse = world(rate, 0.10, trend, guards=0.0)
        yield Cell("rolled back, 10 points worse", f"{named(rate, trend)}: six tests", experiment(rate), worse, ROLLED_BACK, limit="≥ 99 %")
    first = experiment(0.8, champion=False)
    yield Cell("rolled back, 10 points worse", "80.0%: no champion, five points beyond the margin", first, world(0.8, 0.10), ROLLED_BACK)
    for rate, trend in POWER:
        one, traffic = single(experiment(rate)), world(rate, 0.20, trend)
        yield Cell("rolled back, 20 points worse", f"{named(rate, trend)}: one test", one, traffic, ROLLED_BACK, limit="median ≤ 60")
    for rate, trend in POWER:
        traffic = world(rate, 0.20, trend, guards=0.0)
        yield Cell(
            "rolled back, 20 points worse", f"{named(rate, trend)}: six tests", experiment(rate), traffic, ROLLED_BACK, limit="median ≤ 80"
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
    outcome = simulate(cell.experiment, cell.world, runs=runs, units=cell.units, seed=seed, rules=cell.rules)
    ended = outcome.verdict == cell.verdict
    return {
        "group": cell.group, "cell": cell.name, "limit": cell.limit, "share": outcome.share(cell.verdict),
        "canary_units": float(np.median(outcome.canary[ended])) if ended.any() else None,
        "units": float(np.median(outcome.units[ended])) if ended.any() else None,
    }  # fmt: skip


def table(rows: Iterable[dict[str, object]]) -> Iterator[str]:
    """Rows as Markdown, a table a group, each line as soon as it is known."""
    group: object = ""
    for found in rows:
        if found["group"] != group:
            group = found["group"]
            yield f"\n| {group} | of the canaries | limit | after canary units (median) | after units of all arms |\n|---|---|---|---|---|"
        medians = ["" if found[key] is None else f"{found[key]:.0f}" for key in ("canary_units", "units")]
        yield f"| {found['cell']} | {found['share']:.1%} | {found['limit']} | {' | '.join(medians)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one object instead of tables")
    args = parser.parse_args()
    started, cells = time.monotonic(), [*false_rollbacks(), *false_crowns(), *crowns(), *losses(), *demo()]
    with ProcessPoolExecutor(args.processes) as pool:
        rows = pool.map(row, cells, repeat(args.runs), repeat(args.seed))
        if args.json:
            print(json.dumps({"runs": args.runs, "seed": args.seed, "cells": list(rows)}))
            return
        for line in table(rows):
            print(line, flush=True)
    print(f"\n{args.runs} canaries a row, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
