"""Stage `source`: only a teacher's or a person's steps are learned from. Students' steps are context, or the loop eats its own tail."""

from collections.abc import Sequence

import msgspec

from stillhouse.schemas.events import FeedbackSource, Outcome, PolicyRole
from stillhouse.schemas.trajectory import Status
from stillhouse.trainer.curate.draft import Draft, DraftStep, with_steps
from stillhouse.trainer.curate.stage import StageResult, transform
from stillhouse.trainer.settings import CurationSettings

_TEACHERS = (PolicyRole.TEACHER, PolicyRole.HUMAN)


def source(drafts: Sequence[Draft], settings: CurationSettings) -> StageResult:
    """Mark the steps that may be supervised; drop records that are not whole, or in which nobody may be learned from."""
    return transform("source", drafts, lambda d: _broken(d) or _marked(d, settings))


def verified_student(draft: Draft) -> bool:
    """Whether an environment verified a run's success: the only students' runs that self-training may use."""
    trajectory = draft.trajectory
    return trajectory.outcome is Outcome.SUCCESS and trajectory.outcome_source == FeedbackSource.VERIFIER.value


def _broken(draft: Draft) -> str | None:
    """A gap in the record would be taught as if nothing had happened there."""
    trajectory = draft.trajectory
    if trajectory.status is Status.INCOMPLETE:
        return "incomplete"
    if trajectory.status is Status.FAILED:
        return "failed_record"
    if trajectory.headless:
        return "headless"
    return None if draft.steps else "no_steps"


def _marked(draft: Draft, settings: CurationSettings) -> Draft | str:
    selves = settings.self_training and verified_student(draft)

    def mark(step: DraftStep) -> DraftStep:
        role = step.policy.role
        learn = role in _TEACHERS or (selves and role is PolicyRole.STUDENT)
        return msgspec.structs.replace(step, supervised=learn)

    marked = with_steps(draft, [mark(s) for s in draft.steps])
    if draft.label:  # of a run that failed: what a teacher did in it before is no example
        before = [msgspec.structs.replace(step, supervised=False) for step in marked.steps[:-1]]
        marked = with_steps(draft, [*before, marked.steps[-1]])
    return marked if any(s.supervised for s in marked.steps) else "no_teacher"
