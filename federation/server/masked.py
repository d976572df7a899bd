"""A round behind masks: set up keys once, then collect, agree on who survived, open, and read one sum.

The coordinator never holds anything that says what one agency sent: see `federation.secagg`. Every failure
leaves a void round, whose charges stay; the next one is a new draw.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from federation import secagg, wire
from federation.experiment import Experiment
from federation.plan import Reason, TrainPlan
from federation.protocol import (
    AgreeOrder,
    DealOrder,
    Dealt,
    Keys,
    KeysOrder,
    MapOrder,
    MaskedReply,
    Opened,
    OpenOrder,
    RoundOrder,
    Sealed,
    Signed,
    Weights,
)
from federation.release import SharedRelease
from federation.secagg import Roster, UnmaskError
from federation.server.exchange import (
    NOT_A_REPLY,
    Federation,
    Round,
    answers,
    held_masks,
    table_shape,
    too_few,
)
from federation.server.strategies import Update
from models import risk
from models.features import layout

ATTEMPTS = 3  # to deal keys when an agency fails half way


class SetUpError(ValueError):
    """No keys: one sentence says which agencies are missing."""


@dataclass
class Session:
    """One set-up of keys. `sealed[giver][receiver]` are a giver's encrypted shares, one for each draw."""

    roster: Roster
    sealed: Mapping[str, Mapping[str, tuple[Sealed, ...]]]
    next_draw: int = 0
    broken: bool = (
        False  # the last draw was void, or someone has lost its keys: whoever is back gets new ones
    )

    @property
    def is_spent(self) -> bool:
        """Whether another set-up is needed before the next draw."""
        return self.broken or self.next_draw >= self.roster.draws


def set_up(grid: Grid, experiment: Experiment, federation: Federation, draws: int) -> Session:
    """Keys for `draws` masked vectors, dealt among all agencies that answer; `SetUpError` where too few do."""
    plan = federation.plan
    circle = plan.circle
    assert circle is not None  # noqa: S101 - the caller's case
    without: set[str] = set()
    for _ in range(ATTEMPTS):
        nodes = {n: i for n, i in federation.nodes.items() if n in circle.agencies and n not in without}
        order = KeysOrder(plan, draws, dict(federation.heads))
        asked = {name: wire.pack_keys_order(order, node) for name, node in nodes.items()}
        found = answers(grid, experiment, federation, asked, Round())
        adverts = tuple(
            r.advert for n, (_, r) in found.items() if isinstance(r, Keys) and r.advert.agency == n
        )
        if len(adverts) < circle.threshold:
            break
        roster = Roster(plan.run_id, plan.sha256, circle.threshold, adverts)
        deal = DealOrder(plan, adverts)
        orders = {name: wire.pack_deal_order(deal, nodes[name]) for name in roster.names}
        dealt = answers(grid, experiment, federation, orders, Round())
        sealed = {n: r.sealed for n, (_, r) in dealt.items() if isinstance(r, Dealt) and _is_whole(r, roster)}
        if set(sealed) == set(roster.names):
            return Session(roster, sealed)
        without = set(circle.agencies) - set(sealed)
    raise SetUpError(too_few(experiment, federation, "the set-up of masks"))


def _is_whole(dealt: Dealt, roster: Roster) -> bool:
    return set(dealt.sealed) == set(roster.names) and {len(s) for s in dealt.sealed.values()} == {
        roster.draws
    }


def ask(
    grid: Grid,
    experiment: Experiment,
    federation: Federation,
    session: Session,
    order: RoundOrder,
    *,
    last: bool,
) -> Round:
    """One draw: `order` to every member of the set-up that is in the run, and the sum of those who survive."""
    got = Round()
    order = replace(order, draw=session.next_draw, transcript=session.roster.transcript)
    asked = wire.pack_round_orders(order, _members(federation, session))
    talk = _Talk(grid, experiment, federation, session)
    found = talk.sum(order, asked, lambda reply: _fits(reply, order), got, last=last)
    if found is not None:
        _read_sum(experiment, order, *found, got)
    return got


