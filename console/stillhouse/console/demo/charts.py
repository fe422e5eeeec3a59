"""The report's charts as PNG files. Colours (Okabe and Ito's) are told apart without telling red from green."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen where a demo or CI runs
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from stillhouse.console.demo.figures import short

COLOURS = {"seen": "#0072b2", "unseen": "#e69f00", "rephrased": "#8c8c8c"}
LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
WIDTH, HEIGHT, DPI = 6.4, 3.7, 160
SMOOTH = 8  # steps; batches are small, and single ones say little

Policy = Mapping[str, Any]


def success(path: Path, policies: Sequence[Policy], note: str) -> None:
    """Success by policy and part, with 95 % Wilson intervals."""
    figure, axes = _begin(HEIGHT)
    parts = [part for part in COLOURS if any(part in p["success"] for p in policies)]
    width = 0.8 / max(1, len(parts))
    for place, part in enumerate(parts):
        shown = [(i, p["success"][part]) for i, p in enumerate(policies) if part in p["success"]]
        xs = [i + (place - (len(parts) - 1) / 2) * width for i, _ in shown]
        rates = [100 * cell["k"] / cell["n"] if cell["n"] else 0.0 for _, cell in shown]
        low = [rate - 100 * cell["interval"][0] for rate, (_, cell) in zip(rates, shown, strict=True)]
        high = [100 * cell["interval"][1] - rate for rate, (_, cell) in zip(rates, shown, strict=True)]
        error = {"lw": 1, "capsize": 2, "ecolor": "#333333"}
        axes.bar(xs, rates, width * 0.92, color=COLOURS[part], label=part, yerr=[low, high], error_kw=error)
    axes.set_xticks(range(len(policies)), [short(p) for p in policies])
    axes.set_ylim(0, 103)
    axes.set_ylabel("held-out tasks solved, %")
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=1, fontsize=9)
    _finish(figure, axes, path, "Success, with 95 % Wilson intervals", note, pad=24)


def losses(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], note: str) -> None:
    """Training loss of each student over the supervised tokens of its own window: each step, and a running mean."""
    figure, axes = _begin(HEIGHT)
    for place, (name, points) in enumerate(curves.items()):
        steps, values = [x for x, _ in points], [y for _, y in points]
        colour = LINES[place % len(LINES)]
        axes.plot(steps, values, color=colour, lw=0.7, alpha=0.35)
        axes.plot(steps, running_mean(values), color=colour, lw=2, label=name)
    if any(curves.values()):
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no training step was reported", ha="center", transform=axes.transAxes, color="#666666")
    axes.set_xlabel("optimizer step of the window")
    axes.set_ylabel("loss, nats per supervised token")
    _finish(figure, axes, path, f"Training loss (thin: each step; thick: mean of {SMOOTH})", note)


def running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with the `SMOOTH - 1` before it."""
    windows = [values[max(0, end - SMOOTH) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def waterfall(path: Path, name: str, stages: Sequence[Mapping[str, Any]], note: str) -> None:
    """What each stage of curation kept of what it got, from top to bottom."""
    figure, axes = _begin(1.3 + 0.3 * len(stages))
    names = [str(s["name"]) for s in stages]
    axes.barh(names, [s["in"] for s in stages], color="#d5d9dd", label="dropped")
    bars = axes.barh(names, [s["kept"] for s in stages], color="#0072b2", label="kept")
    axes.bar_label(bars, label_type="center", fontsize=9, color="white", fontweight="bold")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("trajectories")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, handlelength=1, fontsize=9)
    _finish(figure, axes, path, f"Curation of {name}", note)


def canaries(path: Path, trials: Sequence[Mapping[str, Any]], note: str) -> None:
    """The interval of each canary's success against its reference as its units come in, and the margin that a crown must clear."""
    shown = [trial for trial in trials if trial["over_time"]] or [
        {"student": "no canary had data", "verdict": "", "margin": 0, "over_time": []}
    ]
    figure, every = plt.subplots(len(shown), 1, figsize=(WIDTH, 0.9 + 1.5 * len(shown)), dpi=DPI, squeeze=False)
    for axes, trial in zip(every[:, 0], shown, strict=True):
        units = [p["units"] for p in trial["over_time"]]
        axes.fill_between(units, *([100 * p[end] for p in trial["over_time"]] for end in ("lower", "upper")), color=LINES[4], alpha=0.45)
        axes.plot(units, [100 * p["estimate"] for p in trial["over_time"]], color=LINES[0], lw=1.5, marker=".")
        axes.set_xlim(0, 1.05 * max(units, default=1))
        axes.axhline(-100 * trial["margin"], color="#333333", lw=1, ls="--")
        axes.axhline(0, color="#999999", lw=0.7)
        against = trial["over_time"][-1]["against"] if trial["over_time"] else "reference"
        axes.set_title(f"{trial.get('what', '')} {trial['student']}: {trial['verdict']}", fontsize=9, loc="left")
        axes.set_ylabel(f"points\nvs {against}", fontsize=8)
        axes.set_ylim(-105, 60)
    every[-1, 0].set_xlabel("matured units of the canary")
    _finish(figure, every[0, 0], path, every[0, 0].get_title(loc="left"), note + "; dashed: the margin")


def _begin(height: float) -> tuple[Any, Axes]:
    return plt.subplots(figsize=(WIDTH, height), dpi=DPI)


def _finish(figure: Any, axes: Axes, path: Path, title: str, note: str, pad: float = 8) -> None:
    axes.set_title(title, fontsize=11, loc="left", pad=pad)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.99, 0.01, note, ha="right", va="bottom", fontsize=7, color="#666666")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path)
    plt.close(figure)
