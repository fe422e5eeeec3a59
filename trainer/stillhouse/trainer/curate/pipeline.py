"""Curation from end to end: side, source, success, standardise, prune, efficiency, compress, dedupe, weight, fit."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.ledger import Batch, LeaderLedger, tasks_of
from stillhouse.schemas.trajectory import Trajectory
from stillhouse.trainer.curate.compress import ActionLoss, compress
from stillhouse.trainer.curate.counting import Counter
from stillhouse.trainer.curate.dedupe import dedupe
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.draw import NEW, Quota, draw
from stillhouse.trainer.curate.efficiency import efficiency
from stillhouse.trainer.curate.fit import Fitted, fit
from stillhouse.trainer.curate.prune import Replay, prune
from stillhouse.trainer.curate.side import held_out_notes, placed, side
from stillhouse.trainer.curate.source import source
from stillhouse.trainer.curate.stage import StageResult
from stillhouse.trainer.curate.standardise import standardise
from stillhouse.trainer.curate.success import success
from stillhouse.trainer.curate.weight import rescale, weight
from stillhouse.trainer.examples import Example, Side
from stillhouse.trainer.ledger_histograms import StepHistograms, histograms_of
from stillhouse.trainer.settings import CurationSettings
from stillhouse.trainer.waterfall import StageYield, Waterfall

Report = Callable[[str, int], None]
"""Told of each stage that ends: its name, and how many trajectories it kept."""


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What curation may use beside its inputs: all optional, all injected."""

    replay: Replay | None = None
    action_loss: ActionLoss | None = None
    report: Report | None = None


