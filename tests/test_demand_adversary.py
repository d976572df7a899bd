"""Maps and cohorts under attack: who proposes the workload, who lies in a reply, who asks twice, who looks at what is withheld."""

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONTRACT, FIVE, people, write_agencies, write_table
from test_counted import contract as needs
from test_counted import load, records
from test_demand import OF_ALL, POLICY, ask, asked, charged, deployed, drawn, plan_of

from clients import counting, keys, rules
from clients.masking import Masks
from clients.node import Node, open_node
from clients.policy import Policy
from clients.ruleset import Situation
from experiments.config import Study, compose
from experiments.config import read as read_study
from federation import wire
from federation.cohort import CohortPlan
from federation.demand import MapPlan
from federation.plan import Reason, Refused, Terms, TrainPlan
from federation.privacy import epsilon
from federation.protocol import Head, MapOrder, MapReply, Refusal, RoundOrder
from federation.release import LaplaceRelease, Release
from federation.stats import StatsPlan
from models import cohort
from models.contract import Contract
from models.design import Counted, answer, design
from models.disclosure import custom
from models.workload import read

SMALL = Contract.from_dict(CONTRACT)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three agencies; nothing is written there."""
    return small(tmp_path_factory.mktemp("three"), {"north": "police", "clinic": "health", "south": "police"})


@pytest.fixture(scope="module")
def shared_plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[MapPlan, TrainPlan]:
    """A map and a training of one name behind masks, of five agencies."""
    behind = ["strategy=dp_fedsgd", "local.steps=1", "privacy=shared", "privacy.colluders=1"]
    found = small(tmp_path_factory.mktemp("five"), FIVE, 120, *behind, "privacy.dropouts=1")
    return plan_of(found, OF_ALL), found.experiment.plan("run-1", simulation=False)


def small(home: Path, kinds: dict[str, str], n: int = 300, *overrides: str) -> Study:
    write_agencies(home, kinds, n)
    common = ["experiment=own", f"data.agencies={home}/agencies.yaml", "name=small", "tracking=none"]
    more = ["rounds=4", "evaluation.checkpoints=2", f"output={home}/outputs", "data.min_people=20"]
    return read_study(compose([*common, *more, *overrides]))


# --- how far one person moves what leaves -----------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "name": "everything",
    "attributes": {
        "band": {"column": "age", "edges": [18, 40]},
        "month": {"column": "seen", "first": "2024-01", "months": 4},
    },
    "queries": [
        {"crosstab": ["sex", "need"], "where": {"severity": "high"}},
        {"rate": {"of": {"need": "health"}, "among": {"offender": True}}, "by": ["band"], "name": "share"},
        {"crosstab": ["month", "sex"], "each": "row"},
        {"series": {"by": "month", "of": {"need": "debt"}}, "name": "debt"},
    ],
}


def test_whoever_joins_or_leaves_moves_what_leaves_by_no_more_than_is_charged(tmp_path: Path) -> None:
    """From the table to the vector, two blocks at once: people with many rows, no age, no need, dates outside, ids that
    look like numbers, in any order and any batches. Somebody comes close, so the bound is no idle one."""
    rules_, most = needs(3), 0.0
    asked_ = read(EVERYTHING, rules_)
    found = design(asked_, 3)
    table = records(3, people=14, most=6)
    alike = {"id": "7.0", "seen": "2024-02-02", "age": 20.0, "need": "debt", "offender": "yes"}
    alike |= {"severity": "high", "sex": "F", "visits": "few", "secret": "x"}
    table = pd.concat([table, pd.DataFrame([alike, alike | {"id": "7"}, alike, alike, alike])])
    vectors = {}
    for batch in (5, 65_536):
        for gone in ("", *table.id.unique()):
            left = table[~table.id.isin([gone, f"{gone}.0", gone.removesuffix(".0")])]
            counted = load(left, tmp_path, asked_, rows=batch, contract=rules_)
            vectors[gone, batch] = found.measure(counted)
            moved = float(np.linalg.norm(vectors[gone, batch] - vectors["", batch]))
            assert moved <= found.sensitivity
            most = max(most, moved)
        np.testing.assert_array_equal(vectors["", batch], vectors["", 5])
    assert most >= 0.8 * found.sensitivity


def test_counts_of_two_thousand_million_people_fit_in_what_leaves() -> None:
    """int64 holds the longest contrast of the largest attribute, times its scale, of more people than there are."""
    edges = list(range(1, 1100))
    asked_ = read(
        {
            "name": "n",
            "attributes": {"a": {"column": "age", "edges": edges}},
            "queries": [{"histogram": "a"}],
        },
        SMALL,
    )
    found = design(asked_, 50)
    (strategy,) = found.blocks.values()
    longest = max(int(scale.max()) for scale in strategy.scales.values()) * 2 * max(strategy.sizes.values())
    assert 2**31 * longest < 2**63


# --- who proposes the workload ----------------------------------------------------------------------------


def cut(name: str, *edges: float) -> dict[str, Any]:
    return {name: {"column": "age", "edges": list(edges)}}


def many(n: int) -> dict[str, Any]:
    return {name: value for i in range(n) for name, value in cut(f"a{i}", i + 1).items()}


GREEDY: dict[str, tuple[dict[str, Any], str]] = {
    "a table over forty attributes": (
        {"attributes": many(40), "queries": [{"crosstab": [f"a{i}" for i in range(40)]}]},
        "the most",
    ),
    "a condition on forty attributes": (
        {"attributes": many(40), "queries": [{"count": {f"a{i}": "other" for i in range(40)}}]},
        "the most",
    ),
    "an attribute of twenty thousand levels": (
        {"attributes": cut("a", *range(20_000)), "queries": [{"histogram": "a"}]},
        "20,002 levels, and 1,200 is the most",
    ),
    "a thousand tables over seven attributes": (
        {
            "attributes": many(14),
            "queries": [
                {"name": f"q{i}", "crosstab": [f"a{j}" for j in of]}
                for i, of in enumerate(itertools.islice(itertools.combinations(range(14), 7), 1000))
            ],
        },
        "128,000 parts",
    ),
    "a thousand million months": (
        {
            "attributes": {"m": {"column": "seen", "first": "2024-01", "months": 10**9}},
            "queries": [{"count": {"m": "2024-01"}}],
        },
        "must be from 1 to 600",
    ),
    "edges that are named alike": (
        {"attributes": cut("a", 1_000_001, 1_000_002), "queries": [{"histogram": "a"}]},
        "must differ in their first six digits",
    ),
    "escapes for a terminal": (
        {
            "attributes": {"\x1b[2J\r" * 999: {"column": "age", "edges": [2, 1]}},
            "queries": [{"count": "everybody"}],
        },
        "attributes.?[2J",
    ),
    "a number beyond all": ({"attributes": cut("a", 10**400), "queries": [{"histogram": "a"}]}, "a number"),
    "a name of four hundred digits": (
        {"attributes": {}, "queries": [{"histogram": 10**400}]},
        "is no attribute here",
    ),
    "no number": ({"attributes": cut("a", float("nan")), "queries": [{"histogram": "a"}]}, "a number"),
    "a name that writes lines of its own": (
        {"attributes": cut("sex\n- nothing else leaves", 5), "queries": [{"count": "everybody"}]},
        "names of printable letters",
    ),
}


@pytest.mark.parametrize("case", [*GREEDY, "lists within lists"])
def test_a_workload_that_would_take_hours_or_all_memory_is_malformed_at_once(
    case: str, study: Study, tmp_path: Path
) -> None:
    workload, says = GREEDY.get(case, ({}, "not a workload in JSON"))
    text = json.dumps({"name": "greedy", **workload}) if workload else "[" * 90_000
    plan, began = plan_of(study).but(workload=text), time.process_time()
    with pytest.raises(Refused) as refused:
        counting.design_of(plan, SMALL, "north")
    assert time.process_time() - began < 2
    assert refused.value.reason is Reason.MALFORMED
    assert says in refused.value.sentence
    assert refused.value.sentence.isprintable()
    assert len(refused.value.sentence) < 5_000


def test_a_node_says_so_before_it_reads_a_record(study: Study, tmp_path: Path) -> None:
    folder, case = deployed(tmp_path / "node"), GREEDY["a table over forty attributes"][0]
    plan = plan_of(study).but(workload=json.dumps({"name": "greedy", **case}))
    assert ask(folder, wire.pack_map_order(MapOrder(plan), 1)) == Refusal("north", Reason.MALFORMED)


HIDDEN: dict[str, dict[str, Any]] = {
    "under another name": {
        "attributes": cut("wealth", 30),
        "queries": [{"histogram": "wealth"}],
    },
    "as a level": {
        "attributes": cut("wealth", 30),
        "queries": [{"count": {"known": "yes"}, "by": ["wealth"]}],
    },
    "as whom a rate is of": {
        "attributes": cut("old", 60),
        "queries": [{"rate": {"of": {"known": "yes"}, "among": {"old": "60 or more"}}}],
    },
    "beside a query that needs it not": {
        "attributes": cut("old", 60),
        "queries": [{"histogram": "known"}, {"histogram": "old"}],
    },
}


@pytest.mark.parametrize("case", list(HIDDEN))
def test_a_column_that_is_not_listed_is_found_wherever_a_workload_hides_it(case: str, study: Study) -> None:
    plan = plan_of(study, {"name": "hidden", **HIDDEN[case]})
    at = Situation(datetime.now(UTC), SMALL, name="north")
    for listed, refused in ((["known"], "'age'"), (["KNOWN", "Age"], "'age'"), (["known", "age"], None)):
        policy = Policy.model_validate(POLICY | {"map_columns": listed})
        (verdict,) = [v for v in rules.explain(policy, plan, at) if v.rule == "map_columns"]
        assert verdict.permits == (refused is None)
        assert refused is None or refused in verdict.sentence
    never = Policy.model_validate(POLICY | {"never_columns": ["AGE"], "map_columns": ["known", "age"]})
    (verdict,) = [v for v in rules.explain(never, plan, at) if v.rule == "never_columns"]
    assert not verdict.permits


# --- who asks twice ---------------------------------------------------------------------------------------


def test_no_two_orders_can_be_made_to_have_one_charge(study: Study) -> None:
    """An order is named in the ledger by its whole hash. Of 64 bits of it whoever asks could find two alike in minutes,
    and the second, begun and refused for want of budget before the first was charged, would then have left uncharged."""
    plan, train = plan_of(study), study.experiment.plan("run-1", simulation=False)
    orders = [RoundOrder(train, 1, {}, train=True)]
    assert all(order.order_id.endswith(order.digest) for order in orders)
    assert MapOrder(plan).order_id.endswith(plan.sha256)
    terms = {name: getattr(plan, name) for name in Terms.model_fields}
    two = {"of": ("north", "south"), "epsilon": 1.0, "buckets": cohort.planned_buckets((300, 300), 1.0)}
    for one in (StatsPlan(**terms, column="age", sigma=3.0, delta=1e-5), CohortPlan(**terms, **two)):
        assert one.order_id.endswith(one.sha256)


def test_a_plan_without_masks_is_one_order_and_no_transcript_makes_another(
    tmp_path: Path, study: Study
) -> None:
    """A person approved one release: orders that differ in a word would each be a draw of the same counts."""
    folder, plan = deployed(tmp_path / "node", rows=people(0)), plan_of(study)
    first = ask(folder, wire.pack_map_order(MapOrder(plan), 1))
    assert isinstance(first, MapReply)
    for word in ("again", "0" * 64):
        assert ask(folder, wire.pack_map_order(MapOrder(plan, None, word), 1)) == Refusal(
            "north", Reason.MALFORMED
        )
    assert len(charged(folder)) == 1


def test_a_map_that_was_cut_off_is_drawn_the_same_again_and_never_of_other_records(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same noise on both, whoever saw the two would see the person who came."""
    folder, plan = deployed(tmp_path / "node", rows=people(0)), plan_of(study)
    noises: list[np.ndarray] = []
    made = counting.noised

    def fails(plan: MapPlan, design: Any, counted: Any, stream: Any) -> np.ndarray:
        noises.append(made(plan, design, counted, stream) - design.measure(counted))
        raise OSError("the power fails here")

    monkeypatch.setattr(counting, "noised", fails)
    order = wire.pack_map_order(MapOrder(plan), 1)
    for rows, reason in (
        (people(0), Reason.UNAVAILABLE),
        (people(0), Reason.UNAVAILABLE),
        (people(0, 301), Reason.REPLAYED),
    ):
        write_table(folder / "north.csv", rows)
        open_node.cache_clear()
        assert ask(folder, order) == Refusal("north", reason)
        assert len(charged(folder)) == 1
    np.testing.assert_array_equal(*noises)


