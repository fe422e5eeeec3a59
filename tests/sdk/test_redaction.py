"""Secrets out of every text, nothing else, and nothing at all when that cannot be done."""

import base64
import json
import logging
import string
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import (
    AgentEvent,
    Assignment,
    Body,
    ClientReport,
    FeedbackGiven,
    Policy,
    StepTaken,
    Task,
    TrajectoryEnded,
    TrajectoryStarted,
)
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.sdk import Client, RedactionError, Redactor, Refusal, Rule
from tests.support.agents import NO_BROKER

ALNUM = string.ascii_letters + string.digits


def letters(low: int, high: int | None = None, alphabet: str = ALNUM) -> st.SearchStrategy[str]:
    """Random text that holds a letter and a digit, as random keys of such lengths do."""
    return st.text(alphabet, min_size=low, max_size=high or low).filter(
        lambda s: any(c.isdigit() for c in s) and any(c.isalpha() for c in s)
    )


def made(template: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
    """A text with a secret in it, and the secret: what the last part gave."""
    return st.tuples(*parts).map(lambda values: (template.format(*values), values[-1]))


SECRETS: dict[str, st.SearchStrategy[tuple[str, str]]] = {
    "openai-key": made("{}", letters(20, 48).map("sk-proj-{}".format)),
    "anthropic-key": made("{}", letters(30, 90).map("sk-ant-api03-{}".format)),
    "stripe-key": made("{}", letters(24).map("sk_live_{}".format)),
    "aws-key": made("{}", st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16).map("AKIA{}".format)),
    "github-token": made("{}", letters(36).map("ghp_{}".format)) | made("{}", letters(60).map("github_pat_{}".format)),
    "gitlab-token": made("{}", letters(20).map("glpat-{}".format)),
    "slack-token": made("{}", letters(24).map("xoxb-{}".format)) | made("https://hooks.slack.com/services/{}", letters(30)),
    "google-key": made("{}", letters(35).map("AIza{}".format)) | made("{}", letters(40).map("ya29.{}".format)),
    "huggingface-token": made("{}", letters(34).map("hf_{}".format)),
    "jwt": made("{}", st.tuples(letters(20), letters(40), letters(43)).map(lambda t: f"eyJ{t[0]}.eyJ{t[1]}.{t[2]}")),
    "private-key": made("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", letters(64, 200)),
    "authorization": made("Authorization: Bearer {}", letters(8, 40)) | made('"authorization": "{}"', letters(8, 40)),
    "bearer": made("bearer {}", letters(16, 40)),
    "basic": made("Basic {}", letters(4, 12).map(lambda s: base64.b64encode(f"user:{s}".encode()).decode())),
    "url-password": made("postgres://user:{}@host/db", letters(6, 30)) | made("redis://:{}@10.0.0.1:6379", letters(6, 30)),
    "secret": made("api_key={}", letters(8, 40))
    | made("OPENAI_API_KEY='{}'", letters(8, 40))
    | made('{{"client_secret": "{}"}}', letters(8, 40))
    | made('{{\\"password\\": \\"{}\\"}}', letters(8, 40))
    | made("https://host/?x=1&access_token={}&y=2", letters(8, 40))
    | made("AccountKey={};EndpointSuffix=core", letters(20, 60)),
}
PLANTED = st.one_of(*SECRETS.values())

HARMLESS = [
    "d3b07384-d9a0-4c9b-8f5e-1a2b3c4d5e6f",
    "0190b5a2-7c3e-7f00-8a51-3c2b1a0f9e8d",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "order ORD-2024-000123456789, tracking 1Z999AA10123456784, IBAN DE89370400440532013000",
    "commit 4115d41f0c9e8b7a6d5c4b3a29181716151413ab",
    "4111 1111 1111 1111 and 12345678901234567890",
    "task-1234567890abcdefghijklmnop desk-0123456789abcdef0123",
    "the bearer of good news was a basic internationalization engineer",
    "max_tokens=100000 tokens: 1234567 input_tokens=200000 key=1234567 monkey: 123456",
    "https://example.com:8080/users/me@example.com?page=2",
    "password: please choose a new one. Secret: nobody knows",
    "api_key=os.environ['OPENAI_API_KEY'], password=get_password(user), secret=None",
    "the cat sat on the mat; sk-learn and scikit-learn-extra-package-with-long-name",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    '{"id": "call_abcDEF0123456789abcdefghij", "fingerprint": "fp_44709d6fcb"}',
    "chatcmpl-9Q8b7kQ2x5JtYv0aBcDeFgHiJkLmN",
]


def event(body: Body, **envelope: Any) -> AgentEvent:
    return AgentEvent(**{"event_id": "e", "tenant": "t", "trajectory_id": "r", "occurred_at": 1, **envelope}, body=body)


def step(text: str = "fine", **fields: Any) -> StepTaken:
    return StepTaken(**{"action": Message(role="assistant", content=text), **fields})


