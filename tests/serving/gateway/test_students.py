"""Students behind a route: who answers, what is held back, what falls back to the teacher within the request, and what is remembered."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

from stillhouse.schemas.assign import assign
from stillhouse.schemas.events import FeedbackGiven, Outcome, PolicyRole, StepTaken, TrajectoryStarted
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.fold import fold
from stillhouse.schemas.route_state import RouteState
from stillhouse.serving.gateway.assignment import shares_of
from stillhouse.serving.gateway.backend import Call, ContextFullError, EngineError, OnText, Reply, Verdict
from stillhouse.serving.gateway.keys import FILE, add_key, remove_keys
from tests.serving.gateway.world import (
    ASK,
    CALL,
    DONE,
    Desk,
    FakeEngine,
    Upstream,
    busy_teacher,
    canary,
    champion,
    failing,
    reply_of,
    running,
    say,
    settled,
)


async def crowned(desk: Desk, engine: FakeEngine) -> None:
    desk.serve(*champion())
    await settled(lambda: engine.ready("s-1"))


@pytest.fixture
async def held(tmp_path: Path, upstream: Upstream, engine: FakeEngine) -> Any:
    async with running(tmp_path, upstream, engine, holdback="0.0") as desk:
        await crowned(desk, engine)
        yield desk


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_champion_answers_the_stock_client(held: Desk, engine: FakeEngine, streamed: bool) -> None:
    engine.answer = say("By the student.", "By the ", "student.")
    client: Any  # its types know no messages of plain dicts
    async with openai.AsyncOpenAI(base_url=f"{held.url}/v1", api_key="any") as client:
        if streamed:
            parts = [p async for p in await client.chat.completions.create(model="desk", messages=ASK, stream=True)]
            text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        else:
            text = (await client.chat.completions.create(model="desk", messages=ASK)).choices[0].message.content
    assert text == "By the student." and held.upstream.requests == []
    (step,) = held.events.bodies(StepTaken)
    event = held.events.events[-1]
    assert event.policy.role is PolicyRole.STUDENT and event.policy.model == "s-1"
    assert event.assignment is not None and event.assignment.arm == "champion"
    assert (step.usage.input_tokens, step.usage.output_tokens) == (30, 5) and step.cost_micro_usd > 0


async def test_a_call_streams_whole(held: Desk, engine: FakeEngine) -> None:
    async def call(student: str, call: Call, on_text: OnText | None) -> Reply:
        return reply_of({"content": None, "tool_calls": [CALL]})

    engine.answer = call
    client: Any
    async with (
        openai.AsyncOpenAI(base_url=f"{held.url}/v1", api_key="any") as client,
        client.chat.completions.stream(model="desk", messages=ASK) as events,
    ):
        whole = await events.get_final_completion()
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"order": 7}'
    assert whole.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (failing(EngineError("away", reason="away")), "away"),
        (failing(ContextFullError("full")), "context_full"),
        (failing(TimeoutError()), "timeout"),
    ],
)
async def test_a_failing_student_is_replaced_within_the_request(
    held: Desk, engine: FakeEngine, answer: Any, reason: str, streamed: bool
) -> None:
    engine.answer = answer
    status, body, headers = await held.chat(stream=streamed)
    assert status == 200 and headers["x-stillhouse-variant"] == "teacher" and headers["x-stillhouse-fallback"] == reason
    assert body.endswith(DONE) if streamed else body["choices"][0]["message"]["content"] == "It is on its way (2)."
    failed, answered = held.events.bodies(StepTaken)
    assert failed.error == reason and answered.error is None and failed.index == answered.index == 0


async def test_a_malformed_action_is_the_students_failure_in_the_students_arm(held: Desk, engine: FakeEngine) -> None:
    async def malformed(student: str, call: Call, on_text: OnText | None) -> Reply:
        return reply_of({"content": '{"find": '}, "unclosed object")

    engine.answer = malformed
    _, _, headers = await held.chat()
    assert headers["x-stillhouse-fallback"] == "format"
    _, failed, answered = held.events.events
    wrong: Any = failed.body
    assert failed.policy.role is PolicyRole.STUDENT and wrong.action.content == '{"find": ' and "unclosed" in wrong.error
    row = fold(held.events.events)
    (step,) = row.steps
    assert step.policy.role is PolicyRole.TEACHER and row.superseded == 1
    assert row.assignment is not None and row.assignment.arm == "champion"
    assert step.cost_micro_usd == wrong.cost_micro_usd + 100 * 2 + 20 * 8
    lines = (await held.show("/v1/routes"))["routes"]["desk"]["ledger"]
    assert sum(line["cost_micro_usd"] for line in lines) == step.cost_micro_usd
    assert answered.occurred_at > failed.occurred_at


async def test_a_student_that_breaks_off_after_its_text_began_is_an_error_event(held: Desk, engine: FakeEngine) -> None:
    async def broken(student: str, call: Call, on_text: OnText | None) -> Reply:
        assert on_text is not None
        await on_text("It is ")
        raise EngineError("gone", reason="away")

    engine.answer = broken
    _, body, _ = await held.chat(stream=True)
    assert b"It is " in body and b"student_broke_off" in body and DONE not in body and held.upstream.requests == []


async def test_both_fail(held: Desk, engine: FakeEngine) -> None:
    engine.answer, held.upstream.behave = failing(EngineError("away", reason="away")), busy_teacher
    status, body, _ = await held.chat()
    assert status == 503 and body["error"]["code"] == "upstream_error"
    assert [step.error for step in held.events.bodies(StepTaken)] == ["away", "HTTP 503"]


@pytest.mark.parametrize("extra", [{"n": 2}, {"tool_choice": "required"}, {"response_format": {"type": "json_object"}}, {"logprobs": True}])
async def test_what_a_student_cannot_do_is_the_teachers(held: Desk, engine: FakeEngine, extra: Any) -> None:
    _, _, headers = await held.chat(extra=extra)
    assert headers["x-stillhouse-variant"] == "teacher" and headers["x-stillhouse-reason"] == "uncovered"


async def test_uncovered_and_unready_go_to_the_teacher_and_count_in_their_arm(held: Desk, engine: FakeEngine) -> None:
    engine.covered = False
    _, _, uncovered = await held.chat()
    engine.covered, engine.loaded = True, set()
    _, _, unready = await held.chat()
    assert (uncovered["x-stillhouse-reason"], unready["x-stillhouse-reason"]) == ("uncovered", "not_ready")
    assert {event.assignment.arm for event in held.events.events if event.assignment} == {"champion"}
    assert 'diverted_total{reason="uncovered",route="desk"} 1.0' in await held.show("/metrics")


async def test_a_refused_attestation_serves_nobody(tmp_path: Path, upstream: Upstream, engine: FakeEngine) -> None:
    engine.verdict = Verdict.REFUSED
    async with running(tmp_path, upstream, engine, holdback="0.0") as desk:
        desk.serve(*champion())
        await settled(lambda: bool(engine.loaded) and not desk.gateway.follower._moves)
        assert (await desk.chat())[2]["x-stillhouse-reason"] == "not_ready"


async def test_units_are_assigned_as_the_hash_says_and_the_same_through_a_ramp(desk: Desk, engine: FakeEngine) -> None:
    desk.serve(canary("s-1", 0.25))
    await settled(lambda: engine.ready("s-1"))
    arms: dict[str, str] = {}
    for n in range(40):
        await desk.chat(x_stillhouse_trajectory=f"t{n}")
    for event in desk.events.events:
        assert event.assignment is not None and event.assignment.experiment == "desk/s-1/0" and event.assignment.epoch == 0
        arms[event.assignment.unit] = event.assignment.arm
    state = RouteState(route="desk", canary="s-1", share=0.25, first=0)
    assert arms == {unit: str(assign(unit, state.experiment, shares_of(state, 0.02))) for unit in arms}
    assert set(Counter(arms.values())) == {"canary", "teacher"}
    # A stage change moves no open trajectory; its epoch stays that of its assignment.
    desk.serve(canary("s-1", 0.25), canary("s-1", 0.5, 0))
    before = len(desk.events.events)
    for n in range(40):
        await desk.chat([*ASK, {"role": "assistant", "content": "?"}, {"role": "user", "content": "!"}], x_stillhouse_trajectory=f"t{n}")
    later = {e.assignment.unit: (e.assignment.arm, e.assignment.epoch) for e in desk.events.events[before:] if e.assignment}
    assert later == {unit: (arm, 0) for unit, arm in arms.items()}


async def test_a_rollback_moves_open_trajectories_to_the_teacher(desk: Desk, engine: FakeEngine) -> None:
    desk.serve(canary("s-1", 0.97))
    await settled(lambda: engine.ready("s-1"))
    served = {f"t{n}": (await desk.chat(x_stillhouse_trajectory=f"t{n}"))[2]["x-stillhouse-variant"] for n in range(20)}
    mine = next(name for name, variant in served.items() if variant == "s-1")
    desk.serve(canary("s-1", 0.97), StudentState(student="s-1", stage=StudentStage.ROLLED_BACK, route="desk", prev=0))
    _, _, headers = await desk.chat(x_stillhouse_trajectory=mine)
    assert headers["x-stillhouse-variant"] == "teacher" and headers["x-stillhouse-reason"] == "taken_over"
    last = desk.events.events[-1].assignment
    assert last is not None and last.arm == "canary"
    await settled(lambda: not engine.loaded)


async def test_a_request_without_the_routes_unit_is_not_enrolled(tmp_path: Path, upstream: Upstream, engine: FakeEngine) -> None:
    async with running(tmp_path, upstream, engine, unit='"user"') as desk:
        desk.serve(canary("s-1", 0.5))
        _, _, headers = await desk.chat()
        assert headers["x-stillhouse-reason"] == "unenrolled" and desk.events.events[-1].assignment is None
        for _ in range(3):  # a user's trajectories are all in one arm
            await desk.chat(extra={"user": "ann/é"})
        found = {(e.assignment.unit, e.assignment.arm) for e in desk.events.events if e.assignment}
        assert len(found) == 1 and next(iter(found))[0] == "default/ann%2F%C3%A9"


async def test_a_conversation_is_found_again_by_its_prefix(desk: Desk) -> None:
    _, body, first = await desk.chat()
    following = [*ASK, body["choices"][0]["message"] | {"refusal": None}, {"role": "user", "content": "Thanks."}]
    _, _, second = await desk.chat(following)
    _, _, other = await desk.chat()
    assert first["x-stillhouse-trajectory"] == second["x-stillhouse-trajectory"] != other["x-stillhouse-trajectory"]
    assert len(desk.events.bodies(TrajectoryStarted)) == 2
    changed = [*ASK, {"role": "assistant", "content": "Another."}, {"role": "user", "content": "Thanks."}]
    assert (await desk.chat(changed))[2]["x-stillhouse-trajectory"] != first["x-stillhouse-trajectory"]


async def test_a_trajectory_may_not_spend_more_than_its_budget(tmp_path: Path, upstream: Upstream) -> None:
    async with running(tmp_path, upstream, max_cost_usd="0.0007") as desk:
        got = [(await desk.chat(x_stillhouse_trajectory="t"))[0] for _ in range(3)]
        assert got == [200, 200, 429]
        assert (await desk.chat(x_stillhouse_trajectory="u"))[0] == 200


async def test_outcomes(desk: Desk) -> None:
    _, _, headers = await desk.chat()
    run = headers["x-stillhouse-trajectory"]
    path = "/v1/stillhouse/outcomes"
    status, told, _ = await desk.post({"trajectory": run, "outcome": "failure", "reward": 0.0}, path)
    assert status == 201
    status, again, _ = await desk.post({"trajectory": run, "outcome": "success"}, path)
    assert (status, again["error"]["code"]) == (409, "outcome_exists") and told["id"] in again["error"]["message"]
    assert (await desk.post({"trajectory": run, "outcome": "success", "revises": told["id"]}, path))[0] == 201
    assert fold(desk.events.events).outcome is Outcome.SUCCESS and len(desk.events.bodies(FeedbackGiven)) == 2
    unknown = await desk.post({"trajectory": "nobody", "outcome": "success"}, path)
    assert (unknown[0], unknown[1]["error"]["code"]) == (404, "trajectory_not_found")
    for wrong in (b"{", {"trajectory": run, "outcome": "great"}, {"outcome": "success"}, {"trajectory": run, "what": 1}):
        assert (await desk.post(wrong, path))[0] == 400
    assert (await desk.post({"trajectory": run, "source": "user", "revises": "x"}, path))[0] == 404


async def test_keys_name_the_tenant(tmp_path: Path, upstream: Upstream) -> None:
    async with running(tmp_path, upstream, tenants='["acme"]') as desk:
        assert (await desk.chat())[0] == 404  # nobody is not acme
        keys, path = desk.gateway.desk.keys, tmp_path / "s" / "secrets" / FILE
        acme, other = add_key(path, "acme"), add_key(path, "other")
        keys._looked -= 10
        wrong = [(None, 401, "invalid_api_key"), ("Bearer sh-wrong", 401, "invalid_api_key"), (f"Bearer {other}", 404, "model_not_found")]
        for header, status, code in wrong:
            named: Any = {"Authorization": header} if header else {}
            got, body, _ = await desk.chat(**named)
            assert (got, body["error"]["code"]) == (status, code)
        status, _, headers = await desk.chat(Authorization=f"Bearer {acme}")
        assert status == 200 and desk.events.events[-1].key == f"acme/{headers['x-stillhouse-trajectory']}"
        assert "Authorization" not in upstream.headers[-1] and acme not in path.read_text()
        # Another tenant's id of a trajectory is another trajectory.
        assert (
            await desk.post({"trajectory": headers["x-stillhouse-trajectory"]}, "/v1/stillhouse/outcomes", Authorization=f"Bearer {other}")
        )[0] == 404
        assert remove_keys(path, "acme") == 1
        keys._looked -= 10
        assert (await desk.chat(Authorization=f"Bearer {acme}"))[0] == 401
        path.write_text("{")
        keys._looked -= 10
        assert (await desk.chat(Authorization=f"Bearer {other}"))[0] == 404  # the keys of before


async def test_the_list_of_models_and_admin(held: Desk) -> None:
    async with held.session.get(held.url + "/v1/models") as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["desk"]
    await held.chat()
    route = (await held.show("/v1/routes"))["routes"]["desk"]
    assert route["champion"] == "s-1" and route["ready"] == {"s-1": True}
    assert route["arms"] == [{"experiment": "desk", "arm": "champion", "epoch": 0, "trajectories": 1}]
    assert (await held.show("/healthz"))["ok"] and (await held.show("/readyz"))["ok"]
    assert json.dumps(route)