def test_a_map_again_is_another_charge_and_other_noise(tmp_path: Path, study: Study) -> None:
    folder, plan = deployed(tmp_path / "node", rows=people(0)), plan_of(study)
    replies = [
        ask(folder, wire.pack_map_order(MapOrder(plan.but(run_id=f"run-{i}")), 1)).numbers for i in (1, 2)
    ]
    assert len(charged(folder)) == 2
    assert not np.array_equal(*replies)


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agencies", "says"),
    [
        (("north", "north", "north"), "each once"),
        (("clinic", "east", "north", "sock"), "must be participants"),
        (("clinic", "east"), "at least 3"),
    ],
)
def test_a_circle_of_made_up_agencies_is_none(
    agencies: Sequence[str], says: str, shared_plan: tuple[MapPlan, TrainPlan]
) -> None:
    values = json.loads(shared_plan[0].canonical)
    values["circle"] |= {"agencies": agencies, "colluders": 0, "dropouts": 0}
    with pytest.raises(ValueError, match=says):
        MapPlan.model_validate(values)


def test_a_map_that_rests_on_more_honesty_than_the_policy_has_is_refused(
    shared_plan: tuple[MapPlan, TrainPlan],
) -> None:
    """Of five agencies, one may collude and one fail: the noise rests on three."""
    plan, at = shared_plan[0], Situation(datetime.now(UTC), SMALL, name="north")
    for rule, permitted in (("max_honest", {2: False, 3: True}), ("min_colluders", {1: True, 2: False})):
        for number, permits in permitted.items():
            policy = Policy.model_validate(POLICY | {rule: number})
            (verdict,) = [v for v in rules.explain(policy, plan, at) if v.rule == rule]
            assert verdict.permits == permits
            assert permits or verdict.reason is Reason.PRIVACY


