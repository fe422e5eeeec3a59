"""Phases of a run with their times, shown live in a terminal and line by line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


@dataclass
class Phase:
    """One phase: a name, its seconds once it is over, and its latest news."""

    name: str
    began: float
    seconds: float | None = None
    news: str = ""


@dataclass
class Phases:
    """The phases of one run.

    Args:
        console: where they are shown.
        clock: seconds that only go forward.
    """

    console: Console
    clock: Callable[[], float] = time.monotonic
    phases: list[Phase] = field(default_factory=list)
    _live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator["Phases"]:
        """Show the phases while the block runs."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(get_renderable=self.view, console=self.console, refresh_per_second=4) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """One phase; yields a function that takes its latest news."""
        phase = Phase(name, self.clock())
        self.phases.append(phase)
        if not self._live:
            self.console.print(f"{name} …", soft_wrap=True, markup=False)
        yield lambda news: self._news(phase, news)
        phase.seconds = self.clock() - phase.began
        if not self._live:
            self.console.print(f"{name}: {phase.seconds:.1f} s{'  ' + phase.news if phase.news else ''}", soft_wrap=True, markup=False)

    def _news(self, phase: Phase, news: str) -> None:
        phase.news = news

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, rounded to a hundredth."""
        return {p.name: round(p.seconds, 2) for p in self.phases if p.seconds is not None}

    def view(self) -> Table:
        """The phases as a table; the last one turns while it runs."""
        grid = Table.grid(padding=(0, 2))
        for phase in self.phases:
            over = phase.seconds is not None
            seconds = phase.seconds if phase.seconds is not None else self.clock() - phase.began
            grid.add_row("[green]✓[/]" if over else Spinner("dots"), phase.name, f"{seconds:6.1f} s", Text(phase.news, style="dim"))
        return grid
