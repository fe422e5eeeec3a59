"""The section `[trainer]` of stillhouse.toml; `[window]` is in the SDK, because signals and the console read it too."""

from typing import Literal

from stillhouse.schemas.actions import Grammar
from stillhouse.schemas.render import RenderSpec
from stillhouse.sdk.window_settings import CurationSettings as CurationSettings
from stillhouse.sdk.window_settings import WindowSettings as WindowSettings
from stillhouse.trainer.gates import FORMAT_SLACK, LOSS_GAP, LOSS_SLACK
from stillhouse.trainer.training_job import TrainSettings


class TrainerSettings(TrainSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[trainer]`: the base model, the student's view of a conversation, and the hyperparameters of `TrainSettings`.

    Attributes:
        model: name of a base model that `models fetch` knows, or a folder.
        recipe: name of a training recipe.
        system: keep the conversation's system prompt, or replace it by `system_prompt`.
        system_prompt: the student's own prompt.
        tools: show the student whole tool definitions, only names, or none.
        reasoning: hide the teacher's reasoning, or train on it as content.
        grammar: how the student writes calls.
        context_limit: tokens of a conversation.
        seed: initialisation and order derive theirs from it.
        benchmark: `module:name` of an environment that validates students; empty: none, then only losses judge.
        benchmark_tasks: validation tasks of it.
        answer_tokens: tokens that one answer may have there.
        shadow_steps: steps of the teacher that a new student of a route answers in shadow, before its canary; 0: none.
        format_slack: how far the share of malformed answers may lie above the parent's.
        loss_slack: nats a token that the validation loss may lie above the parent's.
        loss_gap: nats a token that it may lie above the training loss, unless success rose.
        look_s: seconds between two looks of the daemon.
        retry_s: seconds until a job that failed for a passing reason is tried again; twice as many after each further failure,
        retry_most_s: and at most so many.
        trial_grace_s: seconds that a canary controller has to take a new student on trial, before the next window may begin.
        nice: how far the daemon's jobs stand behind other processes (0…19).
    """

    model: str = "smollm2-135m"
    recipe: str = "bc-trajectory"
    system: Literal["keep", "replace"] = "keep"
    system_prompt: str = ""
    tools: Literal["keep", "names", "drop"] = "keep"
    reasoning: Literal["hide", "content"] = "hide"
    grammar: Grammar = "tool_call"
    context_limit: int = 2048
    seed: int = 1
    benchmark: str = ""
    benchmark_tasks: int = 24
    answer_tokens: int = 64
    shadow_steps: int = 50
    format_slack: float = FORMAT_SLACK
    loss_slack: float = LOSS_SLACK
    loss_gap: float = LOSS_GAP
    look_s: float = 10.0
    retry_s: float = 30.0
    retry_most_s: float = 3600.0
    trial_grace_s: float = 600.0
    nice: int = 10

    def render(self) -> RenderSpec:
        """The student's view, before a model gives it its stop ids."""
        return RenderSpec(
            system=self.system,
            system_prompt=self.system_prompt,
            tools=self.tools,
            reasoning=self.reasoning,
            grammar=self.grammar,
            context_limit=self.context_limit,
        )

    def training(self) -> TrainSettings:
        """The hyperparameters alone, as a training job takes them."""
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.__struct_fields__})
