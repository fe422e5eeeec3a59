"""Importers: nothing is lost silently, a second import is the same, and a wrong file is told where it belongs. Small files made here."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.codec import decode, encode
from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.schemas.events import AgentEvent, FeedbackGiven, FeedbackSource, Outcome, PolicyRole, TrajectoryEnded, TrajectoryStarted
from stillhouse.schemas.fold import fold
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.trajectory import Status, Trajectory
from stillhouse.sdk.importers import IMPORTERS, detect
from stillhouse.sdk.importers.base import micros
from tests.sdk import importer_samples as samples


def write(tmp_path: Path, name: str) -> Path:
    path = tmp_path / samples.FILES[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(samples.FILES[name][1])
    return path


def imported(path: Path, name: str, **options: Any) -> list[AgentEvent]:
    events = list(IMPORTERS[name].read(path, **options))
    assert len({event.event_id for event in events}) == len(events)
    for event in events:
        assert decode(encode(event), AgentEvent) == event
    return events


def folded(events: list[AgentEvent]) -> list[Trajectory]:
    runs: dict[str, list[AgentEvent]] = {}
    for event in events:
        runs.setdefault(event.key, []).append(event)
    return [fold(run) for run in runs.values()]


def run_of(tmp_path: Path, name: str) -> Trajectory:
    """The first run of a sample."""
    return folded(imported(write(tmp_path, name), name))[0]


@pytest.mark.parametrize("name", IMPORTERS)
def test_each_importer_has_a_sample_that_only_it_detects(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    assert detect(path) == name
    others = [other for other, importer in IMPORTERS.items() if other != name and importer.detect(path)]
    assert others in ([], ["chat"])  # a FireAct file is chat too: the more special one comes first
    assert list(IMPORTERS)[-1] == "chat"


@pytest.mark.parametrize("name", IMPORTERS)
def test_a_second_import_is_the_same_wherever_the_file_lies(tmp_path: Path, name: str) -> None:
    first = imported(write(tmp_path / "a", name), name)
    second = imported(write(tmp_path / "b" / "c", name), name)
    assert first == second
    assert len(first) > 2


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_run_is_whole_and_in_order(tmp_path: Path, name: str) -> None:
    events = imported(write(tmp_path, name), name)
    runs = folded(events)
    assert {run.status for run in runs} == {Status.ENDED}
    assert all(run.steps and not run.headless and not run.superseded for run in runs)
    for run in runs:
        times = [event.occurred_at for event in events if event.key == run.key]
        assert times == sorted(times)
        assert times[0] > 0
    kinds = Counter(type(event.body) for event in events)
    assert kinds[TrajectoryStarted] == kinds[TrajectoryEnded] == len(runs)


@pytest.mark.parametrize("name", IMPORTERS)
def test_a_file_of_another_format_is_told_where_it_belongs(tmp_path: Path, name: str) -> None:
    wrong = "tau2" if name != "tau2" else "tau-bench"
    with pytest.raises(PermanentError) as error:
        list(IMPORTERS[name].read(write(tmp_path, wrong)))
    said = str(error.value)
    assert f"not a file for {name}: expected" in said
    assert "found '" in said
    assert f"It looks like {wrong}" in said


@pytest.mark.parametrize("text", ["", "nonsense", '{"a": 1}', "[]", "\x00\xff"])
def test_a_file_that_nobody_knows_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    assert detect(path) is None
    with pytest.raises(PermanentError, match=r"No importer knows this format; see docs/importers\.md"):
        list(IMPORTERS["tau-bench"].read(path))


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        list(IMPORTERS["tau-bench"].read(tmp_path / "none.json"))


@pytest.mark.parametrize("name", IMPORTERS)
def test_a_damaged_record_is_named_by_place(tmp_path: Path, name: str) -> None:
    """Cut off: never a part of a file that looks like the whole."""
    path = write(tmp_path, name)
    path.write_text(path.read_text().rstrip()[:-20])
    with pytest.raises(PermanentError) as error:
        list(IMPORTERS[name].read(path))
    assert path.name in str(error.value)


def test_tenant_role_and_model_are_the_caller_s(tmp_path: Path) -> None:
    events = imported(write(tmp_path, "fireact"), "fireact", tenant="acme", role=PolicyRole.STUDENT, model="mine")
    assert {(e.tenant, e.policy.role, e.policy.model) for e in events} == {("acme", PolicyRole.STUDENT, "mine")}
    assert "no model name in the source" not in IMPORTERS["fireact"].report
    imported(write(tmp_path, "fireact"), "fireact")
    assert IMPORTERS["fireact"].report["no model name in the source"] == 2


def test_a_folder_gives_all_files_of_the_format_and_counts_the_others(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, "tau-bench")
    (tmp_path / "notes.txt").write_text("hello")
    runs = folded(imported(tmp_path, "tau-bench"))
    assert len(runs) == 4  # the same record twice is two runs, told apart by number
    assert IMPORTERS["tau-bench"].report["file of another format in the folder"] == 1
    with pytest.raises(PermanentError, match="no file for tau2 in the folder"):
        list(IMPORTERS["tau2"].read(tmp_path))


def test_tau_bench(tmp_path: Path) -> None:
    won, lost = folded(imported(write(tmp_path, "tau-bench"), "tau-bench"))
    assert (won.outcome, won.reward, lost.outcome, lost.reward) == (Outcome.SUCCESS, 1.0, Outcome.FAILURE, 0.0)
    assert (won.task.id, won.task.family, won.task.instruction) == ("airline/7", "airline", "You want a refund.")
    assert (won.system_prompt, won.attempt, won.subject, won.agent) == ("Policy.", 1, "user_1", "tau-bench")
    assert [(p.role, p.model) for p in won.policies] == [(PolicyRole.TEACHER, "gpt-4o")]
    call = ToolCall(id="c1", name="get_user", arguments={"user_id": "user_1"})
    first, second = won.steps
    assert first.state == (Message(role="user", content="Refund me"),)
    assert first.action == Message(role="assistant", content=None, tool_calls=(call,))
    assert first.observation == (Message(role="tool", content="Error: no such user", tool_call_id="c1", name="get_user"),)
    assert first.error == "Error: no such user"
    assert second.state == ()
    assert second.observation == (Message(role="user", content="###STOP###"),)  # what follows the last action is its answer
    assert lost.attempt == 2
    report = IMPORTERS["tau-bench"].report
    assert report["reward_info is null: a run cut at its step limit, failed by its reward"] == 1
    assert report["info.task.actions: the evaluator's answer, not part of the run"] == 2
    assert report["later: unknown field"] == 1
    assert any(reason.startswith("no timestamp in the source") and count == 2 for reason, count in report.items())


def test_tau2(tmp_path: Path) -> None:
    run = run_of(tmp_path, "tau2")
    assert (run.outcome, run.task.id, run.task.family, run.system_prompt) == (Outcome.SUCCESS, "retail/3", "retail", "Policy.")
    assert run.task.instruction == "You want a refund.\nYou are Ann."
    assert [(p.role, p.model) for p in run.policies] == [(PolicyRole.STUDENT, "ft:gpt-4.1:me")]
    greeting, asked = run.steps[0].state
    assert (greeting.role, greeting.content, asked.content) == ("assistant", "Hi!", "Refund me")
    first = run.steps[0]
    assert (first.usage.input_tokens, first.usage.output_tokens, first.usage.cached_tokens) == (100, 5, 60)
    assert (first.cost_micro_usd, first.action.reasoning, first.error) == (1500, "Look first.", "not found")
    assert first.occurred_at == micros("2025-10-31T07:35:07.331176Z")
    assert run.steps[1].error == "You sent an empty message."
    report = IMPORTERS["tau2"].report
    assert report["tool call of the simulated user"] == report["tool result of the simulated user"] == 1
    assert report["termination_reason max_steps: in the outcome only"] == 1


def test_keys_in_a_simulation_s_settings_are_never_carried(tmp_path: Path) -> None:
    path = write(tmp_path, "tau2")
    assert "sk-not-for-you" in path.read_text()
    assert not any(b"sk-not-for-you" in encode(event) for event in IMPORTERS["tau2"].read(path))


def test_mini_swe_finds_its_label_in_the_report_beside_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "mini-swe")
    run = folded(imported(path, "mini-swe"))[0]
    assert (run.outcome, run.task.id, run.task.family) == (Outcome.UNKNOWN, "lib__lib-12", "lib__lib")
    assert "no SWE-bench report beside the run's folder: outcome unknown" in IMPORTERS["mini-swe"].report
    report = path.parents[2] / "model.run_1.json"
    for solved, outcome in (([], Outcome.FAILURE), (["lib__lib-12"], Outcome.SUCCESS)):
        report.write_text(json.dumps({"completed_ids": ["lib__lib-12"], "resolved_ids": solved}))
        assert folded(imported(path, "mini-swe"))[0].outcome is outcome
    report.write_text("[]")
    with pytest.raises(PermanentError, match="not a SWE-bench report"):
        list(IMPORTERS["mini-swe"].read(path))
    step = run.steps[0]
    assert (step.action.tool_calls[0].arguments, step.error, step.cost_micro_usd) == ({"command": "ls"}, "return code 2", 400)
    assert (step.usage.input_tokens, step.usage.cached_tokens, step.occurred_at) == (50, 32, 1_775_715_329_500_000)
    assert run.system_prompt == "You fix code."


def test_intercode(tmp_path: Path) -> None:
    react, uneven = folded(imported(write(tmp_path, "intercode"), "intercode"))
    assert (react.outcome, react.reward, react.task.id) == (Outcome.SUCCESS, 1.0, "nl2bash_fs_1/0")
    calls = [step.action.tool_calls for step in react.steps]
    assert [call[0].name if call else None for call in calls] == ["bash", None, "submit"]
    assert calls[0][0].arguments == {"command": "ls ]"}
    assert react.steps[0].action.reasoning == "look"
    assert react.steps[1].action.content == "ls -l"
    assert react.steps[1].error == "the environment calls the action invalid"
    assert [(j.source, j.step, j.reward) for j in react.judgements] == [("verifier", 0, 0.0), ("verifier", 1, 0.5), ("verifier", 2, 1.0)]
    assert uneven.steps[0].observation == ()
    report = IMPORTERS["intercode"].report
    assert report["observations that cannot be assigned: their list is not as long as the actions'"] == 1
    assert report["ReAct action that is neither execute[…] nor submit, kept as text"] == 1


def test_a_fenced_action_is_the_text_that_was_run(tmp_path: Path) -> None:
    path = tmp_path / "ic_bash_multiturn_gpt-4_10_turns_fs_1.json"
    record = json.loads(samples.FILES["intercode"][1])["0"]
    del record["turn_history"]["thoughts"]
    record["turn_history"]["actions"][0] = "```BASH\nls\n```"
    path.write_text(json.dumps({"0": record}))
    run = folded(imported(path, "intercode"))[0]
    assert run.steps[0].action.tool_calls[0].arguments == {"command": "```BASH\nls\n```"}
    assert run.policies[0].model == "gpt-4"


def test_toolbench_answers(tmp_path: Path) -> None:
    run = run_of(tmp_path, "toolbench")
    assert (run.outcome, run.task.id, run.task.instruction, len(run.tools)) == (Outcome.UNKNOWN, "17", "Weather?", 1)
    whole, cut, finish = run.steps
    assert (whole.action.content, whole.action.tool_calls[0].arguments) == ("I look it up.", {"city": "Rome"})
    assert whole.observation[0].content == "sunny"
    assert cut.action.tool_calls[0] == ToolCall(
        id=cut.action.tool_calls[0].id, name="wind", raw_arguments='{\\n "ci', extra={"truncated": True}
    )
    assert finish.action.tool_calls[0].arguments == {"return_type": "give_answer", "final_answer": "Sunny."}
    report = IMPORTERS["toolbench"].report
    assert report["tool arguments cut off in the source: kept as text as far as they go, their call marked `truncated`"] == 1


def test_toolbench_trees_give_a_run_for_each_branch(tmp_path: Path) -> None:
    path = tmp_path / "G1_answer" / "10_ChatGPT_DFS_woFilter_w2.json"
    path.parent.mkdir()
    path.write_text(json.dumps(samples.TOOLBENCH_TREE))
    pruned, answered = folded(imported(path, "toolbench"))
    assert (pruned.outcome, answered.outcome) == (Outcome.FAILURE, Outcome.SUCCESS)
    assert (answered.attempt, answered.resume_step, answered.policies[0].model) == (2, 1, "ChatGPT")
    assert pruned.key.endswith(answered.parent_trajectory or "-")
    assert [step.action.tool_calls[0].name for step in answered.steps] == ["weather", "Finish"]
    assert (answered.system_prompt, pruned.steps[1].error) == ("You are AutoGPT.", "observation code 12")


def test_fireact_in_both_forms(tmp_path: Path) -> None:
    chat, plain = folded(imported(write(tmp_path, "fireact"), "fireact"))
    assert (chat.outcome, plain.outcome, chat.task.family) == (Outcome.SUCCESS, Outcome.FAILURE, "hotpotqa")
    search, finish = chat.steps
    assert (search.action.reasoning, search.action.tool_calls[0].name) == ("I search.", "search")
    assert search.action.tool_calls[0].arguments == {"input": "Badr [Hari]"}
    assert search.observation[0] == Message(role="tool", content="A kickboxer.", tool_call_id=search.action.tool_calls[0].id)
    assert finish.action.tool_calls[0].name == "finish"
    assert plain.steps[0].action.content == "Thought: no action"
    alpaca = tmp_path / "hotpotqa.json"
    alpaca.write_text(json.dumps([samples.FIREACT_ALPACA]))
    run = folded(imported(alpaca, "fireact"))[0]
    assert run.task.instruction == "Who?\nA. Hari\nB. Nobody"
    assert [step.action.reasoning for step in run.steps] == ["I search.", "Found."]
    assert run.outcome is Outcome.SUCCESS


def test_langfuse(tmp_path: Path) -> None:
    events = imported(write(tmp_path, "langfuse"), "langfuse")
    run, critic = folded(events)
    assert (run.system_prompt, run.task.family, run.subject, len(run.tools)) == ("Be brief.", "desk", "user_9", 1)
    first, second = run.steps
    assert first.state == (Message(role="user", content="Weather in Rome and Oslo?"),)
    assert [call.name for call in first.action.tool_calls] == ["weather", "weather"]
    # One result is in the next request, the other only in the tool's own observation.
    assert {(m.tool_call_id, m.content) for m in first.observation} == {("c1", "sunny"), ("c2", "cold")}
    assert (second.action.content, second.usage.output_tokens, second.cost_micro_usd) == ("Sunny and cold.", 9, 250)
    assert (second.latency_ms, second.error) == (1500.0, "slow")
    assert critic.system_prompt == "Judge."
    words = [event.body for event in events if isinstance(event.body, FeedbackGiven)]
    assert [(word.source, word.reward, word.source_version) for word in words] == [(FeedbackSource.JUDGE, 0.5, "helpful")]
    report = IMPORTERS["langfuse"].report
    assert report["generation inside a generation: two instrumentations captured one call"] == 1
    assert report["generation without an answer of a known shape"] == 1
    assert report["observation of type SPAN: structure, not a step"] == 1


def test_chat(tmp_path: Path) -> None:
    named, bare = folded(imported(write(tmp_path, "chat"), "chat"))
    assert (named.task.id, named.task.family, named.outcome, named.reward) == ("41", "refund", Outcome.SUCCESS, 0.9)
    assert (named.trajectory_id, named.subject, named.policies[0].model) == ("chat-run-1", "c-7", "gpt-4o")
    assert named.first_occurred_at == micros("2026-01-02T03:04:05Z")
    assert (bare.outcome, bare.task.instruction, len(bare.steps)) == (Outcome.UNKNOWN, "hello", 1)
    assert IMPORTERS["chat"].report["mood: unknown field"] == 1


@pytest.mark.parametrize(
    "line", ['{"messages": [{"role": "robot"}]}', '{"messages": [{"role": "user"}], "success": "yes"}', '[{"role": 1}]', "{"]
)
def test_a_wrong_line_of_a_chat_log_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, "chat")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(PermanentError, match=r"logs\.jsonl:3"):
        list(IMPORTERS["chat"].read(path))


def test_the_page_names_every_importer_and_its_example_is_a_chat_log(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "importers.md").read_text()
    assert all(f"| `{name}` |" in page for name in IMPORTERS)
    example = page[page.index('    {"messages"') : page.index("(on one line)")]
    path = tmp_path / "logs.jsonl"
    path.write_text(" ".join(line.strip() for line in example.splitlines()) + "\n")
    run = folded(imported(path, "chat"))[0]
    assert (run.outcome, run.task.family, run.reward) == (Outcome.SUCCESS, "refund", 0.9)
    assert not IMPORTERS["chat"].report.keys() - {reason for reason in IMPORTERS["chat"].report if reason.startswith("no timestamp")}
