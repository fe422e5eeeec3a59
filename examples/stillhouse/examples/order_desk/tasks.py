"""Tasks of the order desk: made from a seed, the same on every machine, never one task in two parts.

A task's content decides its id, so curation's ledger meets the same task under the same name in every run.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec

from stillhouse.examples.order_desk.entities import SEEN, UNSEEN, Entities
from stillhouse.examples.order_desk.wordings import OTHER, USUAL, Wordings
from stillhouse.schemas.errors import UsageError

Part = Literal["train", "validation", "seen", "unseen", "rephrased"]
OrderStatus = Literal["processing", "shipped", "delivered", "cancelled"]
PARTS: tuple[Part, ...] = get_args(Part)

# family -> status that its order must have for the family's policy to be the right one
TARGET_STATUS: dict[str, OrderStatus] = {
    "cancel": "processing",
    "address": "processing",
    "refund": "delivered",
    "cancel_shipped": "shipped",
    "replace": "delivered",
    "address_shipped": "shipped",
    "combo": "processing",
    "lost": "shipped",
}
FAMILIES: tuple[str, ...] = tuple(TARGET_STATUS)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One order as it stands when the customer writes. `total` is in whole dollars; `location` is what tracking shows once shipped."""

    id: str
    item: str
    status: OrderStatus
    total: int
    location: Literal["van", "lost"]


class Effect(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One change that a tool made: the tool, the order and the tool's further argument (amount or address), if it has one."""

    tool: str
    order_id: str
    detail: str = ""


class DeskTask(msgspec.Struct, frozen=True, kw_only=True):
    """One customer's message and the shop behind it.

    Attributes:
        instruction: all that a policy is told.
        want: the effects that count as success; only `Desk.verify` and `clean_trajectory` read them.
    """

    id: str
    family: str
    part: Part
    instruction: str
    email: str
    member_since: int
    orders: tuple[Order, ...]
    want: tuple[Effect, ...]


def make_tasks(
    part: Part, count: int, seed: int, families: Sequence[str] | None = None, weights: Mapping[str, float] | None = None, name: str = ""
) -> list[DeskTask]:
    """`count` tasks of one part. Task i depends on (seed, part, name, i) and its family only: more tasks never change the first ones.

    Args:
        part: who may be in the tasks and how they are worded (docs/order-desk.md).
        count: how many.
        seed: the run's seed.
        families: families to take, in turn; all eight when None.
        weights: family -> weight; families are then drawn instead of taken in turn. A family that is not named has weight 0.
        name: a stream of its own (for example `window-2`), so that two callers with one seed get different tasks.

    Raises:
        UsageError: a part or family that does not exist, weights without a positive sum.
    """
    if part not in PARTS:
        raise UsageError(f"no such part: {part}", where="make_tasks", fix=f"One of: {', '.join(PARTS)}.")
    chosen = tuple(families if families is not None else FAMILIES)
    unknown = sorted((set(chosen) | set(weights or ())) - set(FAMILIES))
    if unknown or not chosen:
        raise UsageError(
            f"no such task family: {', '.join(unknown) or '(none given)'}", where="make_tasks", fix=f"Of: {', '.join(FAMILIES)}."
        )
    shares = [weights.get(family, 0.0) for family in chosen] if weights is not None else None
    if shares is not None and (min(shares) < 0 or sum(shares) <= 0):
        raise UsageError("family weights must not be negative and need a positive sum", where="make_tasks", fix="Give a family a weight.")
    tasks = []
    for index in range(count):
        rng = random.Random(f"order-desk/{seed}/{part}/{name}/{index}")
        family = rng.choices(chosen, shares)[0] if shares is not None else chosen[index % len(chosen)]
        tasks.append(_make_task(part, family, rng))
    return tasks


def _make_task(part: Part, family: str, rng: random.Random) -> DeskTask:
    entities = UNSEEN if part in ("unseen", "rephrased") else SEEN
    wordings = OTHER if part == "rephrased" else USUAL
    email = _email(part, entities, rng)
    orders = list(_orders(entities, 2 if family in ("combo", "lost") else rng.choice((2, 2, 3)), rng))
    target = rng.randrange(len(orders))
    orders[target] = msgspec.structs.replace(orders[target], status=TARGET_STATUS[family])
    other = (target + 1) % len(orders)
    if family == "combo":
        orders[other] = msgspec.structs.replace(orders[other], status="processing")
    address = f"{rng.randint(1, 99)} {rng.choice(entities.streets)} Street, {rng.choice(entities.cities)}"
    instruction = _word(wordings, family, orders[target].item, orders[other].item, address, email, rng)
    task = DeskTask(
        id="",
        family=family,
        part=part,
        instruction=instruction,
        email=email,
        member_since=rng.randint(2008, 2024),
        orders=tuple(orders),
        want=_wanted(family, orders[target], orders[other], address),
    )
    digest = hashlib.sha256(msgspec.json.encode(task)).hexdigest()[:12]
    return msgspec.structs.replace(task, id=f"desk-{part}-{family}-{digest}")


def _email(part: Part, entities: Entities, rng: random.Random) -> str:
    """A customer who belongs to this part: `seen` has customers that training never meets, of names that it does."""
    while True:
        email = f"{rng.choice(entities.first)}.{rng.choice(entities.last)}@{rng.choice(entities.domains)}".lower()
        if entities is UNSEEN or customer_part(email) == part:
            return email


def customer_part(email: str) -> Part:
    """The part of a customer of the training pool, by a hash of the address: 70 % train, 10 % validation, 20 % seen."""
    bucket = hashlib.sha256(email.encode()).digest()[0] % 10
    return "train" if bucket < 7 else "validation" if bucket == 7 else "seen"


def _orders(entities: Entities, count: int, rng: random.Random) -> list[Order]:
    items: list[str] = []
    while len(items) < count:
        item = f"{rng.choice(entities.colours)} {rng.choice(entities.items)}"
        if item not in items:
            items.append(item)
    return [
        Order(
            id=str(number),
            item=item,
            status=rng.choice(("processing", "shipped", "delivered")),
            total=rng.randint(10, 99),
            location=rng.choice(("van", "lost")),
        )
        # from 3000 on, so that no id reads like a year
        for number, item in zip(rng.sample(range(3000, 10000), count), items, strict=True)
    ]


def _word(wordings: Wordings, family: str, item: str, other: str, address: str, email: str, rng: random.Random) -> str:
    ask = rng.choice(wordings.asks[family.removesuffix("_shipped")]).format(item=item, other=other, address=address)
    return rng.choice(wordings.frames).format(ask=ask, email=email)


def _wanted(family: str, order: Order, other: Order, address: str) -> tuple[Effect, ...]:
    refund = Effect(tool="refund", order_id=order.id, detail=str(order.total))
    cancel = Effect(tool="cancel", order_id=order.id)
    escalate = Effect(tool="escalate", order_id=order.id)
    wanted: dict[str, tuple[Effect, ...]] = {
        "cancel": (cancel,),
        "address": (Effect(tool="set_address", order_id=order.id, detail=address),),
        "refund": (refund,),
        "cancel_shipped": (Effect(tool="open_return", order_id=order.id),),
        "replace": (Effect(tool="replace", order_id=order.id),),
        "address_shipped": (escalate,),
        "combo": (cancel, Effect(tool="set_address", order_id=other.id, detail=address)),
        "lost": (refund if order.location == "lost" else escalate,),
    }
    return wanted[family]
