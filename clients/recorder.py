"""What the journal says of one order, from its arrival to its answer.

Each line is on the disk before the answer leaves: where the journal cannot be written, no answer but UNAVAILABLE does.
"""

import re
from typing import Any, get_args

from clients import journal_lines as lines
from clients.journal import Journal
from federation.plan import Reason, TrainPlan
from federation.protocol import (
    CohortOrder,
    CohortReply,
    Heads,
    MapOrder,
    MapPlan,
    MapReply,
    Masked,
    MaskedReply,
    Order,
    Reply,
    RoundOrder,
    RoundReply,
    StatsOrder,
    StatsReply,
)
from federation.release import Event

RULE = re.compile(r"^([a-z0-9_.-]{1,100}): ")  # how a sentence of the policy begins
LEAVES = RoundReply | StatsReply | MapReply | CohortReply | MaskedReply
_WHAT: dict[str, lines.What] = {
    "train": "training",
    "users": "users table",
    "stats": "statistic",
    "map": "map",
    "cohort": "cohort",
}
_TABLES: dict[str, lines.What] = {"tune": "tune table", "test": "test table"}


class Recorder:
    """Writes the lines of one order of Flower's `message_type`."""

    def __init__(self, journal: Journal, message_type: str) -> None:
        self._journal = journal
        kind = message_type.partition(".")[2]
        self._facts: dict[str, Any] = {"order": kind if kind in get_args(lines.OrderType) else "unknown"}
        self._arrived = False

    def arrived(self, order: Order | tuple[Masked, Heads] | None) -> None:
        """The order decoded, or (None) did not."""
        self._arrived = True
        order = order[0] if isinstance(order, tuple) else order
        self._facts |= {} if order is None else _names(order)
        more = {} if order is None else _more(order)
        self._journal.write(lines.Ordered(**self._facts, **more))

    def answered(self, reply: Reply) -> None:
        """The order was permitted, and `reply` is about to leave."""
        if not isinstance(reply, LEAVES) or reply.head is None:
            self._journal.write(lines.Accepted(**self._facts))
            return
        seq, chain = reply.head
        left = tuple(_what(event) for event in reply.releases)
        steps = sum(event.steps for event in reply.releases if event.kind == "train")
        self._journal.write(
            lines.Released(**self._facts, released=left, steps=steps, ledger_seq=seq, ledger_sha256=chain)
        )

    def refused(self, reason: Reason, sentence: str = "") -> None:
        """The order was refused. Of `sentence` only what the policy says is kept: it begins with the rule's key."""
        if not self._arrived:
            self.arrived(None)
        rule = RULE.match(sentence)
        kept = {"rule": rule[1], "sentence": lines.printable(sentence)} if rule else {}
        self._journal.write(lines.Refused(**self._facts, reason=reason, **kept))


def _names(order: Order) -> dict[str, Any]:
    """What identifies an order."""
    plan = order if isinstance(order, TrainPlan | MapPlan) else getattr(order, "plan", None)
    if plan is None:  # lists and openings name their run alone
        run_id = str(getattr(order, "run_id", ""))
        return {"run_id": run_id} if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", run_id) else {}
    order_id = order.order_id if isinstance(order, RoundOrder | MapOrder) else ""
    order_id = order.plan.order_id if isinstance(order, StatsOrder | CohortOrder) else order_id
    return {"run_id": plan.run_id, "plan_sha256": plan.sha256, "order_id": lines.printable(order_id)}


def _more(order: Order) -> dict[str, Any]:
    plan = order if isinstance(order, TrainPlan | MapPlan) else getattr(order, "plan", None)
    facts = {} if plan is None else {"experiment": plan.experiment, "purpose": plan.purpose}
    if isinstance(plan, TrainPlan) and plan.registration is not None:
        facts["registration"] = plan.registration.digest
    if isinstance(plan, TrainPlan) and plan.retest is not None:
        facts["retest_of"] = plan.retest.of
    return facts | ({"round": max(0, order.round)} if isinstance(order, RoundOrder) else {})


def _what(event: Event) -> lines.What:
    return _TABLES[event.part] if event.kind == "evaluate" else _WHAT[event.kind]
