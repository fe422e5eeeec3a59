"""The compatibility gate: what may change between releases, and that what may not is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.codec_schemas import FOLDER, NAMES, parse, version_key
from stillhouse.schemas.compat import check, main, violations
from stillhouse.schemas.errors import GateError
from tests.schemas.samples import GOLDEN

Json = dict[str, Any]


def released(name: str) -> Json:
    schema: Json = json.loads((FOLDER / name / "1.0.0.avsc").read_text())
    return schema


def field(schema: Json, path: str) -> Json:
    """A field by dotted path; records inside a union are found by name."""
    here: Any = schema
    for part in path.split("."):
        options = here["type"] if isinstance(here.get("type"), list) else [here]
        here = next((o for o in options if isinstance(o, dict) and o.get("name") == part), None) or next(
            f for o in options if isinstance(o, dict) for f in o.get("fields", ()) if f["name"] == part
        )
    found: Json = here
    return found


def change(name: str, edit: Callable[[Json], object], version: str = "1.0.1") -> list[str]:
    """What the gate says about the released schema and an edited one."""
    newer = released(name)
    edit(newer)
    return violations((parse(released(name), "1.0.0"), parse(newer, version)))


def test_what_is_released_fits_together() -> None:
    assert set(check()) == set(NAMES)
    assert main([]) == 0


def test_the_gate_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "stillhouse.schemas.compat"], capture_output=True, text=True, check=True)
    assert "AgentEvent: 1.0.0" in done.stdout


def add(schema: Json, **new: Any) -> None:
    schema["fields"].append(new)


def drop(schema: Json, name: str) -> None:
    schema["fields"] = [f for f in schema["fields"] if f["name"] != name]


ALLOWED: dict[str, tuple[str, Callable[[Json], object]]] = {
    "a field with a default": ("AgentEvent", lambda s: add(s, name="region", type="string", default="")),
    "a nullable record with a default": (
        "Erasure",
        lambda s: add(
            s, name="by", type=["null", {"type": "record", "name": "By", "fields": [{"name": "x", "type": "int"}]}], default=None
        ),
    ),
    "a field of a body": ("AgentEvent", lambda s: add(field(s, "body.StepTaken"), name="tries", type="long", default=1)),
    "an enum symbol": ("AgentEvent", lambda s: field(s, "policy_role")["type"]["symbols"].append("swarm")),
    "the removal of a field with a default": ("AgentEvent", lambda s: drop(s, "agent")),
    "docs": ("Erasure", lambda s: s.update(doc="Other words.")),
}

REFUSED: dict[str, tuple[str, Callable[[Json], object], str]] = {
    "a field without a default": ("Erasure", lambda s: add(s, name="by", type="string"), "Erasure.by: added without a default"),
    "the removal of a required field": ("Erasure", lambda s: drop(s, "subject"), "Erasure.subject: removed, and was without a default"),
    "a rename": ("Erasure", lambda s: field(s, "subject").update(name="person"), "Erasure.person: added without a default"),
    "another type": ("Watermark", lambda s: field(s, "worker").update(type="long"), "Watermark.worker: string cannot be read as long"),
    "a narrower number": ("Watermark", lambda s: field(s, "position").update(type="int"), "Watermark.position: long cannot be read as int"),
    "a wider number": ("Watermark", lambda s: field(s, "position").update(type="double"), "double cannot be read as long"),
    "bytes for a string": ("Watermark", lambda s: field(s, "worker").update(type="bytes"), "string cannot be read as bytes"),
    "null no longer allowed": ("TeacherTask", lambda s: field(s, "step").update(type="long", default=0), "the branch null has none"),
    "null newly allowed": ("Erasure", lambda s: field(s, "reason").update(type=["string", "null"]), "the branch null has none"),
    "a symbol gone": ("StudentState", lambda s: field(s, "stage")["type"]["symbols"].remove("canary"), "the symbols canary were released"),
    "an enum without a default": (
        "StudentState",
        lambda s: field(s, "stage")["type"].pop("default"),
        "the enum stillhouse.StudentStage has no default",
    ),
    "a body gone": ("AgentEvent", lambda s: field(s, "body")["type"].pop(), "the branch stillhouse.ClientReport has none"),
    "a body renamed": ("AgentEvent", lambda s: field(s, "body.ClientReport").update(name="Report"), "the branch stillhouse.ClientReport"),
    "a break deep inside": (
        "TrajectoryFacts",
        lambda s: add(field(s, "scores")["type"], name="luck", type="double"),
        "TrajectoryFacts.scores.luck: added without a default",
    ),
    "a break inside an array": (
        "TrajectoryFacts",
        lambda s: add(field(s, "policies")["type"]["items"], name="seed", type="long"),
        "TrajectoryFacts.policies[].seed: added without a default",
    ),
    "a record renamed": ("Erasure", lambda s: s.update(name="Forget"), "is called"),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_additions_are_allowed(what: str) -> None:
    name, edit = ALLOWED[what]
    assert change(name, edit) == []


@pytest.mark.parametrize("what", REFUSED)
def test_breaking_changes_are_refused(what: str) -> None:
    name, edit, said = REFUSED[what]
    assert any(said in sentence for sentence in change(name, edit)), change(name, edit)


def test_a_new_body_is_a_minor_release() -> None:
    def pause(schema: Json) -> None:
        field(schema, "body")["type"].append({"type": "record", "name": "Paused", "fields": [{"name": "why", "type": "string"}]})

    assert change("AgentEvent", pause, "1.1.0") == []
    assert "the branch stillhouse.Paused has none" in change("AgentEvent", pause, "1.0.1")[0]


def test_compatibility_is_transitive_and_versions_sort_as_numbers() -> None:
    """A field added with a default, then left out again with another type, breaks the first against the third only."""
    first, second, third = released("Erasure"), released("Erasure"), released("Erasure")
    add(first, name="note", type="string", default="")
    add(third, name="note", type="long", default=0)
    versions = [parse(s, v) for s, v in ((first, "1.2.0"), (second, "1.9.0"), (third, "1.10.0"))]
    assert violations((versions[0], versions[1])) == violations((versions[1], versions[2])) == []
    assert "Erasure 1.2.0 read by 1.10.0" in violations(tuple(versions))[0]
    assert version_key("1.10.0") > version_key("1.9.0")


def test_a_breaking_release_stops_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.0.0.avsc").write_text(json.dumps(released(name)))
    broken = released("Watermark")
    drop(broken, "worker")
    (tmp_path / "Watermark" / "1.0.1.avsc").write_text(json.dumps(broken))
    with pytest.raises(GateError, match=r"Watermark 1\.0\.1 read by 1\.0\.0: Watermark\.worker"):
        check(tmp_path)
    assert main([str(tmp_path)]) == 4
    assert "docs/events.md" in capsys.readouterr().err
    (tmp_path / "Watermark" / "1.0.1.avsc").write_text("{}")
    assert main([str(tmp_path)]) == 1


def test_golden_bytes_do_not_read_through_a_breaking_schema() -> None:
    """The rule and the bytes agree: what the gate refuses is really misread or unreadable."""
    from io import BytesIO

    import fastavro

    newer = released("Watermark")
    field(newer, "worker").update(type="long")
    data = BytesIO((GOLDEN / "Watermark-1.0.0.bin").read_bytes()[10:])
    with pytest.raises(fastavro.read.SchemaResolutionError):
        fastavro.schemaless_reader(data, parse(released("Watermark")).parsed, parse(newer).parsed)
