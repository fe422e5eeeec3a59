"""Labels: what they are, and the process that asks for them, killed in the middle."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stillhouse.schemas import codec
from stillhouse.schemas.events import AgentEvent, Outcome, Policy, PolicyRole
from stillhouse.schemas.facts import TeacherTask, TeacherTaskKind
from stillhouse.schemas.fold import fold
from stillhouse.schemas.labels import Label, is_label, label_events, states
from stillhouse.schemas.messages import Message
from stillhouse.schemas.teacher_runs import TABLE, task_id
from stillhouse.schemas.topics import EVENTS, TEACHER_TASKS
from stillhouse.schemas.trajectory import Status
from stillhouse.sdk.kafka import topic_name
from stillhouse.sdk.kafka_read import read_whole
from stillhouse.sdk.store import Store
from tests.support.child import Child
from tests.support.events import event, step
from tests.support.ingest import Topics
from tests.support.signals import failures, stored
from tests.support.waiting import until

BIG = Policy(role=PolicyRole.TEACHER, model="big")


class Teacher:
    """An OpenAI-compatible teacher. It answers while `open` is set; what it was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.open, self.status = threading.Event(), 200
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                teacher.asked.append(body)
                if len(teacher.asked) > 1:
                    teacher.open.wait(60)
                message = {"role": "assistant", "content": f"after {len(body['messages'])}"}
                usage = {"prompt_tokens": 10, "completion_tokens": 2}
                answer = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
                self.send_response(teacher.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                with suppress(BrokenPipeError):  # whoever asked was killed
                    self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self.open.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    made = Teacher()
    yield made
    made.close()


def relabel(topics: Topics, state: Path, teacher: Teacher) -> Child:
    environment = os.environ | {
        "STILLHOUSE_KAFKA__PREFIX": topics.kafka.prefix, "STILLHOUSE_SIGNALS__TEACHER_URL": teacher.url,
        "STILLHOUSE_SIGNALS__TEACHER_MODEL": "big",
    }  # fmt: skip
    command = [sys.executable, "-m", "stillhouse.streams.relabel", "--state", str(state), "--lease", "3"]
    return Child("relabel", [*command, "--bootstrap-servers", topics.kafka.bootstrap_servers], state, environment)


def ask_for(topics: Topics, number: int) -> str:
    found = task_id(TeacherTaskKind.RELABEL, f"acme/s-{number}", None, "big")
    task = TeacherTask(task_id=found, kind=TeacherTaskKind.RELABEL, key=f"acme/s-{number}", tenant="acme", family="refund")
    topics.raw(codec.encode(task), found, topic=topic_name(topics.kafka, TEACHER_TASKS))
    return found


def events_of(topics: Topics) -> list[AgentEvent]:
    return [codec.decode(message.value(), AgentEvent) for message in read_whole(topics.kafka, EVENTS, reader="test", timeout=10)]


def done(store: Store) -> list[dict[str, Any]]:
    return store.rows(TABLE, "state = 'done'")


def test_a_label_is_the_students_history_and_the_teachers_word_without_an_outcome() -> None:
    run = fold(failures([3]))
    assert states(run, 9) == [0, 1, 2] and states(run, 2) == [0, 1]
    said = Label(action=Message(role="assistant", content="Refund it."), policy=BIG, cost_micro_usd=7)
    made = fold(label_events(run, 2, "task", said, 5))
    assert is_label(made) and (made.status, made.outcome) == (Status.ENDED, Outcome.UNKNOWN)
    assert [one.policy.role for one in made.steps] == [PolicyRole.STUDENT, PolicyRole.STUDENT, PolicyRole.TEACHER]
    assert made.messages() == (*run.before(2), said.action)
    assert (made.task, made.subject, made.parent_trajectory, made.resume_step) == (run.task, run.subject, run.trajectory_id, 2)
    assert sum(one.cost_micro_usd or 0 for one in made.steps) == 7, "what the run cost is counted there"
    assert [e.event_id for e in label_events(run, 2, "task", said, 9)] == [e.event_id for e in label_events(run, 2, "task", said, 5)]
    assert not is_label(run) and not is_label(msgspec.structs.replace(made, steps=made.steps[:2]))


def test_where_a_step_is_missing_nobody_can_be_asked() -> None:
    assert states(fold([e for e in failures([3]) if getattr(e.body, "index", None) != 1]), 9) == []
    assert states(fold([event(step(0))]), 9) == [], "no beginning, and no student's"


def test_killed_in_the_middle_the_next_one_asks_only_what_is_not_labelled(
    topics: Topics, store: Store, tmp_path: Path, teacher: Teacher
) -> None:
    stored(store, failures([3]))
    task = ask_for(topics, 3)
    with relabel(topics, tmp_path, teacher) as child:
        child.ready()
        until(lambda: len(teacher.asked) == 2 and len(events_of(topics)) == 3, "the first label is out, the second is asked for")
        child.process.kill()
    stored(store, events_of(topics))
    teacher.open.set()
    with relabel(topics, tmp_path, teacher) as child:
        child.ready()
        until(lambda: len(done(store)) == 1, "the task is done")
        assert child.stop() == 0
    asked = [len(body["messages"]) for body in teacher.asked]
    assert len(asked) == 4 and asked[1] == asked[2], "the one that was cut off is asked again, and no other"
    ask_for(topics, 3)
    last = ask_for(topics, 4)
    stored(store, failures([4]))
    with relabel(topics, tmp_path, teacher) as child:
        child.ready()
        until(lambda: len(done(store)) == 2, "the next task is done")
        assert child.stop() == 0
    assert len(teacher.asked) == 7, "a finished task is not paid for again"
    stored(store, events_of(topics))
    rows = [row for row in store.trajectories() if row["parent_trajectory"]]
    assert {row["trajectory_id"] for row in rows} == {f"{name}-s{n}" for name in (task, last) for n in range(3)}
    assert all(map(is_label, store.load([row["key"] for row in rows]).values()))


def test_what_the_teacher_refuses_is_the_tasks_result(topics: Topics, store: Store, tmp_path: Path, teacher: Teacher) -> None:
    teacher.status = 400
    teacher.open.set()
    stored(store, failures([3]))
    ask_for(topics, 3)
    ask_for(topics, 5)
    with relabel(topics, tmp_path, teacher) as child:
        child.ready()
        until(lambda: len(store.rows(TABLE, "state = 'failed'")) == 2, "both have failed")
        assert child.stop() == 0
    errors = {row["data"]["task"]["key"]: row["data"]["attempts"][0]["error"] for row in store.rows(TABLE, "state = 'failed'")}
    assert "status 400" in errors["acme/s-3"] and "is gone" in errors["acme/s-5"] and len(teacher.asked) == 3
    assert not events_of(topics)
