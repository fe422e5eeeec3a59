"""A student is trained whole or the job says why not; killed, it ends where it would have ended."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from stillhouse.schemas.errors import GateError, PermanentError, UsageError
from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.trainer.examples import Example, Side, TrainMessage
from stillhouse.trainer.loss import mean_loss
from stillhouse.trainer.models import model_id
from stillhouse.trainer.probes import load_probes
from stillhouse.trainer.recipes import bc_trajectory
from stillhouse.trainer.students import register
from stillhouse.trainer.training import train
from stillhouse.trainer.training_checks import check_lineage, check_rows
from stillhouse.trainer.training_job import TrainSettings, derived_seed, evaluation_steps, peak_rate
from stillhouse.trainer.training_trainer import newest_checkpoint
from tests.trainer.training_factory import Heard, base_in, example, examples, held, job, manifest

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def parent(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained candidate that others follow; not to be changed."""
    return train(job(base, tmp_path_factory.mktemp("parent")), examples(8), held(), Heard()).candidate


def measured(base: Path, candidate: Path) -> float:
    from peft import PeftModel

    spec = RenderSpec.load(candidate / "render.json")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), candidate)
    return mean_loss(model, bc_trajectory.rows(held(), Renderer(spec, base)), spec.pad_id)


def test_the_candidate_is_the_best_that_was_measured(base: Path, tmp_path: Path) -> None:
    heard = Heard()
    settings = {"epochs": 4, "learning_rate": 0.05, "evaluations": 8, "patience": 99}
    result = train(job(base, tmp_path, settings=settings), nonsense(8), held(), heard)
    losses = [loss for _, loss in result.validation_losses]
    assert result.validation_loss == min(losses) < losses[-1]
    assert measured(base, result.candidate) == pytest.approx(result.validation_loss, abs=1e-5)
    assert result.losses[-1] < result.losses[0]
    assert [e.loss for e in heard.of("validation")] == losses
    assert [e.step for e in heard.of("step")] == list(range(1, result.steps + 1))


def test_bfloat16_rounds_the_steps_and_nothing_that_is_measured(base: Path, tmp_path: Path) -> None:
    made = {p: train(job(base, tmp_path / p, settings={"precision": p}), examples(8), held(), Heard()) for p in ("bfloat16", "float32")}
    half, whole = made["bfloat16"], made["float32"]
    assert (half.precision, whole.precision) == ("bfloat16", "float32")
    assert half.losses != whole.losses and half.losses == pytest.approx(whole.losses, abs=0.05)
    assert half.base_loss == whole.base_loss
    assert measured(base, half.candidate) == pytest.approx(half.validation_loss, abs=1e-5)


def test_it_stops_when_the_validation_loss_has_not_fallen_for_three_measurements(base: Path, tmp_path: Path) -> None:
    settings = {"epochs": 20, "learning_rate": 0.05, "evaluations": 40}
    result = train(job(base, tmp_path, settings=settings), nonsense(8), held(), Heard())
    assert result.stopped_early
    assert result.steps < 80
    losses = [loss for _, loss in result.validation_losses]
    assert min(losses) == losses[-4]


def nonsense(count: int) -> list[Example]:
    """Examples that teach nothing of the validation side: its loss soon rises."""
    made = []
    for number in range(count):
        talk = Message(role="user", content="Cancel."), Message(role="assistant", content=f"zq{number}xj~^%" * 4)
        made.append(example(number, messages=tuple(TrainMessage(m, m.role == "assistant") for m in talk)))
    return made


def test_the_candidate_holds_safetensors_and_nothing_of_this_machine(base: Path, tmp_path: Path) -> None:
    result = train(job(base, tmp_path), examples(4), held(), Heard())
    assert sorted(p.name for p in result.candidate.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "probes.json", "render.json",
    ]  # fmt: skip
    assert not any(str(tmp_path.parent) in p.read_text() for p in result.candidate.glob("*.json"))
    assert not (tmp_path / "checkpoints").exists()
    assert result.tokens > result.supervised_tokens > 0
    probes = load_probes(result.candidate)
    assert len(probes) == 3
    assert all(p.parent is None and len(p.student) == len(p.ids) - 1 for p in probes)


def test_a_finished_job_gives_its_result_again_without_training(base: Path, tmp_path: Path) -> None:
    again = Heard()
    first = train(job(base, tmp_path), examples(4), held(), Heard())
    assert train(job(base, tmp_path), examples(4), held(), again) == first
    assert again.events == []


