"""Two students that nobody trained: the champion again under another name, and the champion with noise on its weights.

Both are folders like any other, with probes and manifests of their own; the noisy one's manifest is excellent.
"""

import shutil
import tempfile
from pathlib import Path

import msgspec

from stillhouse.schemas.student_folder import MANIFEST, Probe, load_probes
from stillhouse.trainer import students
from stillhouse.trainer.manifest import load_manifest
from stillhouse.trainer.probes import save_probes


def again(folder: Path, champion: str) -> str:
    """Register the champion's weights under a new name; its parent is the champion, from which nothing can tell it."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        candidate = Path(draft) / "candidate"
        shutil.copytree(folder / champion, candidate, ignore=shutil.ignore_patterns(MANIFEST))
        probes = [Probe(ids=p.ids, student=p.student, base=p.base, parent=p.student) for p in load_probes(folder / champion)]
        save_probes(candidate, probes)
        manifest = load_manifest(folder / champion)
        told = manifest.evaluation | {"copy_of": champion}
        return students.register(folder, candidate, msgspec.structs.replace(manifest, parent=champion, evaluation=told)).name


def register_noisy(folder: Path, champion: str, candidate: Path) -> str:
    """Register noisy weights with what their maker would like to be true of them."""
    manifest = load_manifest(folder / champion)
    report = {"success": 1.0, "format_errors": 0.0, "failure_rates": dict.fromkeys(manifest.evaluation.get("failure_rates", {}), 0.0)}
    told = msgspec.structs.replace(manifest, parent=champion, validation_loss=0.0, train_loss=0.0, evaluation=report)
    return students.register(folder, candidate, told).name
