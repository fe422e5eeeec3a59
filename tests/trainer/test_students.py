"""A student's folder appears whole under a name that is never used again, and any change to it is seen."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.render import RenderSpec
from stillhouse.trainer import students
from stillhouse.trainer.probes import Probe, save_probes
from tests.trainer.training_factory import manifest


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return make_candidate(tmp_path / "candidate", 1.0)


def make_candidate(folder: Path, value: float) -> Path:
    folder.mkdir()
    save_file({"lora_A": torch.full((2, 2), value)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}))
    RenderSpec(grammar="bare-json").save(folder / "render.json")
    save_probes(folder, [Probe(ids=(1, 2), student=(-0.1,), base=(-2.0,))])
    return folder


def test_a_registered_student_has_everything_and_verifies(candidate: Path, tmp_path: Path) -> None:
    folder = students.register(tmp_path / "students", candidate, manifest(window="w1", parent="student-0-00000000"))
    assert folder.name.startswith("student-1-")
    student = students.load(folder)
    assert (student.manifest.name, student.manifest.window) == (folder.name, "w1")
    assert set(student.manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "probes.json", "render.json"}
    assert student.render.grammar == "bare-json"
    assert student.probes[0].separation == pytest.approx(1.9)
    assert len(students.manifest_sha256(folder)) == 64
    assert candidate.exists()


def test_names_count_up_and_are_never_given_twice(candidate: Path, tmp_path: Path) -> None:
    root = tmp_path / "students"
    first = students.register(root, candidate, manifest())
    second = students.register(root, candidate, manifest())
    shutil.rmtree(first)
    shutil.rmtree(second)
    third = students.register(root, candidate, manifest())
    assert [p.name.split("-")[1] for p in (first, second, third)] == ["1", "2", "3"]
    assert [m.name for m in students.list_students(root)] == [third.name]


def test_the_list_is_by_number_not_by_letter(candidate: Path, tmp_path: Path) -> None:
    root = tmp_path / "students"
    names = [students.register(root, candidate, manifest(window=str(i))).name for i in range(11)]
    assert [m.name for m in students.list_students(root)] == names
    assert students.list_students(tmp_path / "absent") == ()


def test_another_manifest_is_another_hash(tmp_path: Path) -> None:
    one, two = make_candidate(tmp_path / "a", 1.0), make_candidate(tmp_path / "b", 2.0)
    names = [
        students.register(tmp_path / f"s{i}", c, manifest(seed=seed)).name
        for i, (c, seed) in enumerate([(one, 1), (two, 1), (one, 2), (one, 1)])
    ]
    assert len(set(names)) == 3
    assert names[0] == names[3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: (f / "render.json").write_text((f / "render.json").read_text() + " "), "not as it was registered: render.json"),
        (lambda f: (f / "more.json").write_text("{}"), "not as it was registered: more.json"),
        (lambda f: (f / "probes.json").unlink(), "probes.json missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json may not be"),
        (lambda f: (f / "manifest.json").write_text("{}"), "no readable manifest"),
        (lambda f: (f / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin may not be"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(pickle.dumps({})), "adapter_model.safetensors may not be"),
        (lambda f: torch.save({}, f / "adapter_model.safetensors"), "adapter_model.safetensors may not be"),
        (lambda f: (f / "link.json").symlink_to(f / "render.json"), "link.json may not be"),
    ],
)  # fmt: skip
def test_any_change_is_seen(candidate: Path, tmp_path: Path, change: "object", reason: str) -> None:
    folder = students.register(tmp_path / "students", candidate, manifest())
    assert callable(change)
    change(folder)
    with pytest.raises(PermanentError, match=reason):
        students.verify(folder)


def test_a_renamed_folder_is_not_that_student(candidate: Path, tmp_path: Path) -> None:
    folder = students.register(tmp_path / "students", candidate, manifest())
    with pytest.raises(PermanentError, match="was renamed"):
        students.verify(folder.rename(folder.with_name("student-9-00000000")))


def test_an_incomplete_or_unsafe_candidate_leaves_nothing(candidate: Path, tmp_path: Path) -> None:
    root = tmp_path / "students"
    (candidate / "optimizer.pt").write_bytes(b"")
    with pytest.raises(PermanentError, match=r"optimizer\.pt may not be"):
        students.register(root, candidate, manifest())
    (candidate / "optimizer.pt").unlink()
    (candidate / "render.json").unlink()
    with pytest.raises(PermanentError, match=r"render\.json missing"):
        students.register(root, candidate, manifest())
    assert not root.exists()


def _register_and_die(root: Path, candidate: Path) -> None:
    import os
    import signal

    real = Path.rename

    def die(self: Path, target: Path) -> Path:
        if self.name.startswith(".partial-"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)

    Path.rename = die  # type: ignore[method-assign, assignment]
    students.register(root, candidate, manifest())


def test_a_registration_killed_before_its_rename_leaves_no_student(candidate: Path, tmp_path: Path) -> None:
    root = tmp_path / "students"
    process = multiprocessing.get_context("spawn").Process(target=_register_and_die, args=(root, candidate))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert students.list_students(root) == ()
    assert list(root.glob(".partial-*"))
    folder = students.register(root, candidate, manifest())
    assert folder.name.startswith("student-2-")  # the name that was taken stays taken
    assert not list(root.glob(".partial-*"))
    students.verify(folder)