def ask_map(
    grid: Grid,
    experiment: Experiment,
    federation: Federation,
    session: Session,
    order: MapOrder,
    got: Round,
) -> np.ndarray | None:
    """The sum of the counts of those who survive, int64, in grid steps; None where the draw is void, and `got` says why."""
    order = replace(order, draw=session.next_draw, transcript=session.roster.transcript)
    asked = {name: wire.pack_map_order(order, node) for name, node in _members(federation, session).items()}
    talk = _Talk(grid, experiment, federation, session)
    found = talk.sum(order, asked, lambda reply: _is_of_map(reply, order), got, last=True)
    return None if found is None else found[0]


def _members(federation: Federation, session: Session) -> dict[str, int]:
    return {name: node for name, node in federation.nodes.items() if name in session.roster.names}


@dataclass(frozen=True)
class _Talk:
    """Who is asked for a masked sum, and how."""

    grid: Grid
    experiment: Experiment
    federation: Federation
    session: Session

    def sum(
        self,
        order: RoundOrder | MapOrder,
        asked: Mapping[str, Message],
        fits: Callable[[MaskedReply], bool],
        got: Round,
        *,
        last: bool,
    ) -> tuple[np.ndarray, Message | None] | None:
        """The sum of the vectors of one draw, and some agency's message; None where it is void, and `got` says why."""
        session = self.session
        session.next_draw += 1
        vectors, first, total = {}, None, None
        found = answers(self.grid, self.experiment, self.federation, asked, got)
        for name, (message, reply) in found.items():
            first = first or message
            if isinstance(reply, MaskedReply) and reply.agency == name and fits(reply):
                vectors[name] = reply.vector
                self.federation.saw({name: reply.head})
            else:
                got.rejected[name] = NOT_A_REPLY
        got.replied = sorted(vectors)
        if len(vectors) < session.roster.threshold:
            got.void = f"{len(vectors)} agencies sent a masked vector, {session.roster.threshold} are needed"
        else:
            try:
                total = _unmask(self.grid, self.experiment, self.federation, session, order, vectors, last)
            except UnmaskError as error:
                got.void = str(error)
        session.broken = got.void is not None or Reason.MASKS.value in got.refused.values()
        return None if total is None else (total, first)


def _is_of_map(reply: MaskedReply, order: MapOrder) -> bool:
    circle = order.plan.circle
    assert circle is not None  # noqa: S101 - only asked behind masks
    of_type = reply.vector.dtype == np.dtype(f"uint{circle.bits}")
    return bool(of_type and reply.vector.shape == (circle.numbers,) and reply.releases == order.releases)


def _fits(reply: MaskedReply, order: RoundOrder) -> bool:
    shared = order.plan.privacy.shared
    assert shared is not None  # noqa: S101 - only asked behind masks
    length = sum(_cells(order, table) for table in order.tables) + order.train * shared.parameters
    of_type = reply.vector.dtype == np.dtype(f"uint{shared.bits}")
    return bool(of_type and reply.vector.shape == (length,) and reply.releases == order.releases)


def _cells(order: RoundOrder, table: str) -> int:
    """How many numbers a table of the order has."""
    shared, users = order.plan.privacy.shared, order.plan.users
    assert shared is not None  # noqa: S101 - only asked behind masks
    return users.cells if table == "users" and users is not None else shared.cells