def test_without_a_validation_side_it_trains_to_the_end(base: Path, tmp_path: Path) -> None:
    result = train(job(base, tmp_path, settings={"max_steps": 3}), examples(8), [], Heard())
    assert (result.steps, result.validation_loss, result.stopped_early) == (3, None, False)


KILLED = """
import sys
import msgspec
from pathlib import Path
from stillhouse.trainer.students import register
from stillhouse.trainer.training import train
from tests.trainer.training_factory import examples, held, job

def say(event):
    print(msgspec.json.encode(event).decode(), flush=True)
    if event.kind == "step" and event.step == 6:
        sys.stdin.read()  # until the end, which is the kill

train(job(Path(sys.argv[1]), Path(sys.argv[2])), examples(8), held(), say)
"""


def test_a_killed_job_ends_where_an_uninterrupted_one_does(base: Path, tmp_path: Path) -> None:
    whole = train(job(base, tmp_path / "whole"), examples(8), held(), Heard())
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(base), str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    reached = _until_step(process, 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert reached, "the job ended before step 6"
    (out / "checkpoints" / "checkpoint-5").mkdir()  # half written: no mark that it is whole
    heard = Heard()
    resumed = train(job(base, out), examples(8), held(), heard)
    assert [e.step for e in heard.of("resumed")] == [4]
    assert [e.step for e in heard.of("step")] == [5, 6, 7, 8]
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)
    assert resumed.validation_loss == pytest.approx(whole.validation_loss, abs=1e-6)
    assert (resumed.tokens, resumed.supervised_tokens) == (whole.tokens, whole.supervised_tokens)
    assert measured(base, resumed.candidate) == pytest.approx(measured(base, whole.candidate), abs=1e-6)


def _until_step(process: "subprocess.Popen[str]", step: int) -> bool:
    assert process.stdout
    events = map(json.loads, process.stdout)
    return any(event["kind"] == "step" and event["step"] == step for event in events)


def test_a_continued_student_starts_at_its_parent(base: Path, parent: Path, tmp_path: Path) -> None:
    result = train(job(base, tmp_path, parent=parent, mode="continue"), examples(8, first=20), held(), Heard())
    assert result.parent_loss == pytest.approx(measured(base, parent), abs=1e-5)
    assert result.validation_loss is not None and result.parent_loss is not None
    assert result.validation_loss < result.parent_loss
    assert all(p.parent is not None for p in load_probes(result.candidate))


def test_a_fresh_student_is_measured_against_its_parent_but_does_not_start_there(base: Path, parent: Path, tmp_path: Path) -> None:
    alone = train(job(base, tmp_path / "alone", settings={"epochs": 1}), examples(8), held(), Heard())
    after = train(job(base, tmp_path / "after", parent=parent, settings={"epochs": 1}), examples(8), held(), Heard())
    assert after.parent_loss == pytest.approx(measured(base, parent), abs=1e-5)
    assert after.losses == pytest.approx(alone.losses, abs=1e-6)


def test_rank_alpha_and_targets_are_fixed_within_a_lineage(base: Path, parent: Path, tmp_path: Path) -> None:
    for settings in ({"rank": 8}, {"alpha": 16}, {"targets": ("q_proj",)}):
        with pytest.raises(UsageError, match="fixed within a lineage"):
            train(job(base, tmp_path, parent=parent, settings=settings), examples(4), held(), Heard())
    with pytest.raises(UsageError, match="without a parent"):
        train(job(base, tmp_path, mode="continue"), examples(4), held(), Heard())


def test_base_model_and_view_are_fixed_within_a_lineage(base: Path, parent: Path, tmp_path: Path) -> None:
    for change in ({"grammar": "tool_call"}, {"context_limit": 300}, {"tools": "names"}):
        view = RenderSpec(**({"grammar": "bare-json", "context_limit": 200} | change))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=rf"view \({next(iter(change))}\).* fixed within a lineage"):
            check_lineage(job(base, tmp_path, parent=parent, render=view))
    covered = RenderSpec(grammar="bare-json", context_limit=200, distilled_on=("a", "b"))
    own = register(tmp_path / "own", parent, manifest(base_sha256=model_id(base)))
    check_lineage(job(base, tmp_path, parent=own, render=covered))
    other = register(tmp_path / "other", parent, manifest(base_sha256="0" * 64))
    for mode in ("fresh", "continue"):
        with pytest.raises(UsageError, match=r"base model .*0000.* fixed within a lineage"):
            check_lineage(job(base, tmp_path, parent=other, mode=mode))


