"""Efficiency, dedupe, draw and weight: who is kept, and how much each counts."""

import math
from collections import Counter
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.events import Outcome, Policy, PolicyRole
from stillhouse.trainer.curate.dedupe import dedupe
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.draw import Quota, draw, shares
from stillhouse.trainer.curate.efficiency import efficiency
from stillhouse.trainer.curate.stage import StageResult
from stillhouse.trainer.curate.weight import rescale, weight
from stillhouse.trainer.ledger_histograms import StepHistograms, histograms_of, median, stratum
from stillhouse.trainer.settings import CurationSettings
from tests.trainer.curation_factory import STUDENT, call, drafted, reply, run

S = CurationSettings()


def of_steps(count: int, name: str, family: str = "cancel", *, again: bool = False, end: str = "cancel", **more: object) -> Draft:
    steps = [call("look", {"x": "y9"}, id="41")] * (count - 2) + [call(end, {"ok": True}, id="41"), reply("Done.")]
    fields: dict[str, object] = {"task": name, **more}
    return drafted(run(*steps, name=name, family=family, **fields), again=again, leader=name)  # type: ignore[arg-type]


def kept(result: StageResult) -> list[str]:
    return [d.trajectory.trajectory_id for d in result.kept]


def efficient(drafts: list[Draft], settings: CurationSettings = S, before: StepHistograms | None = None) -> StageResult:
    return efficiency(drafts, (before or StepHistograms()).plus(histograms_of(drafts)), settings)


def test_below_the_median_of_the_stratum() -> None:
    result = efficient([of_steps(n, f"r{n}") for n in range(3, 15)])
    assert kept(result) == [f"r{n}" for n in range(3, 9)]
    assert result.dropped == {"not_below_median": 6}


def test_the_short_way_out_does_not_crowd_out_the_work() -> None:
    work = [of_steps(5 + i % 2, f"w{i}") for i in range(10)]
    out = [of_steps(3, f"o{i}", end="refund") for i in range(20)]
    assert Counter(k[0] for k in kept(efficient(work + out))) == {"w": 5, "o": 20}


def test_ties_are_kept_when_fewer_than_half_would_remain() -> None:
    drafts = [of_steps(4, f"r{i}") for i in range(10)] + [of_steps(9, "long")]
    assert "long" not in kept(efficient(drafts)) and len(efficient(drafts).kept) == 10


def test_a_small_stratum_has_no_median() -> None:
    assert len(efficient([of_steps(n, f"r{n}") for n in range(3, 10)]).kept) == 7


def test_the_last_five_of_a_stratum_stay() -> None:
    before = histograms_of([of_steps(3, f"old{i}") for i in range(20)])
    assert kept(efficient([of_steps(n, f"r{n}") for n in range(9, 3, -1)], before=before)) == ["r8", "r7", "r6", "r5", "r4"]


def test_mixed_and_replayed_runs_are_neither_counted_nor_judged() -> None:
    steps = [call("look", {"x": "y9"}, id="41", policy=STUDENT)] * 20 + [call("cancel", {"ok": True}, id="41")]
    mixed, again = drafted(run(*steps, name="mixed")), of_steps(30, "again", again=True)
    failed = of_steps(3, "unjudged", outcome=Outcome.UNKNOWN)
    drafts = [of_steps(n, f"r{n}") for n in range(3, 11)]
    assert histograms_of([*drafts, mixed, again, failed]) == histograms_of(drafts)
    assert {"mixed", "again"} <= set(kept(efficient([*drafts, mixed, again])))


def test_both_orders_are_counted_and_either_can_decide() -> None:
    drafts = [msgspec.structs.replace(of_steps(n, f"r{n}"), raw_steps=100 - n) for n in range(3, 11)]
    after = efficient(drafts)
    before = efficient(drafts, CurationSettings(order="filter_first", stratum_least=1))
    assert after.notes == {"order": "prune_first", "kept_prune_first": 5, "kept_filter_first": 5}
    assert (kept(after), kept(before)) == (["r3", "r4", "r5", "r6", "r7"], ["r7", "r8", "r9", "r10"])


def test_medians_come_from_integer_histograms() -> None:
    assert median({3: 1, 4: 1}) == Fraction(7, 2) and median({3: 2, 9: 1}) == 3
    summed = StepHistograms(raw={"a": {3: 1}}).plus(StepHistograms(raw={"a": {3: 2}, "b": {1: 1}}))
    assert summed.raw == {"a": {3: 3}, "b": {1: 1}}
    assert stratum("f", ["b", "a", "b"]) == stratum("f", ["a", "b"]) != stratum("f,a", ["b"])


def test_one_of_a_task_and_plan_the_most_efficient() -> None:
    drafts = [of_steps(4, "a", task="t"), of_steps(4, "b", task="t"), of_steps(5, "c", task="t"), of_steps(4, "d", task="other")]
    cheap = msgspec.structs.replace(drafts[1], steps=tuple(msgspec.structs.replace(s, output_tokens=1) for s in drafts[1].steps))
    assert kept(dedupe([drafts[0], cheap, *drafts[2:]], S)) == ["b", "c", "d"]


def test_a_leader_has_three_different_plans_first() -> None:
    plans = [of_steps(3, "a"), of_steps(3, "b"), of_steps(3, "c"), of_steps(5, "d"), of_steps(6, "e")]
    result = dedupe([msgspec.structs.replace(d, leader="l") for d in plans], S)
    assert kept(result) == ["a", "d", "e"] and result.dropped == {"leader_full": 2}


