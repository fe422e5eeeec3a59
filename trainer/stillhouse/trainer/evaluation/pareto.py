"""Cost against quality of teacher, base and every student: which are worth having, which one to run, and why."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import MissingExtraError, UsageError
from stillhouse.trainer.evaluation.report import Measured, PolicyReport

FLOOR = 0.95
OPERATING, EFFICIENT, DOMINATED = "#d55e00", "#0072b2", "#8c8c8c"
LABEL_PERCENT = 6.5  # a label's height, on the axis of success


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. Costs are US dollars per successful task; None when it had no success (or no busy time to go by)."""

    name: str
    success: float
    low: float
    high: float
    tasks: int
    loaded_usd: float | None
    marginal_usd: float | None
    efficient: bool = False


class Pareto(msgspec.Struct, frozen=True, kw_only=True):
    """All points, cheapest first, and the operating point with its reason."""

    points: tuple[Point, ...]
    operating: str
    why: str


def pareto(policies: Sequence[PolicyReport], *, teacher: str, part: str | None = None, floor: float = FLOOR) -> Pareto:
    """Find the frontier and the operating point: the cheapest policy that keeps `floor` of the teacher's success.

    Args:
        policies: what was evaluated, the teacher among them.
        teacher: the teacher's name.
        part: the part to go by; all parts when None.
        floor: share of the teacher's success that has to be kept.

    Raises:
        UsageError: the teacher was not evaluated (on that part).
    """
    points = [_point(p, part) for p in policies if part is None or part in p.parts]
    reference = next((p for p in points if p.name == teacher), None)
    if reference is None:
        raise UsageError(f"the teacher {teacher!r} was not evaluated", where=part or "all parts", fix="Evaluate it on the same tasks.")
    ranked = sorted(points, key=lambda p: (_price(p), -p.success))
    marked = tuple(msgspec.structs.replace(p, efficient=_efficient(p, ranked)) for p in ranked)
    need = floor * reference.success
    chosen = next((p for p in marked if p.success >= need and p.loaded_usd is not None), reference)
    return Pareto(points=marked, operating=chosen.name, why=_why(chosen, reference, need, floor))


def plot(found: Pareto, path: Path, *, title: str = "Cost and quality", note: str = "") -> None:
    """Draw the points as a PNG: loaded cost (logarithmic) across, success with its interval up.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError as error:
        raise MissingExtraError("the Pareto plot", "trainer") from error
    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # Beside its colour each kind has a shape: nobody has to tell them apart by hue.
    shown = [(p, 1000 * p.loaded_usd, 100 * p.success) for p in found.points if p.loaded_usd]
    for p, usd, percent in shown:
        kind = (OPERATING, "D") if p.name == found.operating else (EFFICIENT, "o") if p.efficient else (DOMINATED, "s")
        axes.errorbar([usd], [percent], yerr=[[percent - 100 * p.low], [100 * p.high - percent]], fmt=kind[1], color=kind[0], capsize=3)
    frontier = [(usd, percent) for p, usd, percent in shown if p.efficient]
    axes.plot([usd for usd, _ in frontier], [percent for _, percent in frontier], "--", color=EFFICIENT, linewidth=1, zorder=0)
    if shown:
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda usd, _: f"${usd:g}"))
        _label(axes, shown)
    axes.set(xlabel="US dollars for 1,000 successes, loaded (log scale)", ylabel="tasks solved, %", ylim=(-3, 105))
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    missing = ", ".join(p.name for p in found.points if not p.loaded_usd)
    legend = "diamond: operating point; dashed: frontier" + (f"; no success: {missing}" if missing else "")
    figure.supxlabel("\n".join(filter(None, (legend, note))), fontsize=7, color="#666666", x=0.99, ha="right")
    figure.savefig(path, dpi=160)


def _label(axes: Any, shown: Sequence[tuple[Point, float, float]]) -> None:
    """Each point's name towards the middle; names that would lie on one another are moved apart."""
    costs = [usd for _, usd, _ in shown]
    middle = (min(costs) * max(costs)) ** 0.5
    for left in (True, False):
        lowest = float("-inf")
        for p, usd, percent in sorted((s for s in shown if (s[1] <= middle) == left), key=lambda s: s[2]):
            height = lowest = max(percent, lowest + LABEL_PERCENT)
            place = {"xytext": (10 if left else -10, 0), "textcoords": "offset points", "ha": "left" if left else "right", "va": "center"}
            axes.annotate(p.name, (usd, height), fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.8}, **place)


def _point(policy: PolicyReport, part: str | None) -> Point:
    measured: Measured = policy.all if part is None else policy.parts[part].all
    cost = policy.cost if part is None else policy.parts[part].cost
    rate = measured.success
    return Point(
        name=policy.name, success=rate.value or 0.0, low=rate.interval.low, high=rate.interval.high, tasks=rate.n,
        loaded_usd=cost.loaded_per_success_usd, marginal_usd=cost.marginal_per_success_usd,
    )  # fmt: skip


def _price(point: Point) -> float:
    return float("inf") if point.loaded_usd is None else point.loaded_usd


def _efficient(point: Point, points: Sequence[Point]) -> bool:
    """Nobody is as good and cheaper, or as cheap and better."""
    if point.loaded_usd is None:
        return False
    mine = (_price(point), -point.success)
    return not any(_price(o) <= mine[0] and -o.success <= mine[1] and (_price(o), -o.success) != mine for o in points)


def _why(chosen: Point, teacher: Point, need: float, floor: float) -> str:
    if chosen.name == teacher.name:
        return f"no cheaper policy keeps {floor:.0%} of the teacher's {teacher.success:.1%} (needs {need:.1%})."
    saved = "" if not teacher.loaded_usd or not chosen.loaded_usd else f", {teacher.loaded_usd / chosen.loaded_usd:.1f} times cheaper"
    return f"the cheapest that keeps {floor:.0%} of the teacher's {teacher.success:.1%}: {chosen.success:.1%}{saved} (loaded)."