def everywhere(text: str) -> dict[str, AgentEvent]:
    """One event for each place of an event that holds text."""
    said = Message(role="user", content=text)
    deep = {"a": [{"b": ["x", {"c": text}]}]}
    call = ToolCall(id="c", name="f", arguments=deep)
    return {
        "task": event(TrajectoryStarted(task=Task(instruction=text))),
        "task id": event(TrajectoryStarted(task=Task(id=text, family=text))),
        "system prompt": event(TrajectoryStarted(system_prompt=text)),
        "tools": event(TrajectoryStarted(tools=({"function": {"description": text, "parameters": deep}},))),
        "environment": event(TrajectoryStarted(environment=text, subject=text, parent_trajectory=text)),
        "action": event(step(text)),
        "reasoning": event(step(action=Message(role="assistant", reasoning=text))),
        "arguments": event(step(action=Message(role="assistant", tool_calls=(call,)))),
        "keys": event(step(action=Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments={text: 1}),)))),
        "raw arguments": event(step(action=Message(role="assistant", tool_calls=(ToolCall(id=text, name=text, raw_arguments=text),)))),
        "extra": event(step(action=Message(role="assistant", extra={"x": deep}, name=text))),
        "parts": event(
            step(state=(Message(role="user", content=[{"type": "text", "text": text}, {"type": "image_url", "image_url": deep}]),))
        ),
        "state": event(step(state=(said, said))),
        "observation": event(step(observation=(Message(role="tool", content=text, tool_call_id=text),))),
        "error": event(step(error=text)),
        "logprobs": event(step(logprobs=json.dumps({"content": [{"token": text}]}))),
        "verifier": event(TrajectoryEnded(verifier=text)),
        "feedback": event(FeedbackGiven(label=text, source_version=text, revises=text)),
        "report": event(ClientReport(dropped={text: 1})),
        "agent": event(TrajectoryEnded(), agent=text, policy=Policy(model=text, version=text), traceparent=text),
        "assignment": event(TrajectoryEnded(), assignment=Assignment(route=text, unit=text, experiment=text, arm=text, epoch=1)),
    }


@pytest.mark.parametrize("rule", SECRETS)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), before=st.sampled_from(["", "see ", "“", "x=", "\n"]), after=st.sampled_from(["", " and", ".\n", '"', ")"]))
def test_each_kind_of_secret_is_found_by_its_rule(rule: str, data: st.DataObject, before: str, after: str) -> None:
    text, secret = data.draw(SECRETS[rule])
    clean = Redactor().text(f"{before}{text}{after}")
    assert secret not in clean
    assert "[redacted:" in clean
    # A full stop may be the last character of a secret.
    assert clean.startswith(before) and clean.endswith(after.lstrip("."))
    assert Redactor().text(clean) == clean, "what is redacted stays as it is"
    if before == "" and "Bearer" not in text:
        assert f"[redacted:{rule}]" in clean


@pytest.mark.parametrize("text", HARMLESS)
def test_what_merely_looks_long_is_left_alone(text: str) -> None:
    assert Redactor().text(text) == text
    for place, harmless in everywhere(text).items():
        assert Redactor().redact(harmless) == (harmless, Counter()), place


@settings(max_examples=200, deadline=None)
@given(st.uuids().map(str) | st.binary(min_size=20, max_size=32).map(bytes.hex) | st.integers(0, 10**30).map(str))
def test_ids_hashes_and_numbers_are_never_hit(text: str) -> None:
    assert Redactor().text(f"id {text}, key {text}") == f"id {text}, key {text}"


@settings(max_examples=150, deadline=None)
@given(planted=PLANTED, place=st.sampled_from(sorted(everywhere(""))), noise=st.text(max_size=40))
def test_a_secret_is_found_wherever_it_is_planted(planted: tuple[str, str], place: str, noise: str) -> None:
    text, secret = planted
    assume(secret not in noise)
    clean, found = Redactor().redact(everywhere(f"{noise} {text}")[place])
    assert secret not in repr(clean) and found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(planted=st.lists(PLANTED, min_size=1, max_size=4))