def test_what_was_trained_on_keeps_its_place() -> None:
    old, new = of_steps(9, "old", task="t", again=True), of_steps(9, "new", task="t")
    assert kept(dedupe([new, old], S)) == ["old"]


def test_weights_favour_the_short_within_their_bounds() -> None:
    drafts = [of_steps(n, f"r{n}") for n in (3, 6, 30)]
    result = weight(drafts, histograms_of(drafts), S)
    assert [d.weight for d in result.kept] == [2.0, 1.0, 0.5]
    flat = weight(drafts, histograms_of(drafts), CurationSettings(gamma=0.0))
    assert {d.weight for d in flat.kept} == {1.0}


def by(model: str, name: str, tenant: str = "shop", role: PolicyRole = PolicyRole.TEACHER, w: float = 1.0) -> Draft:
    policy = Policy(role=role, model=model)
    settings = CurationSettings(self_training=True)
    draft = drafted(run(reply("Hi.", policy=policy), name=name, tenant=tenant, outcome_source="verifier"), settings)
    return msgspec.structs.replace(draft, weight=w)


DRAWN = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.floats(0.5, 2.0), st.integers(1, 500)), min_size=1, max_size=30
)


@given(DRAWN, st.sampled_from([0.4, 0.5, 0.8, 1.0]), st.sampled_from([0.4, 0.6, 1.0]))
def test_the_mean_weight_of_a_token_is_one_and_caps_hold(rows: list[tuple[str, str, float, int]], tenants: float, sources: float) -> None:
    drafts = [by(model, f"r{i}", tenant, w=w) for i, (model, tenant, w, _) in enumerate(rows)]
    tokens = {d.key: n for d, (_, _, _, n) in zip(drafts, rows, strict=True)}
    final, notes = rescale(drafts, tokens, CurationSettings(tenant_cap=tenants, source_cap=sources))
    total = sum(tokens.values())
    assert math.isclose(sum(d.weight * tokens[d.key] for d in final), total, rel_tol=1e-9)
    unmet = notes.get("caps_not_met", [])
    if "source" not in unmet:  # the last cap holds exactly; an earlier one may give way to it where both cannot hold
        assert _greatest(final, tokens, [m for m, *_ in rows]) <= sources * total * (1 + 1e-6)
    if "tenant" not in unmet and sources == 1.0:
        assert _greatest(final, tokens, [t for _, t, *_ in rows]) <= tenants * total * (1 + 1e-6)


def _greatest(drafts: list[Draft], tokens: dict[str, int], groups: list[str]) -> float:
    mass: Counter[str] = Counter()
    for draft, group in zip(drafts, groups, strict=True):
        mass[group] += draft.weight * tokens[draft.key]  # type: ignore[assignment]
    return max(mass.values())


def test_a_cap_that_cannot_be_met_is_said() -> None:
    drafts = [by("m", "a"), by("m", "b")]
    final, notes = rescale(drafts, {d.key: 10 for d in drafts}, CurationSettings(tenant_cap=0.5))
    assert notes == {"caps_not_met": ["tenant"]} and [d.weight for d in final] == [1.0, 1.0]


def test_students_have_at_most_their_share_of_the_weight() -> None:
    drafts = [by("big", "a"), *(by("small", f"s{i}", role=PolicyRole.STUDENT) for i in range(9))]
    final, _ = rescale(drafts, {d.key: 10 for d in drafts}, CurationSettings(self_training=True))
    assert math.isclose(sum(d.weight for d in final[1:]), 0.2 * 10) and math.isclose(final[0].weight, 8.0)


def test_a_draw_takes_the_oldest_of_each_family_by_weight_and_replays_uniformly() -> None:
    new = [of_steps(3, f"{f}{i}", family=f, at=i) for f in ("a", "b", "c") for i in range(20)]
    old = [of_steps(3, f"o{f}{i}", family=f, again=True) for f, n in (("a", 30), ("b", 3)) for i in range(n)]
    result = draw([*new, *old], Quota(size=10, weights={"a": 0.3, "b": 1.3, "c": 0.4}, replay=0.8), 1)
    assert result.notes == {"new": {"a": 2, "b": 6, "c": 2}, "replayed": {"a": 5, "b": 3}}
    assert {"a0", "a1", "b0", "b5"} <= set(kept(result))
    assert result.dropped == {"over_quota": 50, "not_replayed": 25}


def test_a_family_is_drawn_by_its_plans_as_the_pool_has_them() -> None:
    """The first to come all escalated; a third of the pool did a refund."""
    early = [of_steps(3, f"e{i}", end="escalate", at=i) for i in range(12)]
    late = [of_steps(3, f"r{i}", end="refund", at=100 + i) for i in range(6)]
    drawn = kept(draw([*early, *late], Quota(size=9, weights={"cancel": 1.0}), 1))
    assert drawn == [f"e{i}" for i in range(6)] + [f"r{i}" for i in range(3)]


@given(
    st.integers(0, 60),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 20), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.0, 2.0)),
)
def test_shares_spend_all_that_is_there(total: int, available: dict[str, int], weights: dict[str, float]) -> None:
    given_ = shares(total, weights, available)
    assert sum(given_.values()) == min(total, sum(available.values()))
    assert all(given_[f] <= n for f, n in available.items())


@pytest.mark.parametrize("size", [None, 3])
def test_without_weights_a_draw_goes_by_time(size: int | None) -> None:
    drafts = [of_steps(3, f"r{i}", family=str(i % 2), at=10 - i) for i in range(5)]
    assert kept(draw(drafts, Quota(size=size), 1)) == [f"r{i}" for i in range(5)][-(size or 5) :]
