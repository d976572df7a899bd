"""An agency's node: its folder, its rules, its records, its ledger, and the orders that it answers.

A folder holds `node.toml` (what this agency is, and whom it trusts), `policy.toml` (what it permits),
`split.key` and `signing.key` (secrets that only this node has), `ledger.db`, `masks/` and `cohorts/` (secrets of
runs that go on), `draws/` (of orders that are at work, and the last replies) and `log/`. Nothing here knows where an order came from.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from clients import counting, keys, noise, randomness, rules
from clients.approvals import Approvals, keep_asked
from clients.draws import Draw, Draws, fresh_draw
from clients.evaluate import noised_table, noised_users, table_counts, user_counts
from clients.folder import (
    NodeError,
    NodeFile,
    file_log,
    read_contract,
    read_keeps,
    read_node_file,
    write_keeps,
)
from clients.journal import Journal
from clients.keys import KeyFileError
from clients.ledger import Ledger, PlanFacts, Scope
from clients.masking import Masks
from clients.matching import Pacts, histogram, noised
from clients.policy import Policy, read_policy
from clients.probing import Probing
from clients.randomness import Stream
from clients.records import matched
from clients.records.counted import load_counted
from clients.records.data import DataError, Dataset, load, load_values
from clients.records.sources import find_source
from federation import cohort, masks, multipliers, wire
from federation.cohort import CohortPlan
from federation.plan import LARGEST_WEIGHT, Part, Reason, Refused, Retest, Terms, TrainPlan
from federation.protocol import (
    AgreeOrder,
    Boxes,
    CohortOrder,
    CohortReply,
    DealOrder,
    Dealt,
    Greeted,
    GreetOrder,
    Head,
    Heads,
    Keys,
    KeysOrder,
    MapOrder,
    MapPlan,
    MapReply,
    Masked,
    MaskedReply,
    Opened,
    OpenOrder,
    Ready,
    Reply,
    RoundOrder,
    RoundReply,
    SealOrder,
    SharedNoise,
    Signed,
    StatsOrder,
    StatsReply,
    weights_digest,
)
from federation.release import SharedRelease
from federation.stats import holds, why_not
from models import quantiles, risk
from models.contract import Contract
from models.design import Counted, Design
from models.features import layout
from models.spec import ModelSpec
from models.workload import Workload

Kept = TypeVar("Kept", bound=Reply)


class Node:
    """One agency. `open_node` makes it; each order of `federation.protocol` has a method."""

    def __init__(self, folder: Path, facts: NodeFile, policy: Policy, contract: Contract) -> None:
        self.folder = folder
        self.facts = facts
        self.policy = policy
        self.contract = contract
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.approvals = Approvals(folder)
        self.probing = Probing(folder, None if policy.simulation else policy.probing, lambda: self.now())
        self.log = file_log(folder, facts.name)
        self.journal = Journal(folder, durable=not policy.simulation)
        self._resident: dict[tuple[float, float], Resident] = {}
        self._matched: dict[str, matched.Keys] = {}
        self._modules: dict[ModelSpec, torch.nn.Module] = {}
        self._reserved: set[str] = set()
        self._counted: dict[str, Counted] = {}
        self._pins = {name: keys.read_pin(name, text) for name, text in facts.peers.items()}
        budget = None if policy.budget is None else policy.budget.limits()
        scope: Scope = "this run alone" if policy.simulation else "lifetime"
        whose = f"{facts.name}/{facts.dataset}"
        self.ledger = Ledger(folder / "ledger.db", budget=budget, scope=scope, people=whose)

    def ready(self, plan: Masked, heads: Heads) -> Ready:
        """Check the plan against the policy, the data against the contract, and reserve the budget."""
        self._review(plan)
        self._meet(heads)
        if isinstance(plan, MapPlan):
            self._people(plan)
        else:
            self._records(plan)
        self._reserve(plan)
        self.log.info("ready for run %s, plan %s", plan.run_id, plan.sha256)
        return Ready(self.facts.name, self.head, read_keeps(self.folder))

    def round(self, order: RoundOrder) -> RoundReply | MaskedReply:
        """One round: everything is charged before any noise is drawn, then it leaves."""
        plan = order.plan
        self._review(plan)
        self._meet(order.heads)
        if order.evaluate:  # now and then: it is for the day when the coordinator has lost its own
            self._keep_neighbour(plan, order.heads)
        masked = plan.privacy.shared is not None
        if masked != (order.draw is not None):
            raise Refused(Reason.MALFORMED, "an order of a plan with shared noise has a draw, and no other")
        if plan.retest is not None:
            _must_be_the_retest(order, plan.retest)
        known = self._known(order.digest)
        if known is not None:
            return known  # type: ignore[return-value]
        if order.draw is not None:
            draws = self.masks.may_mask(plan, order.transcript, order.draw)
            _must_be_the_draws(order, draws)
        module = self._module(plan, order.weights)
        self._must_be_multipliers(order)
        self._reserve(plan)
        records = self._records(plan)
        draw = self._begin(order.digest, lambda: records.digest)
        if masked or not (draw.again and self.ledger.charged(order.order_id)):
            self._charge(order, once=masked)
        work = Work(order, records, module, draw)
        reply = self._masked(work) if masked else self._own_noise(work)
        self._keep_reply(order.digest, reply)
        kinds = [release.kind for release in order.releases]
        self.log.info("round %s of run %s: released %s", order.round, plan.run_id, kinds)
        return reply

    def stats(self, order: StatsOrder) -> StatsReply:
        """One noised table of a column's values: charged before any noise is drawn, then it leaves."""
        plan, at = order.plan, self._situation()
        rules.review(self.policy, plan, at)
        self._must_agree(plan)
        self._may_be_asked(plan.column)
        grid = _can_be_drawn(noise.of_sums, plan.sigma)
        self._review_now(plan, at)
        self._meet(order.heads)
        known = self._known(plan.sha256)
        if known is not None:
            return known  # type: ignore[return-value]
        values = self._values(plan.column)
        sums = quantiles.weighted(quantiles.tally(values))
        named = replace(plan.release(), split_id=self._split_id(plan))
        draw = self._begin(plan.sha256, lambda: hashlib.sha256(values.tobytes()).digest())
        if not (draw.again and self.ledger.charged(plan.order_id)):
            self.ledger.charge(_facts(plan), plan.order_id, [named])
        noised = noise.noised(sums, grid, self._stream_of(plan, draw, "stats", plan.column))
        reply = StatsReply(self.facts.name, noised, (plan.release(),), self.head)
        self._keep_reply(plan.sha256, reply)
        self.log.info("run %s: released a table of the values of %s", plan.run_id, plan.column)
        return reply

    def map(self, order: MapOrder) -> MapReply | MaskedReply:
        """The counts of a workload: charged before any noise is drawn, then they leave."""
        plan = order.plan
        design = self._review_map(plan)
        self._meet(order.heads)
        if (plan.circle is None) != (order.draw is None) or (order.draw is None and order.transcript):
            raise Refused(Reason.MALFORMED, "an order of a plan with shared noise has a draw, and no other")
        known = self._known(order.digest)
        if known is not None:
            return known  # type: ignore[return-value]
        if order.draw is not None and self.masks.may_mask(plan, order.transcript, order.draw) != 1:
            raise Refused(Reason.MALFORMED, "a map is one draw")
        self._reserve(plan)
        counted = self._people(plan)
        draw = self._begin(order.digest, lambda: counted.digest)
        again = order.draw is None and draw.again and self.ledger.charged(order.order_id)
        if not again:  # whoever approved the plan did so for one draw
            self._charge(order, once=True)
        stream = self._stream_of(plan, draw, "map")
        reply: MapReply | MaskedReply
        if order.draw is None:
            numbers = counting.noised(plan, design, counted, stream)
            reply = MapReply(self.facts.name, numbers, order.releases, self.head)
        else:
            vector = counting.with_share(plan, design, counted, stream)
            masked = self.masks.mask(plan, order.transcript, order.draw, vector)
            reply = MaskedReply(self.facts.name, masked, order.releases, self.head)
        self._keep_reply(order.digest, reply)
        self._counted.clear()
        self.log.info("run %s: released the counts of a map", plan.run_id)
        return reply

    def greet(self, order: GreetOrder) -> Greeted:
        """Begin to agree a secret with the other agencies of a cohort that the policy permits."""
        self._review_cohort(order.plan)
        self._meet(order.heads)
        return Greeted(self.facts.name, self.pacts.greet(order.plan, order.attempt))

    def seal(self, order: SealOrder) -> Boxes:
        """Check the others' greetings and this agency's table, reserve the budget, and seal a contribution to each."""
        plan = order.plan
        self._review_cohort(plan)
        self._matches(plan)
        boxes = self.pacts.seal(plan, order.greetings)  # first: what does not check changes nothing else
        for given_up in self.pacts.forget_others(plan):
            self.ledger.release_reservation(given_up)
        if self._known(plan.sha256) is None:
            self.ledger.reserve(_facts(plan), [replace(plan.release(), split_id=self._split_id(plan))])
        return Boxes(self.facts.name, boxes)

    def cohort(self, order: CohortOrder) -> CohortReply:
        """One noised histogram under the agreed secret: charged before any noise is drawn, then it leaves, once."""
        plan = order.plan
        self._review_cohort(plan)
        self._meet(order.heads)
        known = self._known(plan.sha256)
        if known is not None:
            self.pacts.forget(plan)
            return known  # type: ignore[return-value]
        secret, people = self.pacts.secret(plan, order.boxes), self._matches(plan)
        counts = histogram(people.keys, people.group, secret, plan.shape)
        named = replace(plan.release(), split_id=self._split_id(plan))
        draw = self._begin(plan.sha256, lambda: hashlib.sha256(counts.tobytes()).digest())
        if not (draw.again and self.ledger.charged(plan.order_id)):
            self.ledger.charge(_facts(plan), plan.order_id, [named], once=True)
        left = noised(counts, plan, self._stream_of(plan, draw, "cohort"))
        reply = CohortReply(self.facts.name, left, (plan.release(),), self.head)
        self._keep_reply(plan.sha256, reply)
        self.pacts.forget(plan)
        self._matched.clear()
        self.log.info("run %s: released a histogram for a cohort of %s", plan.run_id, ", ".join(plan.of))
        return reply

    def make_keys(self, order: KeysOrder) -> Keys:
        """Fresh mask keys for a run that the policy permits, with the head that this node keeps of its neighbour."""
        self._review(order.plan)
        self._meet(order.heads)
        neighbour = self._neighbour(order.plan)
        keeps = read_keeps(self.folder)
        kept = (neighbour, keeps[neighbour]) if neighbour in keeps else None
        return Keys(self.facts.name, self.masks.keys(order.plan, order.draws, kept))

    def deal(self, order: DealOrder) -> Dealt:
        """Check the peers' keys and what they keep of this node's ledger; share this node's seeds with them."""
        self._review(order.plan)
        return self._once(order, lambda: self._deal(order))

    def _deal(self, order: DealOrder) -> Dealt:
        sealed, roster = self.masks.deal(order.plan, order.adverts)
        kept = [advert.keeps for advert in roster.adverts if advert.keeps is not None]
        for name, seq, head in kept:
            self._meet({name: Head(seq, head)})
        return Dealt(self.facts.name, sealed)

    def agree(self, order: AgreeOrder) -> Signed:
        """Sign one list of survivors."""
        return self._once(order, lambda: Signed(self.facts.name, self.masks.agree(order)))

    def open(self, order: OpenOrder) -> Opened:
        """Open the shares that unmask the sum of the list that was signed."""
        return self._once(order, lambda: Opened(self.facts.name, self.masks.open(order)))

    def _once(self, order: DealOrder | AgreeOrder | OpenOrder, act: Callable[[], Kept]) -> Kept:
        """`act`, or what it gave before for the same order: what is done once is answered as often as it is asked."""
        known = self._known(repr(order))
        if known is not None:
            return known  # type: ignore[return-value]
        reply = act()
        self._keep_reply(repr(order), reply)
        return reply

    @functools.cached_property
    def masks(self) -> Masks:
        """What this node keeps for secure aggregation; its signing key is made at first use."""
        return Masks(self.folder, self.facts.name, keys.signing_key(self.folder), self._pins)

    @functools.cached_property
    def pacts(self) -> Pacts:
        """What this node keeps of the secrets that it agrees for cohorts; its signing key is made at first use."""
        return Pacts(self.folder, self.facts.name, keys.signing_key(self.folder), self._pins)

    @functools.cached_property
    def draws(self) -> Draws:
        """What this node remembers of the orders that it is at, and was."""
        return Draws(self.folder / "draws")

    @property
    def head(self) -> Head:
        """The newest entry of the ledger."""
        return Head(*self.ledger.head)

    def close(self) -> None:
        """Close the ledger and the log."""
        self.ledger.close()
        for handler in list(self.log.handlers):
            self.log.removeHandler(handler)
            handler.close()

    def check_data(self, tune_fraction: float, test_fraction: float) -> None:
        """`DataError` with every problem of this agency's table, for the person at this machine."""
        self._dataset(tune_fraction, test_fraction)

    def check_values(self, column: str) -> None:
        """`check_data` for a statistic of one column."""
        self._values(column)

    def check_people(self, plan: MapPlan) -> None:
        """`check_data` for a map."""
        self._people(plan)

    def _people(self, plan: MapPlan) -> Counted:
        """This agency's people by the levels that the plan asks for; kept until the counts have left."""
        if plan.sha256 not in self._counted:
            asked = plan.asked_of(self.contract, self.facts.name)
            self._counted = {plan.sha256: self._load_counted(asked)}
        return self._counted[plan.sha256]

    def _load_counted(self, asked: Workload) -> Counted:
        return load_counted(
            self.contract,
            find_source(self.folder, self.facts.table),
            asked,
            self.facts.kind,
            min_people=self.policy.min_people,
            key=keys.secret(self.folder / "split.key"),
        )

    def check_matched(self, plan: CohortPlan) -> None:
        """`check_data` for a cohort: match keys, and levels of its group."""
        self._matches(plan)

    def _reserve(self, plan: Masked) -> None:
        if plan.sha256 not in self._reserved:
            split = self._split_id(plan)
            named = [replace(release, split_id=split) for release in plan.releases()]
            self.ledger.reserve(_facts(plan), named)
            self._reserved.add(plan.sha256)

    def _known(self, order: str) -> Reply | None:
        """The reply that the order got before, which is no new release: whoever sent it may have lost it."""
        kept = None if self.policy.simulation else self.draws.reply(order)
        return None if kept is None else wire.thaw(kept)

    def _begin(self, order: str, records: Callable[[], bytes]) -> Draw:
        """The order's randomness, kept until its reply is; a simulation repeats its own by a seed."""
        return fresh_draw() if self.policy.simulation else self.draws.begin(order, records())

    def _keep_reply(self, order: str, reply: Reply) -> None:
        if not self.policy.simulation:
            self.draws.keep(order, wire.freeze(reply))

    def _charge(self, order: RoundOrder | MapOrder, *, once: bool) -> None:
        """On the agency's disk before any noise of this order is drawn."""
        split = self._split_id(order.plan)
        named = [replace(release, split_id=split) for release in order.releases]
        self.ledger.charge(_facts(order.plan), order.order_id, named, once=once)

    def _meet(self, heads: Heads) -> None:
        """`Refused(LEDGER)` where others have seen entries of this node's ledger that it does not have."""
        seen = heads.get(self.facts.name)
        if seen is not None and (seen.seq > self.head.seq or not self.ledger.holds(*seen)):
            raise Refused(
                Reason.LEDGER,
                f"the ledger is behind: others have seen entry {seen.seq} of it, which is not here as they saw it. It "
                "was put back from an older copy, or replaced: restore the newest one",
            )

    def _neighbour(self, plan: Masked) -> str:
        """The agency whose ledger's head this node keeps: the one before it in the circle of names."""
        circle = plan.circle
        others = {p.name for p in plan.participants if self.contract.holds_label(p.kind)}
        if circle is not None:  # a made-up participant must not come between
            others = set(circle.agencies)
        names = sorted(others | {self.facts.name})  # whoever lacks the label gets no orders, so keeps nothing
        return names[names.index(self.facts.name) - 1]

    def _keep_neighbour(self, plan: Masked, heads: Heads) -> None:
        """Remember the newest head of the neighbour: nobody's word but the chain's decides, so the larger stays."""
        name, keeps = self._neighbour(plan), read_keeps(self.folder)
        if name in heads and heads[name].seq > keeps.get(name, Head(0, "")).seq:
            write_keeps(self.folder, keeps | {name: heads[name]})

    def _split_id(self, plan: Terms) -> str:
        """Names how people are dealt into parts: within one split id, whoever stays has the same part.

        Another secret, fraction, unit, or column that names a person (or a row) is another split. Where a column
        says the parts, what it says in the loaded table is in it, so any change there is another split: it then
        depends on records, reads them, and never leaves. Older ledgers named the same deals otherwise; losses
        compose across the two names, which can only overstate them.
        """
        unit, needs = self.contract.unit, self.contract.needs(self.facts.kind)
        names = sorted(needs) if unit.column is None else [unit.column]
        named_by = [(name, needs.get(name)) for name in names]
        fractions = (plan.tune_fraction, plan.test_fraction)
        said = self._dataset(*fractions).assignment if self.contract.split else ""
        text = json.dumps([*fractions, unit.kind, named_by, self.contract.split, said])
        return hashlib.blake2b(
            text.encode(), key=keys.secret(self.folder / "split.key"), digest_size=8
        ).hexdigest()

    def _review(self, plan: Masked) -> None:
        if isinstance(plan, MapPlan):
            self._review_map(plan)
            return
        at = self._situation()
        rules.review(self.policy, plan, at)
        self._must_agree(plan)
        self._must_count_users(plan)
        if plan.privacy.shared is not None:
            self._must_fit(plan, plan.privacy.shared)
        elif plan.privacy.mechanism == "local":
            for sigma in (plan.privacy.tune_sigma, plan.privacy.test_sigma):
                _can_be_drawn(noise.of_counts, sigma)
        self._review_now(plan, at)

    def _review_map(self, plan: MapPlan) -> Design:
        at = self._situation()
        rules.review(self.policy, plan, at)
        self._must_agree(plan)
        design = counting.design_of(plan, self.contract, self.facts.name)
        self._review_now(plan, at)
        return design

    def _review_cohort(self, plan: CohortPlan) -> None:
        at = self._situation()
        rules.review(self.policy, plan, at)
        self._must_agree(plan)
        why = cohort.why_not(self.contract, plan.by)
        if why is None and self.facts.name not in plan.of:
            why = f"the cohort is not asked of {self.facts.name!r}"
        if why is None and len(cohort.levels_of(self.contract, plan.by)) != plan.levels:
            why = f"the group {plan.by!r} has not {plan.levels} levels in the contract"
        if why is not None:
            raise Refused(Reason.CONTRACT, why)
        self._review_now(plan, at)

    def _review_now(self, plan: rules.Plan, at: rules.Situation) -> None:
        """What changes with time comes last: a person is asked about plans alone that nothing else refuses."""
        try:
            rules.review_now(self.policy, plan, at)
        except Refused as refused:
            if refused.reason is Reason.NOT_YET:
                keep_asked(self.folder, plan)
            raise

    def _situation(self) -> rules.Situation:
        standing = self.approvals.standing()
        return rules.Situation(self.now(), self.contract, standing, self.facts.panel, self.facts.name)

    def _must_agree(self, plan: Terms) -> None:
        """`Refused(CONTRACT)` where the plan's contract or facts are not this agency's."""
        if plan.contract_sha256 != self.contract.sha256:
            raise Refused(Reason.CONTRACT, "the plan's contract is not the one that this agency agreed to")
        agreed = plan.participant(self.facts.name)
        if (agreed.kind, agreed.public_size) != (self.facts.kind, self.facts.public_size):
            raise Refused(Reason.CONTRACT, "the plan's kind or public_size is not what node.toml declares")

    def _may_be_asked(self, column: str) -> None:
        """`Refused(CONTRACT)` where the contract says that the column is no statistic, or not held here."""
        why = why_not(self.contract, column)
        if why is None and not holds(self.contract, self.facts.kind, column):
            why = f"the contract says that this kind of agency does not hold the column {column!r}"
        if why is not None:
            raise Refused(Reason.CONTRACT, why)

    def _values(self, column: str) -> np.ndarray:
        source, least = find_source(self.folder, self.facts.table), self.policy.min_people
        return load_values(self.contract, source, column, self.facts.kind, min_people=least)

    def _matches(self, plan: CohortPlan) -> matched.Keys:
        """Everybody's match key and level, kept from the sealing until the histogram has left."""
        if plan.sha256 not in self._matched:
            source, least = find_source(self.folder, self.facts.table), self.policy.min_people
            by = next((group for group in self.contract.groups if group.name == plan.by), None)
            found = matched.load_keys(self.contract, source, self.facts.kind, min_people=least, by=by)
            self._matched = {plan.sha256: found}
        return self._matched[plan.sha256]

    def _records(self, plan: TrainPlan) -> "Resident":
        return self._dataset(plan.tune_fraction, plan.test_fraction)

    def _dataset(self, tune_fraction: float, test_fraction: float) -> "Resident":
        key = (tune_fraction, test_fraction)
        if key not in self._resident:
            self._resident = {key: self._load(*key)}
        return self._resident[key]

    def _load(self, tune_fraction: float, test_fraction: float) -> "Resident":
        fractions: dict[str, float] = {
            "train": 1 - tune_fraction - test_fraction,
            "tune": tune_fraction,
            "test": test_fraction,
        }
        dataset = load(
            self.contract,
            find_source(self.folder, self.facts.table),
            self.facts.kind,
            fractions=fractions,
            key=keys.secret(self.folder / "split.key"),
            min_people=self.policy.min_people,
        )
        return Resident(dataset)

    def _must_be_multipliers(self, order: RoundOrder) -> None:
        """`Refused(MALFORMED)` where an order has multipliers that its plan does not permit."""
        if not order.multipliers:
            return
        fairness = order.plan.fairness
        problem = "only an order to train of a plan with group multipliers has any"
        if fairness is not None and fairness.most is not None and order.train:
            groups, levels = (
                len(self.contract.group_names),
                self.contract.group_margins.get(fairness.by or ""),
            )
            problem = f"the contract has no audit group {fairness.by!r}"
            if levels is not None:
                problem = multipliers.problem(order.multipliers, fairness.most, groups, levels.values()) or ""
        if problem:
            raise Refused(Reason.MALFORMED, problem)

    def _module(self, plan: TrainPlan, weights: dict[str, np.ndarray]) -> torch.nn.Module:
        if plan.model not in self._modules:
            self._modules = {plan.model: risk.build(plan.model, len(layout(self.contract).names))}
        module = self._modules[plan.model]
        if not all((np.abs(values) <= LARGEST_WEIGHT).all() for values in weights.values()):  # nor NaN
            raise Refused(
                Reason.MALFORMED, f"a weight is not within ±{LARGEST_WEIGHT:g}: the model has diverged"
            )
        try:
            risk.load_weights(module, weights)
        except ValueError as error:
            raise Refused(Reason.MALFORMED, str(error)) from None
        return module

    def _must_fit(self, plan: TrainPlan, shared: SharedNoise) -> None:
        """`Refused(MALFORMED)` where noise is accounted for other values than leave, or cannot be drawn or masked."""
        parameters = _parameters(plan.model, len(layout(self.contract).names))
        cells = len(self.contract.group_names) * (len(plan.edges) - 1) * 2
        if (shared.parameters, shared.cells) != (parameters, cells):
            raise Refused(
                Reason.MALFORMED,
                f"privacy.shared: the model has {parameters} parameters and a table {cells} cells, the plan says "
                f"{shared.parameters} and {shared.cells}",
            )
        events = plan.each_release()
        variances = [event.share_variance for event in events if isinstance(event, SharedRelease)]
        try:
            fits = max(variances) <= randomness.MAX_VARIANCE and plan.privacy.limit > 0
        except (OverflowError, ValueError):
            fits = False
        if not fits:
            raise Refused(
                Reason.MALFORMED, f"privacy.shared: shares of this size do not fit in {shared.bits} bits"
            )

    def _must_count_users(self, plan: TrainPlan) -> None:
        """`Refused(MALFORMED)` where the plan asks for a table of users that is not the contract's."""
        shape = self.contract.users_shape
        if plan.users is not None and (shape is None or math.prod(shape) != plan.users.cells):
            declared = (
                "declares no such table" if shape is None else f"declares one of {math.prod(shape)} cells"
            )
            raise Refused(
                Reason.MALFORMED,
                f"users: the contract {declared}, the plan says {plan.users.cells} cells",
            )

    def _own_noise(self, work: "Work") -> RoundReply:
        """What this agency may release by itself: its own noise is in it."""
        order = work.order
        tables: dict[str, np.ndarray] = {part: self._table(work, part) for part in order.evaluate}
        if "users" in order.tables:
            tables["users"] = self._users(work)
        delta = self._train(work) if order.train else None
        return RoundReply(self.facts.name, delta, tables, order.releases, self.head)

    def _table(self, work: "Work", part: Part) -> np.ndarray:
        x, y, _, group = work.records.part(part)
        privacy = work.order.plan.privacy
        return noised_table(
            work.module,
            x,
            y,
            group,
            edges=np.asarray(work.order.plan.edges),
            n_groups=len(self.contract.group_names),
            sigma=privacy.tune_sigma if part == "tune" else privacy.test_sigma,
            stream=self._stream(work, f"{part} noise"),
        )

    def _users(self, work: "Work") -> np.ndarray:
        x, user, cutoff, shape = self._of_users(work)
        return noised_users(
            work.module,
            x,
            user,
            cutoff=cutoff,
            shape=shape,
            sigma=work.order.plan.privacy.test_sigma,
            stream=self._stream(work, "users noise"),
        )

    def _of_users(self, work: "Work") -> tuple[torch.Tensor, np.ndarray, float, tuple[int, int, int, int]]:
        """(x, places, cutoff, shape) of the table of users: `_must_count_users` has seen that there is one."""
        users, shape = work.order.plan.users, self.contract.users_shape
        assert users is not None  # noqa: S101 - as the order asks for it
        assert shape is not None  # noqa: S101 - as the contract declares it
        x, user = work.records.users("test")
        return x, user, users.cutoff, shape

    def _train(self, work: "Work") -> dict[str, np.ndarray]:
        from clients import train  # here, because Opacus takes seconds and a refusal needs none of it

        plan = work.order.plan
        x, y, present, group = work.records.part("train")
        return train.dp_fit(
            work.module,
            x,
            y,
            present,
            privacy=plan.privacy,
            local=plan.local,
            expected_batch=plan.expected_batch(self.facts.name),
            share=_shares(work.order, y, group),
            free=self._free(work.module),
            sampling=self._sampling(work),
            noise=self._noise(work, "train"),
        )

    def _masked(self, work: "Work") -> MaskedReply:
        """This agency's whole numbers with its share of the noise, under masks: it never leaves without them."""
        order, plan = work.order, work.order.plan
        limit = plan.privacy.limit
        numbers = [self._exact_table(work, part, limit) for part in order.evaluate]
        if "users" in order.tables:
            numbers.append(self._exact_users(work, limit))
        if order.train:
            numbers.append(self._exact_sum(work, limit))
        purposes = [*order.tables, "train"] if order.train else list(order.tables)
        noised = [
            values + self._share(work, purpose, release)
            for values, purpose, release in zip(numbers, purposes, order.releases, strict=True)
        ]
        assert plan.privacy.shared is not None  # noqa: S101 - `round` asks for it
        assert order.draw is not None  # noqa: S101 - `round` asks for it
        vector = masks.wrap(np.concatenate(noised), plan.privacy.shared.bits)
        masked = self.masks.mask(plan, order.transcript, order.draw, vector)
        return MaskedReply(self.facts.name, masked, order.releases, self.head)

    def _exact_table(self, work: "Work", part: Part, limit: int) -> np.ndarray:
        """A table in grid steps, (cells,) int64: nobody sees it."""
        plan = work.order.plan
        x, y, _, group = work.records.part(part)
        edges, n_groups = np.asarray(plan.edges), len(self.contract.group_names)
        counts = table_counts(work.module, x, y, group, edges=edges, n_groups=n_groups).ravel()
        assert plan.privacy.shared is not None  # noqa: S101 - `round` asks for it
        return masks.to_grid(counts, plan.privacy.shared.steps_per_person, limit)

    def _exact_users(self, work: "Work", limit: int) -> np.ndarray:
        """The table of users in grid steps, int64: nobody sees it."""
        x, user, cutoff, shape = self._of_users(work)
        shared = work.order.plan.privacy.shared
        assert shared is not None  # noqa: S101 - `round` asks for it
        counts = user_counts(work.module, x, user, cutoff=cutoff, shape=shape).ravel()
        return masks.to_grid(counts, shared.steps_per_person, limit)

    def _exact_sum(self, work: "Work", limit: int) -> np.ndarray:
        """A batch's clipped sum in grid steps, (parameters,) int64: nobody sees it."""
        from clients import train  # here, because Opacus takes seconds and a refusal needs none of it

        privacy = work.order.plan.privacy
        assert privacy.shared is not None  # noqa: S101 - `round` asks for it
        x, y, present, group = work.records.part("train")
        total = train.dp_sum(
            work.module,
            x,
            y,
            present,
            max_grad_norm=privacy.max_grad_norm,
            sample_rate=privacy.sample_rate,
            share=_shares(work.order, y, group),
            sampling=self._sampling(work),
        )
        return masks.to_grid(total, privacy.shared.steps_per_norm / privacy.max_grad_norm, limit)

    def _share(self, work: "Work", purpose: str, release: object) -> np.ndarray:
        """This agency's share of the noise of one release, on every coordinate, held here or not."""
        assert isinstance(release, SharedRelease)  # noqa: S101 - `round` asks for it
        stream = self._stream(work, f"{purpose} noise")
        return randomness.discrete_gaussian(stream, release.dimension, release.share_variance)

    def _free(self, module: torch.nn.Module) -> dict[str, torch.Tensor] | None:
        """0 where a first-layer weight belongs to a block that this agency does not hold."""
        if self._held.all():
            return None
        name = risk.input_weight(module)
        return {name: self._held.expand_as(module.get_parameter(name))}

    @functools.cached_property
    def _held(self) -> torch.Tensor:
        """0 or 1 for each feature: whether this agency holds its block."""
        blocks = layout(self.contract).block
        held = [block is None or self.contract.holds(self.facts.kind, block) for block in blocks]
        return torch.tensor(held, dtype=torch.float32)

    def _noise(self, work: "Work", purpose: str) -> Callable[[int, float], torch.Tensor]:
        from clients import train

        if work.order.plan.seed is None:
            return randomness.gaussian(work.draw.stream(f"{purpose} noise"))
        return train.simulated_noise(self._seed(work.order, f"{purpose} noise"))

    def _sampling(self, work: "Work") -> Callable[[int, float], np.ndarray]:
        from clients import train

        if work.order.plan.seed is None:
            return randomness.poisson_batches(work.draw.stream("sampling"))
        return train.simulated_sampling(self._seed(work.order, "sampling"))

    def _stream(self, work: "Work", purpose: str) -> Stream:
        """Of the draw's own key, which the operating system's randomness made; a simulation repeats it by a seed."""
        if work.order.plan.seed is None:
            return work.draw.stream(purpose)
        return Stream.seeded(f"{self._seed(work.order, purpose)}")

    def _stream_of(self, plan: Terms, draw: Draw, what: str, *which: str) -> Stream:
        """As `_stream`, for a plan that is one draw: of `what`, and in a simulation of `which`."""
        if plan.seed is None:
            return draw.stream(f"{what} noise")
        return Stream.seeded("|".join([str(plan.seed), self.facts.name, what, *which]))

    def _seed(self, order: RoundOrder, purpose: str) -> int:
        """Seed of one stream: of (seed, agency, round, purpose), so two agencies never share noise."""
        text = f"{order.plan.seed}|{self.facts.name}|{order.round}|{purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True, repr=False)
