"""Stage `success`: the source's own word on how it ended, never a guess from the reward. A label has no end to judge."""

from collections.abc import Sequence

from stillhouse.schemas.events import Outcome
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.stage import StageResult, decide
from stillhouse.trainer.settings import CurationSettings


def success(drafts: Sequence[Draft], settings: CurationSettings) -> StageResult:
    """Keep successes and labels; what nobody judged is `no_outcome`, unless the settings say to keep it."""

    def reason(draft: Draft) -> str | None:
        outcome = draft.trajectory.outcome
        if draft.label or outcome is Outcome.SUCCESS or (outcome is Outcome.UNKNOWN and settings.unlabelled == "keep"):
            return None
        return "no_outcome" if outcome is Outcome.UNKNOWN else outcome.value

    labels = sum(draft.label for draft in drafts)
    return decide("success", drafts, reason, {"labels": labels} if labels else None)
