"""What a route says: its teacher, how units are formed and judged, what may be spent."""

from typing import Annotated, Literal

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]
Price = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The section `[routes.<name>]`; the name is the model that callers ask for.

    Args:
        teacher_url: an OpenAI-compatible address, up to and with `/v1`.
        teacher_model: the model's name there.
        teacher_key: name of the environment variable that holds the key; empty sends none.
        price_model: a model whose public price is charged; else the prices below are.
        input_usd_per_mtok: USD per million input tokens,
        output_usd_per_mtok: output tokens,
        cached_usd_per_mtok: and input tokens that the upstream had cached; None charges them as input.
        lineage: whose students the route takes; empty is the route's own name.
        unit: what is assigned to an arm as a whole.
        holdback: 0…1 of the units stay with the teacher for ever.
        outcome_sources: in order of trust; an experiment goes by the first. Without one the route only captures.
        horizon_s: how long an outcome may take, seconds.
        latency_limit_ms: requests over it count as slow.
        max_cost_usd: the most that a trajectory may cost.
        teacher_timeout_s: a teacher that says nothing for longer is given up.
        student_timeout_s: a student that takes longer is replaced by the teacher within the request.
        engine_url: the students' server.
        replica_usd_per_hour: what it costs.
        tenants: who may call the route; empty is everyone with a key.
    """

    teacher_url: str
    teacher_model: str
    teacher_key: str = ""
    price_model: str = ""
    input_usd_per_mtok: Price = 0.0
    output_usd_per_mtok: Price = 0.0
    cached_usd_per_mtok: Price | None = None
    lineage: str = ""
    unit: Literal["trajectory", "conversation", "user"] = "trajectory"
    holdback: Share = 0.02
    outcome_sources: tuple[str, ...] = ("verifier",)
    horizon_s: Positive = 3600.0
    latency_limit_ms: Positive = 30_000.0
    max_cost_usd: Positive = 1.0
    teacher_timeout_s: Positive = 600.0
    student_timeout_s: Positive = 30.0
    engine_url: str = ""
    replica_usd_per_hour: Price = 0.0
    tenants: tuple[str, ...] = ()
