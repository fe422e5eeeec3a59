"""The section `[window]` of stillhouse.toml: what the trainer curates by, and what signals asks for windows by."""

from typing import Literal

import msgspec


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
        reasoning_rows: trajectories of a family on which the parent measures that; 0: compression is not measured.
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
    reasoning_rows: int = 16
    leader_limit: int = 3
    gamma: float = 1.0
    weight_low: float = 0.5
    weight_high: float = 2.0
    tenant_cap: float = 1.0
    source_cap: float = 1.0
    context_turns: int = 6
    per_step: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that contradict each other.

        Raises:
            ValueError: the two shares leave nothing to train on, or a share is none.
        """
        shares = ("test_share", "validation_share", "recovery_share", "self_training_share", "tenant_cap", "source_cap", "similarity")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a share lies between 0 and 1")
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share and validation_share leave nothing to train on")


class WindowStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of `[window] schedule`: what it says counts instead of the setting of that name; None leaves the setting.

    Attributes:
        size: of `[window]`.
        replay: of `[window]`.
        family_floor: of `[window]`.
        min_kept: of `[window]`.
        continue_rate: of `[trainer]`.
    """

    size: int | None = None
    replay: float | None = None
    family_floor: float | None = None
    min_kept: int | None = None
    continue_rate: float | None = None


class WindowSettings(CurationSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[window]`: which rows a window takes, and how it is trained on top of those before it.

    Attributes:
        lineage: name of the chain of students; a row is trained on once per lineage.
        size: new examples that a window draws; 0 takes all.
        max_rows: new trajectories that a window looks at, oldest first.
        max_tokens: supervised tokens times epochs up to which a window starts fresh with the whole pool.
        replay: earlier examples drawn again for each new one, in a window that continues (0.5: a third of all).
        family_floor: weight of a family that the student has mastered; its failure rate comes on top.
        fresh_every: windows after which training starts from the base model again.
        min_kept: new teacher successes that are enough for a window.
        max_age_hours: age of the oldest new success that is enough for a window.
        min_requested: new teacher successes that are enough where somebody asked for a window.
        schedule: what differs from window to window (`[[window.schedule]]`): the first step holds until the lineage has a student, the
            second until it has two, and so on; the last one stays.
        continue_below_teacher: a student that a canary ended because it was worse than the *teacher*, or because its time was up, may
            still be a parent: it has not fallen behind its own lineage. One that was worse than a champion, malformed, not attested,
            revoked or taken out by a person never is.
        environment: `module:name` of something that takes `environment_data` and replays pruned runs (curation's `Replay`); empty:
            nothing is replayed.
        environment_data: what it needs to know the tasks: a file, an address; its own documentation says.
    """

    lineage: str = "default"
    size: int = 0
    max_rows: int = 20_000
    max_tokens: int = 2_000_000
    replay: float = 0.5
    family_floor: float = 0.3
    fresh_every: int = 8
    min_kept: int = 100
    max_age_hours: float = 24.0
    min_requested: int = 20
    schedule: tuple[WindowStep, ...] = ()
    continue_below_teacher: bool = False
    environment: str = ""
    environment_data: str = ""

    def __post_init__(self) -> None:
        """Refuse a rule that never trains.

        Raises:
            ValueError: as in `CurationSettings`, or a count is not positive.
        """
        CurationSettings.__post_init__(self)
        if self.max_rows < 1 or self.fresh_every < 1 or self.size < 0 or self.replay < 0:
            raise ValueError("max_rows and fresh_every are at least 1, size and replay not negative")