class Work:
    """One order at work: on whose records, with which model, and with which randomness."""

    order: RoundOrder
    records: "Resident"
    module: torch.nn.Module
    draw: Draw


class Resident:
    """The encoded parts as tensors that stay in memory between rounds."""

    def __init__(self, dataset: Dataset) -> None:
        self.assignment = dataset.assignment
        self._parts = {
            name: (
                torch.from_numpy(part.x),
                None if part.y is None else torch.from_numpy(part.y),
                torch.from_numpy(part.present) if part.x.ndim == 3 else None,
                part.group,
            )
            for name, part in dataset.parts.items()
        }
        self._users = {name: part.user for name, part in dataset.parts.items()}

    @functools.cached_property
    def digest(self) -> bytes:
        """Names these records, 32 bytes: for this machine alone."""
        digest = hashlib.blake2b(digest_size=32)
        for x, y, present, group in self._parts.values():
            for values in (x, y, present):
                digest.update(b"" if values is None else values.numpy().data)
            digest.update(np.ascontiguousarray(group).data)
        for user in self._users.values():
            digest.update(b"" if user is None else np.ascontiguousarray(user).data)
        return digest.digest()

    def part(self, name: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, np.ndarray]:
        """(x, y, present, group) of one part; `Refused(CONTRACT)` where this agency holds no label."""
        x, y, present, group = self._parts[name]
        if y is None:
            raise Refused(
                Reason.CONTRACT, "the contract says that this kind of agency does not hold the label"
            )
        return x, y, present, group

    def users(self, name: Part) -> tuple[torch.Tensor, np.ndarray]:
        """(x, places in the contract's `users_shape[1:]`) of one part; `Refused(CONTRACT)` where there is no label."""
        x, *_ = self.part(name)
        user = self._users[name]
        assert user is not None  # noqa: S101 - whoever holds the label has it where the contract declares a table
        return x, user