def test_keys_of_a_map_mask_no_other_plan_and_keys_of_a_training_no_map(
    tmp_path: Path, shared_plan: tuple[MapPlan, TrainPlan]
) -> None:
    plan, train = shared_plan
    assert plan.run_id == train.run_id
    assert plan.circle is not None
    homes = {name: tmp_path / "nodes" / name for name in plan.circle.agencies}
    for home in homes.values():
        home.mkdir(parents=True)
    signing = {name: keys.signing_key(home) for name, home in homes.items()}
    pins = {name: key.public_key().public_bytes_raw() for name, key in signing.items()}
    masks = {name: Masks(home, name, signing[name], pins) for name, home in homes.items()}
    for of, other in ((plan, train), (train, plan)):
        adverts = tuple(masks[name].keys(of, 1, None) for name in masks)
        _, roster = masks["north"].deal(of, adverts)
        assert masks["north"].may_mask(of, roster.transcript, 0) == 1
        with pytest.raises(Refused) as refused:
            masks["north"].may_mask(other, roster.transcript, 0)
        assert refused.value.reason is Reason.MASKS


def test_a_map_of_a_set_up_with_more_draws_than_one_is_malformed_and_costs_nothing(
    tmp_path: Path, shared_plan: tuple[MapPlan, TrainPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = shared_plan[0]
    policy = POLICY | {"max_honest": 3, "min_table_sigma": 0.1, "min_colluders": 1}
    folder = deployed(tmp_path / "node", policy | {"budget": {"life": 30.0, "delta": 1e-5}}, people(0))
    (folder / "node.toml").write_text((folder / "node.toml").read_text().replace("300", "120"))
    monkeypatch.setattr(Masks, "may_mask", lambda *_: 2)
    assert ask(folder, wire.pack_map_order(MapOrder(plan, 0, "t" * 64), 1)) == Refusal(
        "north", Reason.MALFORMED
    )
    assert "a map is one draw" in (folder / "log" / "node.log").read_text()
    assert charged(folder) == []


# --- who lies in a reply ------------------------------------------------------------------------------------


def _own(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the intervals that hold for all numbers together: of how many these are, every agency's answers tell."""
    return [{key: value for key, value in cell.items() if key != "wide"} for cell in cells]


def test_what_one_agency_makes_up_changes_no_other_agencys_answers(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One within what can be, one with the least number there is, whose absolute value is no int64."""
    one = asked(study, epsilon=2.0)
    honest, _, _ = drawn(one, tmp_path / "honest")
    whole = Node.map

    def lies(self: Node, order: MapOrder) -> Any:
        reply = whole(self, order)
        assert isinstance(reply, MapReply)
        signs = np.where(np.arange(reply.numbers.size) % 2, 1, -1)
        lie = {"north": signs * 2**33, "south": np.full(signs.shape, -(2**63))}
        return replace(reply, numbers=lie[self.facts.name]) if self.facts.name in lie else reply

    monkeypatch.setattr(Node, "map", lies)
    lied, _, _ = drawn(one, tmp_path / "lied")
    assert {name: facts["status"] for name, facts in lied["agencies"].items()} == {
        "clinic": "counted",
        "north": "counted",
        "south": "rejected",
    }
    for before, after in zip(honest["queries"], lied["queries"], strict=True):
        assert _own(before["agencies"]["clinic"]) == _own(after["agencies"]["clinic"])


@pytest.mark.parametrize("head", [[], "", [float("inf"), "x"], [1], {"seq": 1}, "[" * 100_000])
def test_a_reply_or_an_order_with_a_broken_part_does_not_decode_whichever_way_it_is_broken(
    head: object, study: Study
) -> None:
    """An error that nobody foresaw in one agency's reply would end the coordinator's run for all of them."""
    plan = plan_of(study)
    order = wire.pack_map_order(MapOrder(plan, heads={"north": Head(1, "x")}), 1)
    reply = wire.pack_reply(MapReply("north", np.zeros(3, np.int64), plan.releases(), Head(1, "x")), order)
    for message, whole in ((reply, '"head": [1, "x"]'), (order, '"heads": {"north": [1, "x"]}')):
        text = str(message.content["fedrisk"]["json"])
        assert whole in text
        broken = head if str(head).startswith("[[") else json.dumps(head)
        message.content["fedrisk"]["json"] = text.replace('[1, "x"]', str(broken))  # type: ignore[index]
    with pytest.raises(ValueError, match="does not decode"):
        wire.read_reply(reply)
    with pytest.raises(Refused) as refused:
        wire.read_map_order(order)
    assert refused.value.reason is Reason.MALFORMED


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_histograms_of_extremes_are_read_to_the_end(kind: type) -> None:
    """Two liars of three: the pairs are nonsense, but they come, and so does that of the others."""
    least, most = np.iinfo(kind).min, np.iinfo(kind).max
    wild = np.where(np.arange(400) % 2, most, least).astype(np.int64)
    one = np.r_[least, most, np.zeros(398)].astype(np.int64)
    calm = np.random.default_rng(0).poisson(1.0, 400)
    for pair in ((wild, one), (one, calm), (wild, -wild), (calm, calm)):
        found = cohort.both(*pair, (0.5, 0.5))
        assert all(np.isfinite([found.value, found.low, found.high]))
    assert np.isfinite(cohort.core([wild, one, calm]).value or 0)


# --- who looks at what is withheld ------------------------------------------------------------------------


def test_what_is_withheld_has_no_number_that_its_count_could_be_had_back_from() -> None:
    """The noise in a rate depends on how many people it is about: beside a rate that is not shown it would say so."""
    asked_ = read(
        {"name": "n", "queries": [{"rate": {"of": {"known": "yes"}}, "by": ["sex"]}, {"histogram": "sex"}]},
        SMALL,
    )
    found = design(asked_)
    rate, count = asked_.queries
    seen = set()
    for few in (2, 40):
        codes = {"known": np.r_[np.ones(few, int), np.zeros(400, int)], "sex": np.r_[[0] * few, [1] * 400]}
        reading = found.read(
            found.measure(Counted(codes, len(codes["sex"]), {}, 0)), 4.0 * found.sensitivity**2
        )
        shown = answer(rate, [reading], disclosure=custom(50))
        assert [cell.estimate.publishable for cell in shown] == [False, True]
        assert set(shown[0].estimate.to_dict().values()) == {None, False}
        assert shown[0].sd is None
        assert shown[1].sd is not None
        seen.add(tuple(cell.sd for cell in answer(count, [reading], disclosure=custom(50))))
    assert len(seen) == 1, "the noise in a count is the plan's, whatever is counted"


# --- what it adds up to -----------------------------------------------------------------------------------


def test_a_map_and_a_cohort_add_to_every_part_of_a_training() -> None:
    """They are of everybody, so they come on top of the worst part; of two agencies both histograms count in full."""
    tables = [Release("evaluate", "tune", 4.0, 1.0, 1, "s"), Release("evaluate", "test", 3.0, 1.0, 1, "s")]
    on_top = [Release("map", "all", 8.0, 1.0, 1, "s"), LaplaceRelease("cohort", "all", 0.4, "s")]
    whole = epsilon([*tables, *on_top], 1e-5)
    assert whole == pytest.approx(epsilon([tables[1], *on_top], 1e-5))
    assert whole > epsilon(tables, 1e-5)
    for without in on_top:
        assert epsilon([*tables, *(each for each in on_top if each is not without)], 1e-5) < whole
