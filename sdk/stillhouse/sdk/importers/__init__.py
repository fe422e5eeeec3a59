"""Importers: yesterday's logs as events. `IMPORTERS` by name; `detect` finds the one that fits a file."""

from pathlib import Path

from stillhouse.sdk.importers.base import Importer
from stillhouse.sdk.importers.chat import Chat
from stillhouse.sdk.importers.fireact import FireAct
from stillhouse.sdk.importers.intercode import Intercode
from stillhouse.sdk.importers.langfuse import Langfuse
from stillhouse.sdk.importers.mini_swe import MiniSwe
from stillhouse.sdk.importers.tau2 import Tau2
from stillhouse.sdk.importers.tau_bench import TauBench
from stillhouse.sdk.importers.toolbench import ToolBench

__all__ = ["IMPORTERS", "Importer", "detect"]

IMPORTERS: dict[str, Importer] = {
    importer.name: importer for importer in (TauBench(), Tau2(), MiniSwe(), Intercode(), ToolBench(), FireAct(), Langfuse(), Chat())
}


def detect(path: Path) -> str | None:
    """The name of the importer that fits a file, by its beginning; None when none does."""
    return next((name for name, importer in IMPORTERS.items() if importer.detect(path)), None)