@functools.cache
def open_node(folder: Path) -> Node:
    """The node in `folder`, opened once per process. `NodeError` or `PolicyError` says what is wrong."""
    facts = read_node_file(folder / "node.toml")
    policy = read_policy(folder / "policy.toml")
    contract = read_contract(folder, facts.contract)
    try:
        find_source(folder, facts.table)
        return Node(folder, facts, policy, contract)
    except (DataError, KeyFileError) as error:
        raise NodeError(str(error)) from None


def _can_be_drawn(grid: Callable[[float], noise.Grid], sigma: float) -> noise.Grid:
    """The grid for noise of `sigma` people; `Refused(MALFORMED)` where there is none, whatever the records are."""
    try:
        return grid(sigma)
    except ValueError as error:
        raise Refused(Reason.MALFORMED, str(error)) from None


def _must_be_the_retest(order: RoundOrder, retest: Retest) -> None:
    """`Refused(MALFORMED)` unless the order is for one table of test people, of the model that the plan names.

    A person may have approved the plan because it trains nothing, and because of which model it measures.
    """
    if (order.round, order.kinds) != (1, ("test",)):
        asked = ", ".join(order.kinds) or "nothing"
        raise Refused(
            Reason.MALFORMED,
            f"a retest takes one table of test people, the order is for {asked} in round {order.round}",
        )
    if weights_digest(order.weights) != retest.weights:
        raise Refused(Reason.MALFORMED, f"the weights are not those of run {retest.of} that the plan names")