def _unmask(
    grid: Grid,
    experiment: Experiment,
    federation: Federation,
    session: Session,
    order: RoundOrder | MapOrder,
    vectors: Mapping[str, np.ndarray],
    last: bool,
) -> np.ndarray:
    """The sum of `vectors`, once their senders have signed the list of themselves; `UnmaskError` if they do not."""
    assert order.draw is not None  # noqa: S101 - `ask` sets it
    survivors = tuple(sorted(vectors))
    nodes = {name: federation.nodes[name] for name in survivors}
    of_draw = (order.plan.run_id, session.roster.transcript, order.draw, survivors)
    agree = AgreeOrder(*of_draw)
    orders = {name: wire.pack_agree_order(agree, node) for name, node in nodes.items()}
    signed = answers(grid, experiment, federation, orders, Round())
    signatures = {name: r.signature for name, (_, r) in signed.items() if isinstance(r, Signed)}
    if len(signatures) < session.roster.threshold:
        raise UnmaskError(
            f"{len(signatures)} agencies signed the list of survivors, {session.roster.threshold} are needed"
        )
    orders = {}
    for name in signatures:
        sealed = {giver: session.sealed[giver][name][order.draw] for giver in session.roster.names}
        orders[name] = wire.pack_open_order(OpenOrder(*of_draw, signatures, sealed, last), nodes[name])
    found = answers(grid, experiment, federation, orders, Round())
    opened = {name: reply.shares for name, (_, reply) in found.items() if isinstance(reply, Opened)}
    total = np.zeros_like(next(iter(vectors.values())))
    for vector in vectors.values():
        total += vector
    return secagg.unmask(total, session.roster, order.draw, survivors, opened)


def _read_sum(
    experiment: Experiment, order: RoundOrder, total: np.ndarray, message: Message | None, got: Round
) -> None:
    """The tables, then the gradient, of all survivors together."""
    plan = order.plan
    shared = plan.privacy.shared
    assert shared is not None  # noqa: S101 - only asked behind masks
    start = 0
    for table in order.tables:
        stop = start + _cells(order, table)
        counts = (total[start:stop] / shared.steps_per_person).reshape(
            table_shape(experiment.data_contract, plan, table)
        )
        got.tables[table] = {together(len(got.replied)): counts}
        start = stop
    if order.train and message is not None:
        sums = total[start:] * (plan.privacy.max_grad_norm / shared.steps_per_norm)
        delta = _step(experiment, order, sums, got.replied)
        got.updates = [Update(message, delta, 1.0, {})]


def _step(experiment: Experiment, order: RoundOrder, sums: np.ndarray, survivors: list[str]) -> Weights:
    """-lr (sum / L + decay w): L is q x the declared number of people of the survivors that hold a coordinate.

    `sums` is in the model's order, as nodes have it; weights that were read from a checkpoint are in another.
    """
    plan, held = order.plan, held_masks(experiment)
    delta, start = {}, 0
    for name in _parameter_names(experiment):
        w = order.weights[name]
        total = sums[start : start + w.size].reshape(w.shape)
        start += w.size
        expected = np.zeros(w.shape)
        for agency in survivors:
            mask = held.get(plan.participant(agency).kind, {}).get(name, 1.0)
            expected = expected + mask * plan.expected_batch(agency)
        mean = np.divide(total, expected, out=np.zeros(w.shape), where=expected > 0)
        decay = plan.local.weight_decay * w
        delta[name] = (-plan.local.learning_rate * (mean + decay)).astype(np.float32)
    return delta


def _parameter_names(experiment: Experiment) -> list[str]:
    module = risk.build(experiment.settings.model, len(layout(experiment.data_contract).names))
    return [name for name, _ in module.named_parameters()]


# --- whose a table is -----------------------------------------------------------------------------------


def together(agencies: int) -> str:
    """Whose a table is that only the sum of `agencies` is known of. No agency's name can look like it."""
    return f"+{agencies}"


def noise_variance(plan: TrainPlan, part: str, whose: str) -> float:
    """Variance of the noise in a cell, people squared, of an agency's table or of a sum (`together`)."""
    sigma = plan.privacy.tune_sigma if part == "tune" else plan.privacy.test_sigma
    if not whose.startswith("+"):
        return sigma**2
    release = plan.table_release("tune" if part == "tune" else "test")
    assert isinstance(release, SharedRelease)  # noqa: S101 - a sum is of shared noise
    return int(whose[1:]) * release.share_variance / release.sensitivity**2
