"""One event that cannot be made, redacted or encoded is that event's loss alone: its neighbours are sent and nobody waits for it."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.events import AgentEvent, ClientReport, FeedbackGiven, StepTaken, TrajectoryEnded
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.sdk import Client, KafkaSettings, RedactionError, Redactor, Refusal
from tests.support.agents import arrived

HUGE = 10**400  # a number in JSON that no float holds


def nested(depth: int) -> dict[str, Any]:
    """Arguments of so many levels, with a word in them that some rule looks for."""
    value: dict[str, Any] = {"password": "none"}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("odd", ["deep", "reward", "tokens", "cost", "feedback"])
def test_an_odd_event_is_counted_and_its_neighbours_are_sent(odd: str, embedded_kafka: KafkaSettings, spool: Path) -> None:
    client = Client(settings=embedded_kafka, spool=spool)
    before = [client.feedback("r", reward=n) for n in range(15)]
    t = client.trajectory(trajectory_id="odd")
    if odd == "deep":
        t.step(ToolCall(id="c", name="n", arguments=nested(450)))
    elif odd == "tokens":
        t.step("x", usage={"prompt_tokens": HUGE})
    elif odd == "cost":
        t.step("x", cost_micro_usd=2**70)
    elif odd == "feedback":
        client.feedback("r", step=HUGE)
    else:
        t.end(reward=HUGE)
    after = [client.feedback("r", reward=n) for n in range(15)]
    assert client.flush(20) == 0
    why = Refusal.REDACTION_FAILED if odd == "deep" else Refusal.BAD_INPUT
    report = client.close(20)
    assert (report.left, report.rejected) == (0, {why: 1}) and client._thread is not None and not client._thread.is_alive()
    events = arrived(embedded_kafka)
    assert {e.event_id for e in events if isinstance(e.body, FeedbackGiven)} == {*before, *after}
    assert [e.body for e in events if isinstance(e.body, ClientReport)] == [ClientReport(dropped={why: 1})]
    assert not [e for e in events if isinstance(e.body, StepTaken | TrajectoryEnded)]


def test_an_error_that_nobody_foresaw_is_counted_and_the_next_event_is_sent(
    embedded_kafka: KafkaSettings, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = Redactor.redact

    def broken(self: Redactor, event: AgentEvent) -> Any:
        if isinstance(event.body, FeedbackGiven) and event.body.label == "odd":
            raise RuntimeError("the secret is hunter2")
        return good(self, event)

    monkeypatch.setattr(Redactor, "redact", broken)
    client = Client(settings=embedded_kafka, spool=spool)
    sent = [client.feedback("r", label=label) for label in ("a", "odd", "b", "odd", "c")]
    assert client.flush(20) == 0
    assert client.close(20).rejected == {Refusal.INTERNAL: 2}
    given = {e.event_id for e in arrived(embedded_kafka) if isinstance(e.body, FeedbackGiven)}
    assert given == {sent[0], sent[2], sent[4]}
    assert "hunter2" not in caplog.text


def test_what_is_nested_too_deep_to_be_searched_is_a_redaction_error() -> None:
    action = Message(role="assistant", tool_calls=(ToolCall(id="c", name="n", arguments=nested(450)),))
    event = AgentEvent(event_id="e", tenant="t", trajectory_id="r", occurred_at=1, body=StepTaken(action=action))
    with pytest.raises(RedactionError, match="deep"):
        Redactor().redact(event)