def _shares(order: RoundOrder, y: torch.Tensor, group: np.ndarray) -> torch.Tensor | None:
    """What each person's clipped gradient counts, (n,): by group and outcome of the most recent row, as in a table."""
    if not order.multipliers:
        return None
    outcome = (y if y.ndim == 1 else y[:, -1]).long().numpy()
    return torch.from_numpy(multipliers.shares(order.multipliers)[group, outcome])


def _must_be_the_draws(order: RoundOrder, draws: int) -> None:
    """`Refused(MALFORMED)` unless the order is the one that everybody gets for this draw.

    All members' vectors of a draw are added up, and each counts on the others' noise. A coordinator that had one
    of them train while the others filled in tables, whose noise has another size, would take that away. So a
    set-up's draws are the plan's rounds from some round to the last tables, in order, and nothing else: how many
    draws there are is in the transcript.
    """
    plan = order.plan
    last = order.round == plan.rounds + 1
    tune: tuple[Part, ...] = ("tune",) if order.round - 1 in plan.checkpoints else ()
    kinds = (*tune, "test") if last else (*tune, "train")
    if order.draw != order.round - (plan.rounds + 2 - draws) or order.kinds != kinds:
        raise Refused(
            Reason.MALFORMED,
            f"draw {order.draw} of {draws} is not for {', '.join(order.kinds)} in round {order.round}",
        )


@functools.lru_cache(maxsize=8)
def _parameters(spec: ModelSpec, n_features: int) -> int:
    return risk.count_parameters(spec, n_features)


def _facts(plan: Terms) -> PlanFacts:
    return PlanFacts(plan.sha256, plan.run_id, plan.experiment, plan.purpose)


__all__ = ["DataError", "Node", "NodeError", "NodeFile", "open_node"]
