"""Stored trajectories, a base model of tokens only, and a training that trains nothing: what the tests of windows work on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.event_set import content_hash, event_set, pack
from stillhouse.schemas.events import AgentEvent, Body, Outcome, StepTaken, TrajectoryEnded, TrajectoryStarted
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.trajectory import Trajectory
from stillhouse.sdk.store import Store
from stillhouse.trainer.examples import Example
from stillhouse.trainer.files import tree_hashes
from stillhouse.trainer.jobs import Evaluate, Job, Progress, Steps
from stillhouse.trainer.models_tokenizer import save_tokenizer, tiny_tokenizer
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.training_job import Progress as TrainProgress
from stillhouse.trainer.training_job import TrainEvent, TrainJob, TrainResult
from stillhouse.trainer.windows_types import EvaluatedFacts
from tests.trainer.curation_factory import call, reply, run

SETTINGS = WindowSettings(stratum_floor=1000)
TRAINER = TrainerSettings(grammar="bare-json")


def trajectory(i: int, outcome: Outcome = Outcome.SUCCESS, **more: Any) -> Trajectory:
    steps = (call("cancel", {"ok": True}, id=f"{100 + i}"), reply(f"Order {100 + i} is cancelled."))
    fields = {"name": f"r{i:03d}", "task": f"t{i}", "ask": f"Cancel order {100 + i}", "family": "ab"[i % 2], "at": 1000 * i, **more}
    return run(*steps, outcome=outcome, **fields)


def events_of(made: Trajectory) -> list[AgentEvent]:
    def event(number: int, body: Body) -> AgentEvent:
        return AgentEvent(
            event_id=f"{made.trajectory_id}-{number}",
            tenant=made.tenant,
            trajectory_id=made.trajectory_id,
            occurred_at=made.first_occurred_at + number,
            body=body,
            policy=made.steps[0].policy,
        )

    start = TrajectoryStarted(task=made.task, system_prompt=made.system_prompt, tools=tuple(made.tools))
    steps = [StepTaken(index=s.index, action=s.action, state=s.state, observation=s.observation) for s in made.steps]
    bodies: list[Body] = [start, *steps, TrajectoryEnded(steps=len(steps), outcome=made.outcome)]
    return [event(n, b) for n, b in enumerate(bodies)]


def put(store: Store, made: Sequence[Trajectory], first_offset: int = 0) -> None:
    """Store trajectories as ingest would; one that is there already is replaced."""
    chunks, rows = [], []
    for place, one in enumerate(made):
        members = event_set(events_of(one))
        key, data = pack(one.key, list(members.values()))
        chunks.append({"key": key, "trajectory": one.key, "events": data, "count": len(members), "stored_at": 0})
        rows.append(_row(one, content_hash(members), key, len(members), first_offset + 10 * place))
    store.insert_if_absent("transcripts", chunks)
    for key in store.by_key("trajectories", [r["key"] for r in rows]):
        store.delete("trajectories", f"key = '{key}'")
    store.insert_if_absent("trajectories", rows)


def erase(store: Store, key: str) -> None:
    store.update("trajectories", key, {"content": ERASED})


def _row(one: Trajectory, content: str, chunk: str, revision: int, offset: int) -> dict[str, Any]:
    return {
        "key": one.key, "tenant": one.tenant, "trajectory_id": one.trajectory_id, "family": one.task.family, "task_id": one.task.id,
        "subject": one.subject,
        "policies": [{"role": p.role.value} for p in one.policies], "outcome": one.outcome.value, "status": "ended",
        "steps": len(one.steps), "output_tokens": 20, "content": content, "chunks": [chunk], "revision": revision,
        "partition": len(one.key) % 2, "first_offset": offset, "last_offset": offset + revision - 1,
        "first_occurred_at": one.first_occurred_at,
    }  # fmt: skip


def base_model(folder: Path) -> Path:
    """A model folder with a tokenizer and no weights."""
    folder.mkdir(parents=True)
    save_tokenizer(tiny_tokenizer(), folder)
    (folder / "model.json").write_text(json.dumps({"files": tree_hashes(folder)}))
    return folder


def fake_train(job: TrainJob, examples: Sequence[Example], validation: Sequence[Example], progress: TrainProgress) -> TrainResult:
    """Leave a candidate as training does; the more examples, the lower the loss."""
    candidate = job.out / "candidate"
    candidate.mkdir(parents=True, exist_ok=True)
    (candidate / "adapter_config.json").write_text(json.dumps({"mode": job.mode, "parent": job.parent.name if job.parent else None}))
    (candidate / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (candidate / "probes.json").write_text("[]")
    job.render.save(candidate / "render.json")
    loss = 2.0 / (1 + len(examples))
    progress(TrainEvent(kind="done", step=1, steps=1, loss=loss))
    return TrainResult(
        candidate=candidate, rows=len(examples), steps=1, tokens=9, supervised_tokens=sum(e.tokens for e in examples), losses=(loss,),
        validation_losses=((1, loss),), train_loss=loss, validation_loss=loss, parent_loss=None, stopped_early=False, cpu_seconds=0.0,
        versions={"torch": "none"},
    )  # fmt: skip


def measured(**facts: Any) -> Evaluate:
    """An evaluation that finds these."""

    def evaluate(candidate: Path, parent: Path | None, progress: Progress, /) -> EvaluatedFacts:
        return EvaluatedFacts(**facts)

    return evaluate


class Desk:
    """A state folder with a store, a base model and a clock that counts calls."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.store = Store.open(state / "lance")
        self.base = state / "base" if (state / "base").exists() else base_model(state / "base")
        self.said: list[dict[str, Any]] = []
        self.published: list[str] = []
        self.now = 0

    def clock(self) -> int:
        self.now += 1
        return self.now

    def job(self, settings: WindowSettings = SETTINGS, **steps: Any) -> Job:
        made = Steps(**({"train": fake_train, "publish": lambda s: self.published.append(s.student)} | steps))
        return Job(self.store, self.state, self.base, settings, TRAINER, made, progress=self.said.append, clock=self.clock)


def with_changes(settings: WindowSettings, **changes: Any) -> WindowSettings:
    return msgspec.structs.replace(settings, **changes)
