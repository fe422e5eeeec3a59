"""Shadow: which steps are asked, how an answer is judged, what is reported, and the command on a tiny model."""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.console import cli
from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError
from stillhouse.schemas.events import Outcome
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.render import RenderSpec, coverage_hash
from stillhouse.schemas.trajectory import Status
from stillhouse.sdk.store import Store
from stillhouse.trainer import models, shadow
from stillhouse.trainer.decisions import Erasures
from stillhouse.trainer.shadow_score import (
    Fallback,
    Point,
    Reply,
    Score,
    by_family,
    covered,
    figures,
    judge,
    points,
    sample,
    timed_out,
    unasked,
)
from stillhouse.trainer.students import manifest_sha256
from tests.support.cli import stillhouse
from tests.trainer.curation_factory import STUDENT, TOOLS, call, reply, run
from tests.trainer.window_factory import put, trajectory

CALL = Message(role="assistant", tool_calls=(ToolCall(id="a", name="cancel", arguments={"id": "41"}),))


def point(name: str = "r", **changes: Any) -> Point:
    return points(run(call("cancel", {"ok": True}, id="41"), reply("Done."), name=name, **changes))[0]


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


def test_the_state_is_what_the_teacher_answered_without_its_earlier_thoughts() -> None:
    made = run(
        call("find", {"id": "41"}, reasoning="look first", email="a"), call("cancel", {"ok": 1}, id="41", policy=STUDENT), reply("Done.")
    )
    first, last = points(made)
    assert [m.role for m in first.state] == ["system", "user"] and first.answer == made.steps[0].action
    assert [m.role for m in last.state] == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert (last.step, last.answer.content) == (2, "Done.")  # the student's own step is context, and never asked
    assert all(m.reasoning is None for m in last.state)


@pytest.mark.parametrize("changes", [{"headless": True}, {"status": Status.INCOMPLETE}])
def test_a_run_whose_states_are_not_known_is_not_asked(changes: dict[str, Any]) -> None:
    assert points(run(reply("Done."), **changes)) == []


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 3), st.randoms())
def test_a_sample_is_the_same_in_any_order_and_takes_a_second_step_only_when_it_must(
    n: int, steps: int, seed: int, rng: random.Random
) -> None:
    found = {str(i): [point()._replace(key=str(i), step=s) for s in range(1 + i % 3)] for i in range(n)}
    drawn = sample(found, steps, seed)
    shuffled = list(found.items())
    rng.shuffle(shuffled)
    assert sample(dict(shuffled), steps, seed) == drawn
    assert len(drawn) == len({(p.key, p.step) for p in drawn}) == min(steps, sum(map(len, found.values())))
    assert len({p.key for p in drawn}) == min(steps, n)
    assert sample(found, steps + 1, seed)[: len(drawn)] == drawn


def test_a_new_run_takes_no_place_but_its_own() -> None:
    found = {str(i): [point()._replace(key=str(i))] for i in range(30)}
    before, after = sample(found, 10, 1), sample({**found, "new": [point()._replace(key="new")]}, 10, 1)
    assert [p for p in after if p.key != "new"] == before[: len(after) - any(p.key == "new" for p in after)]
    assert sample(found, 10, 2) != before


@pytest.mark.parametrize(
    ("answer", "agrees", "same_tool"),
    [
        (CALL, True, True),
        (msgspec.structs.replace(CALL, content="I cancel it."), True, True),
        (Message(role="assistant", tool_calls=(ToolCall(id="z", name="cancel", arguments={"id": 41}),)), False, True),
        (Message(role="assistant", tool_calls=(ToolCall(id="z", name="refund", arguments={"id": "41"}),)), False, False),
        (Message(role="assistant", tool_calls=(*CALL.tool_calls, *CALL.tool_calls)), False, False),
        (Message(role="assistant", tool_calls=(ToolCall(id="z", name="cancel", raw_arguments='{"id": "41'),)), False, True),
        (said("Done."), False, False),
    ],
)
def test_an_answer_agrees_when_it_does_the_same(answer: Message, agrees: bool, same_tool: bool) -> None:
    found = judge(point(), Reply(answer, False, False), 0.1)
    assert (found.agrees, found.same_tool, found.fallback) == (agrees, same_tool, None)


