"""Folders that are served, and folders that are not even looked into by an engine."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.student_folder import manifest_hash8, sha256_of, verify
from stillhouse.serving.gateway.engine_students import read_student
from stillhouse.trainer import students as registry
from stillhouse.trainer.manifest import load_manifest
from stillhouse.trainer.models import model_id, tiny
from tests.support.engines import Family, copy_of, without_upper_layer
from tests.trainer.training_factory import manifest

pytestmark = pytest.mark.model


@pytest.fixture
def own(family: Family, tmp_path: Path) -> Path:
    """The child's folder, to be spoilt."""
    return copy_of(family.folder(family.child), tmp_path / "students" / family.child)


def test_a_student_is_read_with_its_probes_and_its_view(own: Path, family: Family) -> None:
    found = read_student(own.parent, own.name, [family.base])
    assert (found.card.name, found.card.parent, found.folder) == (family.child, family.parent, own)
    assert len(found.probes) == 16 and found.spec.grammar == "bare-json"


def forged(folder: Path) -> Path:
    """Other weights with a manifest that lists them."""
    without_upper_layer(folder)
    path = folder / "manifest.json"
    listed = json.loads(path.read_text())
    listed["files"]["adapter_model.safetensors"] = sha256_of(folder / "adapter_model.safetensors")
    path.write_text(json.dumps(listed))
    return folder


def cut(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "adapter_model.bin").write_bytes(pickle.dumps({})), "adapter_model.bin may not be"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(pickle.dumps({})), "adapter_model.safetensors may not be"),
        (lambda f: (f / "more.json").symlink_to("/etc/hostname"), "more.json may not be"),
        (cut, "not as it was registered: adapter_model.safetensors"),
        (without_upper_layer, "not as it was registered: adapter_model.safetensors"),
        (forged, "the manifest is not the one"),
        (lambda f: (f / "probes.json").write_text("[]"), "not as it was registered: probes.json"),
        (lambda f: (f / "render.json").unlink(), "render.json missing"),
        (lambda f: (f / "manifest.json").write_text("[]"), "no readable manifest"),
        (shutil.rmtree, "there is no student"),
    ],
)  # fmt: skip
def test_what_was_changed_is_refused(own: Path, family: Family, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(own)
    with pytest.raises(PermanentError, match=reason):
        read_student(own.parent, own.name, [family.base])


@pytest.mark.parametrize("name", ["", ".", "..", "../student-2-x", "/etc", "a/b"])
def test_a_path_outside_is_refused(own: Path, family: Family, name: str) -> None:
    with pytest.raises(PermanentError, match="does not lie in the folder of students"):
        read_student(own.parent, name, [family.base])


def test_a_link_to_outside_is_refused(own: Path, family: Family, tmp_path: Path) -> None:
    moved = own.rename(tmp_path / own.name)
    own.symlink_to(moved)
    with pytest.raises(PermanentError, match="does not lie in the folder of students"):
        read_student(own.parent, own.name, [family.base])


def test_a_students_name_is_held_to_its_manifest(own: Path) -> None:
    assert own.name.endswith(manifest_hash8((own / "manifest.json").read_bytes()))
    assert verify(own).files == load_manifest(own).files == registry.verify(own).files


def test_the_base_model_is_known_by_its_identity(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, candidate = tmp_path / "models", copy_of(family.folder(family.child), tmp_path / "candidate")
    base, other = tiny(cache / "tiny", 1), tiny(tmp_path / "other", 2)
    (candidate / "manifest.json").unlink()
    own = registry.register(tmp_path / "students", candidate, manifest(base_model="tiny", base_sha256=model_id(base)))
    with pytest.raises(PermanentError, match="its tokenizer is needed"):
        read_student(own.parent, own.name, [tmp_path])
    with pytest.raises(PermanentError, match="not the base model that"):
        read_student(own.parent, own.name, [other])
    assert read_student(own.parent, own.name, [other, base]).card.name == own.name
    monkeypatch.setenv("STILLHOUSE_MODELS", str(cache))
    assert read_student(own.parent, own.name, []).card.name == own.name
