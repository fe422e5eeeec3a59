"""The report's charts as PNG files. Colours are readable without telling red from green."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen where a demo or CI runs
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"seen": "#0072b2", "unseen": "#e69f00", "rephrased": "#999999"}
SIZE, DPI = (7.2, 3.8), 120

Policy = Mapping[str, Any]


def success(path: Path, policies: Sequence[Policy], note: str) -> None:
    """Success by policy and part, with 95 % Wilson intervals."""
    figure, axes = plt.subplots(figsize=SIZE, dpi=DPI)
    parts = [part for part in COLOURS if any(part in p["success"] for p in policies)]
    width = 0.8 / max(1, len(parts))
    for place, part in enumerate(parts):
        shown = [(i, p["success"][part]) for i, p in enumerate(policies) if part in p["success"]]
        xs = [i + (place - (len(parts) - 1) / 2) * width for i, _ in shown]
        rates = [100 * cell["k"] / cell["n"] if cell["n"] else 0.0 for _, cell in shown]
        low = [rate - 100 * cell["interval"][0] for rate, (_, cell) in zip(rates, shown, strict=True)]
        high = [100 * cell["interval"][1] - rate for rate, (_, cell) in zip(rates, shown, strict=True)]
        axes.bar(xs, rates, width * 0.92, color=COLOURS[part], label=part, yerr=[low, high], error_kw={"lw": 1, "capsize": 2})
    axes.set_xticks(range(len(policies)), [str(p["name"]).rsplit("-", 1)[0] if p.get("window") else str(p["name"]) for p in policies])
    axes.set_ylim(0, 105)
    axes.set_ylabel("tasks solved, %")
    axes.legend(frameon=False, ncols=3, loc="upper left")
    _finish(figure, axes, path, "Success on held-out tasks (95 % Wilson intervals)", note)


def losses(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], note: str) -> None:
    """Training loss of each student over the supervised tokens of its own window."""
    figure, axes = plt.subplots(figsize=SIZE, dpi=DPI)
    for name, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, lw=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step of the window")
    axes.set_ylabel("loss, nat a token")
    if curves:
        axes.legend(frameon=False)
    _finish(figure, axes, path, "Training loss by window", note)


def waterfall(path: Path, name: str, stages: Sequence[Mapping[str, Any]], note: str) -> None:
    """What each stage of curation kept of what it got."""
    figure, axes = plt.subplots(figsize=SIZE, dpi=DPI)
    names = [str(s["name"]) for s in stages]
    axes.bar(names, [s["in"] for s in stages], color="#dddddd", label="in")
    bars = axes.bar(names, [s["kept"] for s in stages], color="#0072b2", label="kept")
    axes.bar_label(bars, fontsize=8)
    axes.tick_params(axis="x", rotation=30)
    axes.set_ylabel("trajectories")
    axes.legend(frameon=False)
    _finish(figure, axes, path, f"Curation of {name}", note)


def _finish(figure: Any, axes: Axes, path: Path, title: str, note: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.99, 0.01, note, ha="right", va="bottom", fontsize=6, color="#777777")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path)
    plt.close(figure)