class Curated(msgspec.Struct, frozen=True, kw_only=True):
    """What a window became.

    Attributes:
        train: examples, by key and step.
        validation: examples of the validation side.
        waterfall: what each stage kept and dropped; carries the manifest hash.
        ledger: the ledger with this window's tasks.
        added: what the window added to it.
        histograms: what this window adds to the lineage's.
        reasons: for each trajectory that is not trained on, stage and reason.
        returned: keys that were not drawn and go back to the pool.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    waterfall: Waterfall
    ledger: LeaderLedger
    added: tuple[Batch, ...]
    histograms: StepHistograms
    reasons: dict[str, tuple[str, str]]
    returned: frozenset[str]

    @property
    def manifest_hash(self) -> str:
        """Hash (hex) of inputs, settings and results: the same whatever order the trajectories came in."""
        return self.waterfall.manifest_hash


def curate(
    trajectories: Sequence[Trajectory],
    ledger: LeaderLedger,
    settings: CurationSettings,
    counter: Counter,
    *,
    histograms: StepHistograms | None = None,
    again: Iterable[str] = (),
    quota: Quota | None = None,
    tools: Tools | None = None,
) -> Curated:
    """Turn trajectories into examples. Pure: the same inputs give the same result in any order.

    Args:
        trajectories: the window's, each key once.
        ledger: the leader ledger before this window.
        settings: every rule's numbers.
        counter: the student's view.
        histograms: steps of the lineage's teacher successes before this window.
        again: keys that the lineage trained on before.
        quota: how many to draw; None takes all.
        tools: environment, parent and progress, where there are any.
    """
    tools = tools or Tools()
    known = ledger.assign(tasks_of(trajectories))
    drafts = placed(trajectories, known, frozenset(again))
    flow = _Flow(drafts, tools.report)
    train, own, total = _train(flow, histograms or StepHistograms(), settings, counter, quota, tools)
    held, validation = _validation(drafts, settings, counter, tools, flow.notes("compress").get("off", ()))
    waterfall = _waterfall(trajectories, flow, train, held, validation)
    parts = (_plain(settings), counter.identity, quota, total, [_input(d) for d in drafts], train, validation, waterfall)
    # The notes are not hashed: they look at tasks that others may have placed since.
    waterfall = msgspec.structs.replace(waterfall, manifest_hash=_hash(parts), notes=held_out_notes(drafts, known))
    waterfall.check()
    returned = frozenset(k for k, (stage, why) in flow.reasons.items() if (stage, why) == ("draw", NEW))
    return Curated(
        train=train,
        validation=validation,
        waterfall=waterfall,
        ledger=known,
        added=known.added(ledger),
        histograms=own,
        reasons=flow.reasons,
        returned=returned,
    )


class _Flow:
    """Trajectories between two stages, and the accounts so far."""

    def __init__(self, drafts: Sequence[Draft], report: Report | None = None) -> None:
        self.drafts = tuple(drafts)
        self.stages: tuple[StageYield, ...] = ()
        self.reasons: dict[str, tuple[str, str]] = {}
        self._report = report

    def run(self, stage: Callable[[Sequence[Draft]], StageResult]) -> None:
        """Run one stage and enter it into the accounts."""
        result = stage(self.drafts)
        done = StageYield(name=result.name, entered=len(self.drafts), kept=len(result.kept), dropped=result.dropped, notes=result.notes)
        self.stages = (*self.stages, done)
        self.reasons |= {key: (result.name, why) for key, why in result.gone.items()}
        self.drafts = result.kept
        if self._report is not None:
            self._report(result.name, len(result.kept))

    def notes(self, stage: str) -> Mapping[str, Any]:
        """What a stage that was run said of itself."""
        return next(s.notes for s in self.stages if s.name == stage)


def _train(
    flow: _Flow, before: StepHistograms, settings: CurationSettings, counter: Counter, quota: Quota | None, tools: Tools
) -> tuple[tuple[Example, ...], StepHistograms, StepHistograms]:
    """All stages of the training side: its examples, the window's histograms, and the lineage's with them."""
    flow.run(lambda d: side(d))
    _each(flow, settings, tools)
    own = histograms_of(flow.drafts)
    total = before.plus(own)
    flow.run(lambda d: efficiency(d, total, settings))
    flow.run(lambda d: compress(d, settings, counter, tools.action_loss))
    flow.run(lambda d: dedupe(d, settings))
    if quota is not None:
        flow.run(lambda d: draw(d, quota, settings.seed))
    flow.run(lambda d: weight(d, total, settings))
    return _weighed(flow, settings, counter, tools), own, total


def _waterfall(
    trajectories: Sequence[Trajectory], flow: _Flow, train: Sequence[Example], held: _Flow, validation: Sequence[Example]
) -> Waterfall:
    return Waterfall(
        events=sum(t.revision for t in trajectories),
        trajectories=len(trajectories),
        stages=flow.stages,
        kept=len(flow.drafts),
        examples=len(train),
        supervised_tokens=sum(e.tokens for e in train),
        validation=held.stages,
        validation_examples=len(validation),
    )


def _each(flow: _Flow, settings: CurationSettings, tools: Tools) -> None:
    """The stages that look at one trajectory at a time."""
    flow.run(lambda d: source(d, settings))
    flow.run(lambda d: success(d, settings))
    flow.run(standardise)
    flow.run(lambda d: prune(d, settings, tools.replay))


def _weighed(flow: _Flow, settings: CurationSettings, counter: Counter, tools: Tools) -> tuple[Example, ...]:
    """The examples of what is left, with weights whose mean over supervised tokens is one."""
    fitted = fit(flow.drafts, settings, counter, tools.replay)
    tokens = {key: sum(e.tokens for e in some) for key, some in fitted.examples.items()}
    final, notes = rescale(fitted.result.kept, tokens, settings)
    flow.run(lambda _: fitted.result._replace(kept=tuple(final), notes={**fitted.result.notes, **notes}))
    weights = {d.key: d.weight for d in final}
    return tuple(msgspec.structs.replace(e, weight=weights[e.key]) for e in _examples(fitted))


def _validation(
    drafts: Sequence[Draft], settings: CurationSettings, counter: Counter, tools: Tools, whole: Collection[str]
) -> tuple[_Flow, tuple[Example, ...]]:
    """The validation side, without the stages that select by effort: it measures what the teacher does, not the best of it.

    `whole` are the families whose reasoning the training side did not compress.
    """
    flow = _Flow([d for d in drafts if d.side is Side.VALIDATION])
    _each(flow, settings, tools)
    flow.run(lambda d: compress(d, settings, counter, off=whole))
    flow.run(lambda d: dedupe(d, settings))
    fitted = fit(flow.drafts, settings, counter, tools.replay)
    flow.run(lambda _: fitted.result)
    return flow, _examples(fitted)


def _examples(fitted: Fitted) -> tuple[Example, ...]:
    return tuple(e for d in fitted.result.kept for e in fitted.examples[d.key])


def _input(draft: Draft) -> tuple[Any, ...]:
    t = draft.trajectory
    return (t.key, t.revision, t.content, draft.again, draft.side, draft.leader)


def _plain(settings: CurationSettings) -> dict[str, Any]:
    """The curation settings alone, of a section that has more."""
    return {name: getattr(settings, name) for name in CurationSettings.__struct_fields__}


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(value, str_keys=True), order="deterministic")).hexdigest()