def test_a_reply_agrees_word_for_word_however_spaced() -> None:
    asked = points(run(reply("Order 41  is\ncancelled.")))[0]
    assert judge(asked, Reply(said("Order 41 is cancelled. "), False, False), 0.1).agrees
    assert not judge(asked, Reply(said("Order 42 is cancelled."), False, False), 0.1).agrees


def test_what_the_gateway_would_not_use_agrees_with_nothing() -> None:
    asked = point()
    malformed, full = judge(asked, Reply(CALL, True, False), 0.1), judge(asked, Reply(CALL, True, True), 0.1)
    assert (malformed.fallback, malformed.agrees) == (Fallback.FORMAT, False)
    assert (full.fallback, full.agrees) == (Fallback.CONTEXT_FULL, False)


def test_a_step_is_covered_by_the_prompt_and_tools_of_its_run() -> None:
    spec = RenderSpec(distilled_on=(coverage_hash("Desk.", TOOLS),))
    assert covered(point(), spec)
    assert not covered(point(tools=TOOLS[:1]), spec) and not covered(point(system_prompt="Other."), spec)
    picture = Message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}])
    assert not covered(point()._replace(state=(picture,)), spec)


def score(unit: str, **changes: Any) -> Score:
    fields: dict[str, Any] = {"key": unit, "step": 0, "unit": unit, "family": "a", "succeeded": True, "calls": True, "asked": True}
    return Score(**(fields | {"agrees": True, "same_tool": True, "latency_s": 1.0} | changes))


def test_rates_have_the_task_as_their_unit_and_each_its_own_base() -> None:
    scores = [score("t1"), score("t1", agrees=False, step=1), score("t2", latency_s=3.0), unasked(point(), Fallback.UNCOVERED)]
    found = figures(scores)
    assert (found.steps, found.asked, found.reasons) == (4, 3, {"uncovered": 1})
    assert (found.agreement.k, found.agreement.n) == (1.5, 2) and found.fallbacks.n == 3 and found.fallbacks.k == 1
    assert found.agreement.interval.low < 0.75 < found.agreement.interval.high
    assert (found.latency_median_s, found.latency_p95_s) == (1.0, 3.0)
    assert found.replies.value is None and found.replies.n == 0


def test_a_report_by_family_adds_up() -> None:
    scores = [score(f"t{i}", family="ab"[i % 2], agrees=i % 3 == 0) for i in range(20)]
    found = by_family(scores)
    assert sum(f.steps for f in found.values()) == 20
    assert sum(f.agreement.k for f in found.values()) == figures(scores).agreement.k


def row(key: str, task: str | None = None, role: str = "teacher", **changes: Any) -> dict[str, Any]:
    return {
        "key": key,
        "content": key,
        "tenant": "t",
        "subject": None,
        "family": "a",
        "task_id": task,
        "policies": [{"role": role}],
    } | changes


def test_only_what_the_student_has_not_seen_is_asked() -> None:
    rows = [
        row("seen", "1"), row("again", "1"), row("other family", "1", family="b"), row("fresh", "2"), row("nameless"),
        row("gone", "3", content=ERASED), row("leaving", "4", subject="ann"), row("own", "5", role="student"),
    ]  # fmt: skip
    keys, out = shadow.choose(rows, {"seen"}, Erasures(subjects=frozenset({("t", "ann")})))
    assert keys == ["other family", "fresh", "nameless"]
    assert out == shadow.LeftOut(seen=1, same_task=1, erased=2, no_teacher=1)


SETTINGS = """
[trainer]
grammar = "bare-json"
tools = "drop"
learning_rate = 0.02
probe_candidates = 3
threads = 1
context_limit = 200

[window]
stratum_floor = 1000

[routes.desk]
teacher_url = "http://127.0.0.1:9/v1"
teacher_model = "big"
lineage = "default"
replica_usd_per_hour = 3.6
"""


def later(numbers: Sequence[int], **more: Any) -> list[Any]:
    return [trajectory(i, **more) for i in numbers]