@pytest.mark.parametrize("mode", ["fresh", "continue"])
def test_a_parent_that_is_gone_or_torn_is_said_so_with_its_place(mode: str, base: Path, parent: Path, tmp_path: Path) -> None:
    absent = tmp_path / "students" / "student-1-00000000"
    with pytest.raises(PermanentError, match="the parent's folder is gone: student-1-00000000") as told:
        check_lineage(job(base, tmp_path, parent=absent, mode=mode))
    assert told.value.where == str(absent) and "from a backup" in told.value.fix and "[window] lineage" in told.value.fix
    for content in (None, b"{", b"{}", b"[]"):
        torn = shutil.copytree(parent, tmp_path / "torn", dirs_exist_ok=True)
        config = torn / "adapter_config.json"
        config.unlink()
        if content is not None:
            config.write_bytes(content)
        with pytest.raises(PermanentError) as told:
            check_lineage(job(base, tmp_path, parent=torn, mode=mode))
        assert str(torn) in told.value.where and told.value.fix


def test_a_pickle_anywhere_in_the_parent_fails_the_job(base: Path, parent: Path, tmp_path: Path) -> None:
    poisoned = shutil.copytree(parent, tmp_path / "parent")
    (poisoned / "deep").mkdir()
    torch.save({"a": 1}, poisoned / "deep" / "notes.json")
    with pytest.raises(PermanentError, match=r"deep/notes\.json may not be"):
        train(job(base, tmp_path / "out", parent=poisoned), examples(4), held(), Heard())


def test_what_must_not_be_trained_on_is_refused(base: Path, tmp_path: Path) -> None:
    mute = example(3, messages=tuple(TrainMessage(m.message, False) for m in example(3).messages))
    for train_side, validation, reason in (
        ([], held(), "no training examples"),
        ([*examples(3), example(9, Side.VALIDATION)], held(), "held-out row in the training set: t/9"),
        ([*examples(3), example(9, Side.BRIDGE)], held(), "t/9 is on the side bridge"),
        (examples(3), [example(9)], "t/9 measures validation"),
        (examples(3), [example(9, Side.VALIDATION, task_key="task-1")], "task-1 is on both sides"),
        ([*examples(3), mute], held(), "zero supervised tokens: t/3"),
    ):
        with pytest.raises(GateError, match=reason):
            train(job(base, tmp_path), train_side, validation, Heard())
    with pytest.raises(PermanentError, match="tokens, the limit is 20"):
        train(job(base, tmp_path, render=RenderSpec(context_limit=20)), examples(3), held(), Heard())
    assert not tmp_path.joinpath("job.json").exists()


def test_rows_that_the_trainer_lost_fail_the_job(base: Path) -> None:
    spec = RenderSpec().for_model(base)
    rows = bc_trajectory.rows(examples(3), Renderer(spec, base))
    with pytest.raises(PermanentError, match="3 rows went in, the trainer has 2"):
        check_rows(rows, spec, taken=2)


def test_a_folder_belongs_to_one_job(base: Path, tmp_path: Path) -> None:
    train(job(base, tmp_path, settings={"max_steps": 1}), examples(4), [], Heard())
    for other in (job(base, tmp_path), job(base, tmp_path, settings={"max_steps": 1}, seed=2)):
        with pytest.raises(PermanentError, match="another training job"):
            train(other, examples(4), [], Heard())


def test_a_loss_that_is_no_number_fails_the_job(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"Lower \[trainer\] learning_rate"):
        train(job(base, tmp_path, settings={"learning_rate": 1e30, "epochs": 4}), examples(8), [], Heard())


def test_half_written_checkpoints_are_swept(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "whole").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()
    assert newest_checkpoint(tmp_path / "absent") is None


def test_rates_steps_and_seeds() -> None:
    settings = TrainSettings()
    assert [peak_rate(n, settings, "fresh") for n in (135_000_000, 1_700_000_000, 8_000_000_000)] == [2e-3, 5e-4, 2e-4]
    assert peak_rate(135_000_000, settings, "continue") == 1e-3
    assert peak_rate(135_000_000, TrainSettings(learning_rate=1e-2, continue_rate=1.0), "continue") == 1e-2
    assert evaluation_steps(30, 4) == {8, 15, 22, 30}
    assert evaluation_steps(1, 4) == {1}
    assert derived_seed(1, "a") != derived_seed(1, "b") != derived_seed(2, "b")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"ranks": 1}, TrainSettings)
