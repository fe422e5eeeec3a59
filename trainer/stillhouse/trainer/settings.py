"""The sections `[trainer]` and `[window]` of stillhouse.toml."""

from typing import Literal

import msgspec

from stillhouse.schemas.actions import Grammar


class CurationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How trajectories become examples; part of `[window]`. docs/curation.md gives each stage's rule and its reason.

    Attributes:
        seed: sides, recoveries and draws are hashes keyed by it.
        test_share: part of all tasks that is never trained on and judges students.
        validation_share: part of all tasks that stops training early and steers windows.
        similarity: cosine from which two tasks with the same entities are one.
        self_training: also supervise a student's steps, where a verifier said success.
        self_training_share: at most this part of a window's weight is the students' own.
        unlabelled: what to do with a trajectory that nobody judged.
        read_only_tools: tools that change nothing, beside those whose definition says `readOnlyHint`.
        recovery_share: part of the corrected retries that stays, the failed call as masked context.
        order: count steps for `efficiency` before (filter_first) or after (prune_first) failed branches are removed.
        stratum_floor: a stratum with fewer teacher successes than this has no median to filter by.
        stratum_least: never fewer than this many of a stratum's trajectories are kept.
        reasoning_tokens: budget that longer reasoning is compressed to.
        reasoning_loss: nats a token by which compressed reasoning may predict the action worse than the whole.
        leader_limit: trajectories of one group of near-equal tasks.
        gamma: how much weight a short solution gains: (median / steps) ** gamma.
        weight_low: least weight before it is rescaled.
        weight_high: greatest weight before it is rescaled.
        tenant_cap: greatest part of the weight that one tenant may have; 1 is no cap.
        source_cap: greatest part of the weight that one teacher model may have; 1 is no cap.
        context_turns: turns of context that a step of a cut trajectory keeps at most.
        per_step: cut every trajectory into steps, not only those over the context limit.
    """

    seed: int = 1
    test_share: float = 0.1
    validation_share: float = 0.1
    similarity: float = 0.9
    self_training: bool = False
    self_training_share: float = 0.2
    unlabelled: Literal["drop", "keep"] = "drop"
    read_only_tools: tuple[str, ...] = ()
    recovery_share: float = 0.2
    order: Literal["prune_first", "filter_first"] = "prune_first"
    stratum_floor: int = 8
    stratum_least: int = 5
    reasoning_tokens: int = 50
    reasoning_loss: float = 0.05
    leader_limit: int = 3
    gamma: float = 1.0
    weight_low: float = 0.5
    weight_high: float = 2.0
    tenant_cap: float = 1.0
    source_cap: float = 1.0
    context_turns: int = 6
    per_step: bool = False


class WindowSettings(CurationSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[window]`: which rows a window takes, and how it is trained on top of those before it.

    Attributes:
        lineage: name of the chain of students; a row is trained on once per lineage.
        size: new examples that a window draws; 0 takes all.
        max_rows: new trajectories that a window looks at, oldest first.
        max_tokens: supervised tokens times epochs up to which a window starts fresh with the whole pool.
        epochs: passes over the window's examples.
        replay: earlier examples drawn again for each new one, in a window that continues (0.5: a third of all).
        family_floor: weight of a family that the student has mastered; its failure rate comes on top.
        fresh_every: windows after which training starts from the base model again.
        min_kept: new teacher successes that are enough for a window.
        max_age_hours: age of the oldest new success that is enough for a window.
    """

    lineage: str = "default"
    size: int = 0
    max_rows: int = 20_000
    max_tokens: int = 2_000_000
    epochs: int = 1
    replay: float = 0.5
    family_floor: float = 0.3
    fresh_every: int = 8
    min_kept: int = 100
    max_age_hours: float = 24.0


class TrainerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[trainer]`: the base model, the student's view of a conversation, and the hyperparameters.

    Attributes:
        model: name of a base model that `models fetch` knows, or a folder.
        recipe: name of a training recipe.
        system: keep the conversation's system prompt, or replace it by `system_prompt`.
        system_prompt: the student's own prompt.
        tools: show the student whole tool definitions, only names, or none.
        reasoning: hide the teacher's reasoning, or train on it as content.
        grammar: how the student writes calls.
        context_limit: tokens of a conversation.
        rank: LoRA rank; fixed per lineage, like alpha.
        alpha: LoRA alpha.
        batch: examples of one optimizer step.
        learning_rate: peak rate of a fresh window.
        continue_rate: part of the peak rate that a continued window has.
        warmup: part of the steps that the rate rises for.
        max_steps: optimizer steps at most; 0 is no limit.
        evaluate_every: optimizer steps between validation losses; 0 is four times an epoch.
        patience: evaluations without a better validation loss after which training stops.
        loss_margin: nats that a student's best validation loss may lie above its parent's.
        gap_limit: nats between training and validation loss that are too many, unless success rose.
        threads: CPU threads of training; 0 leaves it to torch.
        seed: of initialisation and order.
    """

    model: str = "smollm2-135m"
    recipe: str = "bc-trajectory"
    system: Literal["keep", "replace"] = "keep"
    system_prompt: str = ""
    tools: Literal["keep", "names", "drop"] = "keep"
    reasoning: Literal["hide", "content"] = "hide"
    grammar: Grammar = "tool_call"
    context_limit: int = 2048
    rank: int = 16
    alpha: int = 32
    batch: int = 2
    learning_rate: float = 2e-3
    continue_rate: float = 0.5
    warmup: float = 0.1
    max_steps: int = 0
    evaluate_every: int = 0
    patience: int = 3
    loss_margin: float = 0.02
    gap_limit: float = 0.5
    threads: int = 2
    seed: int = 1