@pytest.fixture
def wire() -> Iterator[str]:
    """A server that is overloaded at /busy, refuses /bad, and answers /slow only once the test is over."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            code = {"/busy": 503, "/bad": 400}.get(self.path)
            if code:
                self.send_error(code, "why")
            else:
                over.wait(60)

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        over.set()
        server.shutdown()
        thread.join()


def test_a_late_answer_is_a_fallback_and_trouble_of_the_server_is_none(wire: str) -> None:
    with pytest.raises(TimeoutError):
        shadow.post(f"{wire}/slow", {}, 0.1)
    with pytest.raises(RetryableError, match="503"):
        shadow.post(f"{wire}/busy", {}, 60)
    with pytest.raises(PermanentError, match="400"):
        shadow.post(f"{wire}/bad", {}, 60)
    with pytest.raises(UnreachableError):
        shadow.post("http://127.0.0.1:1", {}, 60)
    late = timed_out(point(), 0.1)
    assert (late.asked, late.fallback, late.agrees) == (True, Fallback.TIMEOUT, False)


@pytest.mark.model
def test_the_command_asks_a_trained_student_at_steps_that_came_after_its_window(tmp_path: Path) -> None:
    base, store, settings = models.tiny(tmp_path / "tiny", 1), Store.open(tmp_path / "lance"), tmp_path / "stillhouse.toml"
    settings.write_text(SETTINGS)
    put(store, later(range(24)), 100)
    options = ("--config", settings, "--json")
    ran = stillhouse("windows", "run", *options, "--model", base, "--max-steps", "2", state=tmp_path)
    assert ran.code == 0, ran.err
    name = ran.json["student"]
    first = json.loads((tmp_path / "run" / "shadow" / f"{name}.json").read_bytes())  # its route is there: the window itself asked it
    assert first["student"] == name and first["scores"] and first["settings"]["steps"] == 50
    trained = {key for key, _ in store.rows("windows")[0]["data"]["curated"]["trained"].items()}
    # New tasks, a repeat of an old one, one with another system prompt, one that does not fit, and a run that failed.
    put(store, [*later(range(50, 56)), *later([0], name="again"), *later([60], system_prompt="Other.")], 900)
    put(store, [*later([61], ask="Cancel order 161 " + "please " * 300), *later([62], outcome=Outcome.FAILURE)], 1200)

    done = stillhouse("students", "shadow", name, "--steps", "40", "--answer-tokens", "8", *options, state=tmp_path)
    assert done.code == 0, done.err
    report = done.json
    asked = {s["key"] for s in report["scores"]}
    assert asked and not asked & trained and not any("again" in key for key in asked)
    assert report["left_out"]["seen"] >= len(trained) and report["left_out"]["same_task"] >= 1
    assert report["all"]["reasons"]["uncovered"] == 2 and report["all"]["reasons"]["context_full"] >= 2
    assert report["all"]["asked"] + 4 <= report["all"]["steps"] == len(report["scores"])
    assert set(report["families"]) == {"a", "b"} and report["marginal"]["basis"].startswith("the server's busy")
    assert report["marginal"]["usd_per_step"] == pytest.approx(report["marginal"]["seconds_per_step"] / 1000)
    assert json.loads((tmp_path / "run" / "shadow" / f"{name}.json").read_bytes()) == report

    shown = stillhouse("students", "show", name, "--json", state=tmp_path).json
    assert shown["intact"].startswith("all files") and shown["shadow"]["agreement"] == pytest.approx(
        report["all"]["agreement"]["k"] / report["all"]["agreement"]["n"]
    )
    assert cli.run(("students", "shadow", "student-9-00000000", "--state", str(tmp_path))) == 2


def test_a_report_of_other_weights_is_not_shown(tmp_path: Path) -> None:
    folder = tmp_path / "students" / "student-1-0a1b2c3d"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert shadow.load(tmp_path, folder) is None
    made = shadow.ShadowReport(
        student=folder.name, manifest_sha256=manifest_sha256(folder), lineage="l", window="w", made_at=1,
        settings=shadow.ShadowSettings(), eligible=1, left_out=shadow.LeftOut(), all=figures([score("t")]), families={},
        marginal=shadow.Marginal(seconds_per_step=None, usd_per_step=None, basis=""), scores=(score("t"),),
    )  # fmt: skip
    shadow.save(made, tmp_path)
    assert shadow.load(tmp_path, folder) == made
    (folder / "manifest.json").write_text("{ }")
    assert shadow.load(tmp_path, folder) is None