def test_no_planted_secret_reaches_the_spool_or_the_log(
    planted: list[tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    client = Client(NO_BROKER, spool=tmp_path / "spool")
    with caplog.at_level(logging.DEBUG):
        for text, _ in planted:
            for one in everywhere(text).values():
                client.emit(one)
            client.emit(msgspec.structs.replace(one, trajectory_id=text))
            t = client.trajectory(task=text, tools=[{"bad": text}], family=text)
            t.step(text, text, error=ValueError(text), state=[{"role": text}])
            t.step({"role": text, "content": text})
            t.end(outcome=text)
        client.close(0)
    assert client.stats.waiting and client.stats.redacted
    written = b"".join(file.read_bytes() for file in (tmp_path / "spool").rglob("*") if file.is_file())
    for _, secret in planted:
        assert secret.encode() not in written and secret not in caplog.text


@pytest.mark.parametrize("name", ["password", "db_password", "apiKey", "client-secret", "Authorization", "AWS_SECRET_ACCESS_KEY"])
def test_a_field_named_as_a_secret_is_one_whatever_it_holds(name: str) -> None:
    arguments = {name: "open sesame", "nested": [{name: ["a", 12345, None, True, ""]}], "other": "open sesame"}
    call = ToolCall(id="c", name="f", arguments=arguments)
    body = Redactor().redact(event(step(action=Message(role="assistant", tool_calls=(call,))))).event.body
    assert isinstance(body, StepTaken)
    mark = "[redacted:secret]"
    assert body.action.tool_calls[0].arguments == {
        name: mark,
        "nested": [{name: [mark, mark, None, True, ""]}],
        "other": "open sesame",
    }


def test_a_tools_schema_keeps_its_parameters_of_such_names() -> None:
    schema = {"function": {"name": "login", "parameters": {"properties": {"password": {"type": "string"}}, "required": ["password"]}}}
    started = event(TrajectoryStarted(tools=(schema,)))
    assert Redactor().redact(started).event == started


def test_logprobs_that_spell_a_secret_go() -> None:
    secret = "sk-proj-abcdefghij1234567890ABCD"
    spelled = json.dumps({"content": [{"token": c, "logprob": -0.1, "top_logprobs": [{"token": "z"}]} for c in secret]})
    for body in (step(f"the key is {secret}", logprobs=spelled), step("other words", logprobs=spelled), step("words", logprobs="no json")):
        clean, found = Redactor().redact(event(body, agent="sk-"))
        assert isinstance(clean.body, StepTaken) and clean.body.logprobs is None and found["logprobs"] == 1
    kept = step("the key is unknown", logprobs=json.dumps({"content": [{"token": "the"}, {"token": " key"}]}))
    assert Redactor().redact(event(kept)) == (event(kept), Counter())


def test_an_id_that_holds_a_secret_is_never_replaced() -> None:
    for envelope in ("event_id", "tenant", "trajectory_id"):
        with pytest.raises(RedactionError) as caught:
            Redactor().redact(event(TrajectoryEnded(), **{envelope: "sk-proj-abcdefghij1234567890ABCD"}))
        assert caught.value.in_id and "abcdefghij" not in str(caught.value)


def spans_of(word: str) -> Callable[[str], Iterator[tuple[int, int]]]:
    def find(text: str) -> Iterator[tuple[int, int]]:
        start = text.find(word)
        while start >= 0:
            yield start, start + len(word)
            start = text.find(word, start + 1)

    return find


def test_rules_can_be_added() -> None:
    redactor = Redactor().with_rules(
        Rule("customer", r"C-\d{6}"), Rule("codeword", spans_of("aba")), Rule("pin", r"pin (?P<secret>\d+)", hints=["pin"], keys="^pin$")
    )
    text = "C-123456 said ababa, pin 4711; sk-proj-abcdefghij1234567890ABCD"
    assert redactor.text(text) == "[redacted:customer] said [redacted:codeword], pin [redacted:pin]; [redacted:openai-key]"
    assert len(redactor.rules) == len(Redactor().rules) + 3
    clean, found = redactor.redact(event(step("C-111111 C-222222")))
    assert found == {"customer": 2} and "C-" not in repr(clean)
    assert Redactor([]).text(text) == text


@pytest.mark.parametrize("arguments", [("Bad Name", "x"), ("name", "("), ("name", "x", ("Upper",)), ("name", "x", ('quo"te',))])
def test_a_rule_that_cannot_work_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PermanentError):
        Rule(arguments[0], arguments[1], hints=arguments[2] if len(arguments) > 2 else ())


def test_a_rule_that_fails_stops_the_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(text: str) -> Iterator[tuple[int, int]]:
        if "trip" in text:
            raise ValueError(f"cannot parse {text}")
        yield from ()

    spool = tmp_path / "spool"
    with caplog.at_level(logging.DEBUG):
        client = Client(NO_BROKER, spool=spool, redaction=Redactor().with_rules(Rule("broken", broken), Rule("role", "^assistant$")))
        client.feedback("r", label="trip hunter2")
        client.feedback("r", label="fine")
        client.trajectory(task="y").step("a rule that hits a role cannot be applied")
        report = client.close(0)
    assert report.rejected == {Refusal.REDACTION_FAILED.value: 2}
    written = b"".join(file.read_bytes() for file in spool.rglob("*") if file.is_file())
    assert b"hunter2" not in written and "hunter2" not in caplog.text and not (spool / "rejected").exists()


UNITS = [
    "a",
    "key=",
    "password",
    "-----BEGIN PRIVATE KEY-----",
    "://a:",
    "sk-",
    "bearer ",
    "eyJaaaaaaaa.",
    "secret: ",
    "Basic aaaa",
    "pwd =",
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_more_than_linear_time(unit: str) -> None:
    """Ten times the text takes about ten times as long; quadratic would be a hundred."""

    def cost(size: int) -> float:
        text = unit * (size // len(unit))
        start = process_time()
        Redactor().text(text)
        return process_time() - start

    assert min(cost(2_000_000) for _ in range(2)) < 40 * min(cost(200_000) for _ in range(3))
