"""The table of users: whom a model flags, by use of services, lead time and today's practice, from contract to result."""

import copy
import functools
import itertools
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import CONTRACT, FIVE, MakeStudy, people, permits, write_agencies, write_table
from flwr.app import Message

from clients import masking
from clients.app import make_app, node_from_config
from clients.evaluate import table_counts, user_counts
from clients.ledger import Ledger
from clients.node import open_node
from clients.papers import facts
from clients.records.data import load
from experiments import engines
from experiments.config import Study
from experiments.planning import costs, limits
from experiments.planning_noise import noise_of
from federation import masks, wire
from federation.experiment import SettingsError
from federation.plan import Reason, TrainPlan
from federation.privacy import epsilon, noise_for
from federation.protocol import Refusal, Reply, RoundOrder, RoundReply
from federation.server import checkpoint, result
from federation.server.result import RunFacts
from federation.server.rounds import run_federation
from models import risk, users
from models.contract import Contract, ContractError, validate
from models.disclosure import custom
from models.features import encode, layout
from models.spec import ModelSpec
from models.users import UserTable, tally

FACTS = RunFacts("run-1", "local", simulation=True)
DECLARED: dict[str, Any] = {
    "intensity": {
        "column": "contacts",
        "edges": [3, 8],
        "levels": ["few", "some", "many"],
        "description": "Contacts of the last year.",
    },
    "lead_time": {"column": "days", "edges": [30, 90, 180], "unit": "days"},
    "practice": {"column": "listed", "positive": ["yes"], "description": "On today's list."},
}
USERS: dict[str, Any] = {**CONTRACT, "split": {"column": "part"}, **DECLARED}
CELLS = 2 * 2 * 4 * 6


def contract(**changes: Any) -> Contract:
    return Contract.from_dict(USERS | changes)


def with_users(seed: int, n: int = 300) -> list[dict[str, object]]:
    """`conftest.people` with what the declarations read: empty cells, and days for people without the outcome too."""
    rng = np.random.default_rng([seed, 7])
    rows = people(seed, n)
    for row in rows:
        contacts = int(rng.integers(0, 14))
        row["contacts"] = contacts if rng.random() > 0.05 else ""
        row["days"] = int(rng.integers(-5, 250)) if rng.random() > 0.1 else ""
        row["listed"] = "yes" if contacts > 8 or rng.random() < 0.1 else "no"
        row["part"] = rng.choice(["train", "tune", "test"], p=[0.4, 0.2, 0.4])
    return rows


def write_users(folder: Path, kinds: dict[str, str], n: int = 300) -> None:
    """`conftest.write_agencies` with the declarations."""
    write_agencies(folder, kinds, n)
    (folder / "contract.yaml").write_text(yaml.safe_dump(USERS, sort_keys=False))
    for seed, (name, kind) in enumerate(kinds.items()):
        write_table(folder / f"{name}.csv", with_users(seed, n), () if kind == "health" else ("visits",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three agencies, for `make_study`."""
    write_users(tmp_path, {"north": "police", "clinic": "health", "south": "police"})
    return tmp_path


# --- the contract ---------------------------------------------------------------------------------------


def test_what_is_not_declared_leaves_a_contract_as_it_was() -> None:
    plain = Contract.from_dict(CONTRACT)
    assert not {"intensity", "lead_time", "practice"} & set(plain.to_dict())
    # of this contract before there were such declarations
    assert plain.sha256 == "de9676c456dbaad5eaccff9f6a7510edad9dccf11c73fb1664902fbd6ae87d11"
    assert plain.users_shape is None
    assert "user" not in plain.needs("police")


@pytest.mark.parametrize(
    "keys", [(), *itertools.combinations(DECLARED, 1), *itertools.combinations(DECLARED, 2)]
)
def test_declarations_survive_the_canonical_form_and_say_their_shape(keys: tuple[str, ...]) -> None:
    declared = {key: DECLARED[key] for key in keys}
    found = Contract.from_dict(CONTRACT | declared)
    assert Contract.from_dict(json.loads(json.dumps(found.to_dict(), sort_keys=True))) == found
    shape = (
        2,
        2 if "practice" in keys else 1,
        4 if "intensity" in keys else 1,
        6 if "lead_time" in keys else 2,
    )
    assert found.users_shape == (shape if keys else None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"lead_time": DECLARED["lead_time"] | {"column": "age"}},
            "lead_time.column 'age' must not be a feature too, for it is known only once the outcome is: remove it from "
            "columns",
        ),
        (
            {"practice": DECLARED["practice"] | {"column": "known"}},
            "practice.column 'known' must not be a feature too, for it is compared with the model: remove it from columns",
        ),
        (
            {"lead_time": DECLARED["lead_time"] | {"column": "sex"}},
            "lead_time.column 'sex' must not be the column of the group sex, for it is known only once the outcome is",
        ),
        (
            {"practice": DECLARED["practice"] | {"column": "outcome"}},
            "practice.column 'outcome' must not be the column of label, for it is compared with the model",
        ),
        (
            {"practice": DECLARED["practice"] | {"column": "days"}},
            "practice.column 'days' must not be the column of lead_time, for it is compared with the model",
        ),
        (
            {"intensity": DECLARED["intensity"] | {"column": "person"}},
            "intensity.column 'person' must not be the column of unit",
        ),
        (
            {"intensity": DECLARED["intensity"] | {"column": "known"}},
            "intensity.edges needs a number, but columns.known is a flag",
        ),
        (
            {"intensity": {"column": "age", "levels": ["low", "high"]}},
            "intensity.edges is required, for 'age' is read as a number",
        ),
        (
            {"intensity": DECLARED["intensity"] | {"levels": ["few", "other", "many"]}},
            "intensity.levels may not list 'other', which is for people whose use is not known",
        ),
        (
            {"intensity": {"column": "contacts", "levels": ["all"]}},
            "intensity.levels must list at least 2, the least intensive first and the most intensive last",
        ),
        (
            {"intensity": DECLARED["intensity"] | {"edges": [3]}},
            "intensity.levels must be one more than edges, got 3 levels and 1 edges",
        ),
        (
            {"lead_time": {"column": "days", "unit": "days", "edges": [0, 30]}},
            "lead_time.edges must be above 0 and ascend",
        ),
        (
            {"lead_time": {"column": "days", "unit": "days"}},
            "lead_time.edges is required: numbers above 0 where bands of time end",
        ),
        ({"lead_time": {"column": "days", "edges": [30]}}, "lead_time.unit is required"),
        ({"practice": {"column": "listed"}}, "practice.positive must be a list with at least one entry"),
        (
            {"practice": DECLARED["practice"] | {"posit": ["1"]}},
            "practice.posit is not a known setting (did you mean positive?)",
        ),
        (
            {"lead_time": {"column": "days", "unit": "days", "edges": list(range(1, 40))}},
            "intensity, lead_time and practice must have at most 512 combinations, got 672: declare fewer levels or edges",
        ),
    ],
)
def test_a_contract_that_cannot_be_is_refused_with_one_sentence(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ContractError) as refused:
        contract(**changes)
    assert refused.value.problems == (sentence,)


def test_only_whoever_holds_the_label_needs_the_columns() -> None:
    needs = contract().needs("police")
    assert {name: needs[name] for name in ("contacts", "days", "listed")} == {
        "contacts": "number",
        "days": "number",
        "listed": "text",
    }
    assert not {"contacts", "days", "listed"} & set(contract().needs("charity"))


def test_the_papers_say_what_is_read_for_it() -> None:
    roles = {name: role for name, role, _, _ in facts._others(contract(), "police")}
    assert roles["contacts"] == "how intensively services are used"
    assert roles["days"] == "time to the outcome, never a feature"
    assert roles["listed"] == "today's practice, never a feature"
    assert not {"contacts", "days", "listed"} & {name for name, *_ in facts._others(contract(), "charity")}


def table_of(rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
    """As a node reads it: numbers with NaN, text with None."""
    needs = contract().needs("health")
    frame = pd.DataFrame(rows)
    found = {}
    for name in frame:
        if needs.get(str(name)) == "number":
            found[str(name)] = pd.to_numeric(frame[name]).to_numpy(np.float64)
        else:
            texts = np.array([str(value) or None for value in frame[name]], dtype=object)
            found[str(name)] = texts
    return found


def test_a_table_is_held_against_the_declarations_by_column_and_rule() -> None:
    table = table_of(with_users(1))
    assert validate(contract(), table, "health") == ()
    table["listed"][3], table["days"] = None, np.full(300, np.nan)
    table["contacts"] = np.array(["8.7654321"] * 300, dtype=object)
    problems = [str(problem) for problem in validate(contract(), table, "health")]
    assert sorted(problems) == [
        "column 'contacts' must be a number",
        "column 'days' has no value in any row",
        "column 'listed' has missing values, which the contract does not allow",
    ]
    del table["listed"]
    assert "column 'listed' is not in the table" in map(str, validate(contract(), table, "health"))


# --- one person, one cell -------------------------------------------------------------------------------


def place_by_hand(row: dict[str, Any]) -> int:
    """Independent of `models.features`: the place in (practice, intensity, lead)."""
    level = 3 if row["contacts"] == "" else 0 if row["contacts"] < 3 else 1 if row["contacts"] < 8 else 2
    lead = 0
    if row["outcome"] == 1:
        days = row["days"]
        lead = 5 if days == "" or days < 0 else 1 + sum(days >= edge for edge in (30, 90, 180))
    return (row["listed"] == "yes") * 24 + level * 6 + lead


def test_everyone_is_where_the_contract_says() -> None:
    rows = with_users(3, 2000)
    found = encode(contract(), table_of(rows), "health").user
    assert found is not None
    assert found.tolist() == [place_by_hand(row) for row in rows]
    assert len(set(found.tolist())) == 48, "every cell is tried"


def test_levels_may_be_words_and_an_agency_that_lacks_the_block_has_nobody_in_them() -> None:
    words = {"column": "contact", "levels": {"seldom": ["none", "some"], "often": ["frequent"]}}
    rows = [
        {**row, "contact": ("none", "some", "frequent", "odd", "")[i % 5]}
        for i, row in enumerate(with_users(1))
    ]
    found = encode(contract(intensity=words, practice=None, lead_time=None), table_of(rows), "health").user
    assert found is not None
    assert (found // 2).tolist() == [(0, 0, 1, 2, 2)[i % 5] for i in range(len(rows))]
    held = contract(intensity={"column": "visits", "edges": [5], "levels": ["few", "many"]})
    assert "visits" not in held.needs("police")
    found = encode(held, table_of(rows), "police").user
    assert found is not None
    assert set((found // 6 % 3).tolist()) == {2}


def test_where_a_person_has_several_rows_the_newest_counts() -> None:
    rows = with_users(1, 40)
    rows = [{**row, "month": 1} for row in rows] + [
        {**row, "month": 2, "listed": "yes", "contacts": 9} for row in rows
    ]
    unit = {"kind": "person", "column": "person", "rows": 2, "order_by": "month"}
    found = encode(contract(unit=unit), table_of(rows), "health").user
    assert found is not None
    assert found.tolist() == [place_by_hand(row) for row in rows[40:]]


def module() -> torch.nn.Module:
    """A logistic model that flags some people: its weights are drawn once."""
    made = risk.build(ModelSpec("logistic"), len(layout(contract()).names))
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=w.shape).astype(np.float32) for name, w in risk.weights_of(made).items()}
    risk.load_weights(made, drawn)
    return made


def counts_of(rows: list[dict[str, object]], cutoff: float = 0.5) -> np.ndarray:
    found = encode(contract(), table_of(rows), "health")
    assert found.user is not None
    return user_counts(
        module(),
        torch.from_numpy(found.x),
        found.user,
        cutoff=cutoff,
        shape=contract().users_shape or (2, 1, 1, 2),
    )


def test_one_person_more_or_less_changes_one_cell_by_one() -> None:
    rows = with_users(5, 60)
    whole = counts_of(rows)
    assert whole.sum() == 60
    for i in range(60):
        apart = whole - counts_of(rows[:i] + rows[i + 1 :])
        assert sorted(apart.ravel())[-2:] == [0, 1]
        assert apart.sum() == 1


@pytest.mark.parametrize("cutoff", [0.3, 0.5])
def test_whoever_is_flagged_is_at_or_above_the_edge_of_the_score_table(cutoff: float) -> None:
    rows = with_users(6, 500)
    found = encode(contract(), table_of(rows), "health")
    assert found.y is not None
    edges = np.array([0, 0.1, cutoff, 0.9, 1])
    scored = table_counts(
        module(), torch.from_numpy(found.x), torch.from_numpy(found.y), found.group, edges=edges, n_groups=2
    )
    counts = counts_of(rows, cutoff)
    for flagged, bins in ((0, slice(0, 2)), (1, slice(2, 4))):
        assert scored[:, bins].sum((0, 1)).tolist() == [
            counts[flagged, ..., 0].sum(),
            counts[flagged, ..., 1:].sum(),
        ]


def test_other_records_are_another_digest(tmp_path: Path) -> None:
    """The randomness of an order is kept for the records that it was made for: users are among them."""
    from clients.node import Resident

    def digest(rows: list[dict[str, object]]) -> bytes:
        write_table(tmp_path / "t.csv", rows)
        share = {"train": 0.4, "tune": 0.2, "test": 0.4}
        return Resident(
            load(contract(), tmp_path / "t.csv", "health", fractions=share, key=b"k", min_people=1)
        ).digest

    rows = with_users(1)
    changed = copy.deepcopy(rows)
    changed[4]["listed"] = "no" if rows[4]["listed"] == "yes" else "yes"
    assert digest(rows) == digest(copy.deepcopy(rows)) != digest(changed)


# --- what is told ---------------------------------------------------------------------------------------


def by_pandas(frame: pd.DataFrame, cutoff: float) -> dict[str, Any]:
    """Every value of `users`, from rows with score, outcome, contacts, days and listed."""
    frame = frame.assign(flag=frame["score"] >= cutoff, y=frame["outcome"] == 1, old=frame["listed"] == "yes")
    level = (
        pd.cut(frame["contacts"], [-1, 2, 7, 99], labels=["few", "some", "many"])
        .astype(object)
        .fillna("other")
    )
    flagged, right = frame[frame["flag"]], frame[frame["flag"] & frame["y"]]
    weight, old, positive = cutoff / (1 - cutoff), frame["old"], frame[frame["y"]]
    days = right["days"].where(right["days"] >= 0)
    bands = pd.cut(days, [0, 30, 90, 180, math.inf], right=False, labels=False)
    median = bands.dropna().sort_values().iloc[[(bands.count() - 1) // 2, bands.count() // 2]]
    return {
        "by_intensity": {
            name: {
                "people": (level == name).sum(),
                "share_of_flagged": (level[frame["flag"]] == name).mean(),
                "selection_rate": frame["flag"][level == name].mean(),
                "tpr": frame["flag"][(level == name) & frame["y"]].mean(),
                "base_rate": frame["y"][level == name].mean(),
            }
            for name in ("few", "some", "many", "other")
        },
        "most_intensive_share_of_flagged": (level[flagged.index] == "many").mean(),
        "found_beyond": level[right.index].isin(["few", "some"]).mean(),
        "lead": [(bands == band).mean() for band in range(4)],
        "unknown": bands.isna().mean(),
        "median": None if median.nunique() > 1 else int(median.iloc[0]),
        "practice": {
            "selection_rate": old.mean(),
            "tpr": positive["old"].mean(),
            "fpr": old[~frame["y"]].mean(),
            "ppv": frame["y"][old].mean(),
            "net_benefit": ((old & frame["y"]).sum() - weight * (old & ~frame["y"]).sum()) / len(frame),
            "agreement": (frame["flag"] == old).mean(),
            "found_only_by_model": (positive["flag"] & ~positive["old"]).mean(),
            "found_only_by_practice": (~positive["flag"] & positive["old"]).mean(),
        },
    }


def values_of(told: dict[str, Any]) -> dict[str, Any]:
    """The values of `users` in the shape of `by_pandas`, without the median."""

    def values(found: Any) -> Any:
        if isinstance(found, dict) and "publishable" in found:
            return found["value"]
        return {key: values(each) for key, each in found.items()}

    return {
        **{key: values(told[key]) for key in ("by_intensity", "practice")},
        "most_intensive_share_of_flagged": told["most_intensive_share_of_flagged"]["value"],
        "found_beyond": told["found_beyond"]["value"],
        "lead": [band["share"]["value"] for band in told["lead"]["bands"]],
        "unknown": told["lead"]["unknown"]["value"],
    }


def alike(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key, each in expected.items():
            alike(found[key], each)
    else:
        assert found == pytest.approx(expected, abs=1e-12)


@functools.cache
def population(seed: int = 11, n: int = 4000) -> tuple[pd.DataFrame, UserTable]:
    rows = with_users(seed, n)
    found = encode(contract(), table_of(rows), "health")
    with torch.no_grad():
        score = torch.sigmoid(module()(torch.from_numpy(found.x))).double().numpy()
    frame = pd.DataFrame(rows).assign(score=score)
    for name in ("contacts", "days"):
        frame[name] = pd.to_numeric(frame[name])
    assert found.user is not None
    return frame, tally(contract().users_shape or (2, 1, 1, 2), score >= 0.5, found.user)


def test_without_noise_it_is_the_pooled_rows() -> None:
    frame, table = population()
    told = users.summarise(table, contract(), 0.5)
    expected = by_pandas(frame, 0.5)
    median = expected.pop("median")
    alike(values_of(told), expected)
    bounds = (0.0, 30.0, 90.0, 180.0, None)
    assert told["lead"]["median"] == {"low": bounds[median], "high": bounds[median + 1]}
    assert [(band["low"], band["high"]) for band in told["lead"]["bands"]] == list(itertools.pairwise(bounds))


def test_what_is_not_declared_is_null() -> None:
    for key in DECLARED:
        one = Contract.from_dict(CONTRACT | {key: DECLARED[key]})
        told = users.summarise(UserTable(np.full(one.users_shape or (), 50.0)), one, 0.5)
        told_of = {name for name, value in told.items() if value is not None}
        assert (
            told_of
            == {
                "intensity": {"by_intensity", "most_intensive_share_of_flagged", "found_beyond"},
                "lead_time": {"lead"},
                "practice": {"practice"},
            }[key]
        )


def test_tables_add_up_and_nobody_is_nothing() -> None:
    _, table = population()
    half = UserTable(np.floor(table.counts / 2), 2.0)
    rest = UserTable(table.counts - half.counts, 3.0)
    both = half + rest
    np.testing.assert_array_equal(both.counts, table.counts)
    assert (both.variance == 5).all()
    nobody = users.summarise(UserTable(np.zeros(table.counts.shape)), contract(), 0.5)
    flat = json.dumps(nobody, allow_nan=False)
    assert '"publishable": true' not in flat
    assert nobody["lead"]["median"] is None
    with pytest.raises(ValueError, match="different shapes"):
        table + UserTable(np.zeros((2, 1, 1, 2)))
    for wrong in (np.zeros((3, 1, 1, 2)), np.zeros((2, 1, 1)), np.full((2, 1, 1, 2), np.nan)):
        with pytest.raises(ValueError, match="counts"):
            UserTable(wrong)


def test_few_people_and_much_noise_are_not_published() -> None:
    _, table = population()
    few = users.summarise(UserTable(table.counts), contract(), 0.5, disclosure=custom(10_000))
    noisy = users.summarise(UserTable(table.counts, 200.0**2), contract(), 0.5)
    for told in (few, noisy):
        assert '"publishable": true' not in json.dumps(told)
        assert told["lead"]["median"] is None


def test_intervals_cover_and_a_median_is_seldom_wrong() -> None:
    """At a nominal 95 % each share is covered by at least 93 %, over samples of people and draws of noise together."""
    rng = np.random.default_rng(2)
    shape, sigma, runs = contract().users_shape or (), 6.0, 600
    chance = rng.dirichlet(np.full(math.prod(shape), 0.7)).reshape(shape)
    truth = users.summarise(UserTable(chance * 1e9), contract(), 0.5)
    told: dict[str, list[bool]] = {}
    medians = []
    for _ in range(runs):
        counts = rng.multinomial(3000, chance.ravel()).reshape(shape)
        noised = UserTable(counts + np.rint(rng.normal(0, sigma, shape)), sigma**2)
        found = users.summarise(noised, contract(), 0.5)
        for name, true, got in estimates(truth, found):
            told.setdefault(name, []).append(got["low"] <= true["value"] <= got["high"])
        medians.append(found["lead"]["median"])
    assert len(told) == 4 * 4 + 2 + 5 + 8
    assert min(np.mean(covered) for covered in told.values()) >= 0.93
    clear = [median for median in medians if median is not None]
    assert len(clear) > runs / 4, "the control: it is often clear"
    assert np.mean([median == truth["lead"]["median"] for median in clear]) >= 0.95


def estimates(
    true: dict[str, Any], found: dict[str, Any]
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Pairs of the shares in both; how many people there are is no share, its interval is the noise's alone."""
    pairs = []
    for name in ("most_intensive_share_of_flagged", "found_beyond"):
        pairs.append((name, true[name], found[name]))
    for i, band in enumerate(found["lead"]["bands"]):
        pairs.append((f"band {i}", true["lead"]["bands"][i]["share"], band["share"]))
    pairs.append(("unknown", true["lead"]["unknown"], found["lead"]["unknown"]))
    for name, each in found["practice"].items():
        pairs.append((name, true["practice"][name], each))
    for level, each in found["by_intensity"].items():
        pairs += [
            (f"{level} {k}", true["by_intensity"][level][k], e) for k, e in each.items() if k != "people"
        ]
    return pairs


# --- the federation -------------------------------------------------------------------------------------


def federate(study: Study, folder: Path, app: Callable[..., Any] = node_from_config) -> dict[str, Any]:
    nodes = engines.make_node_folders(
        study.agencies, study.experiment.contract, folder / "nodes", seed=0, min_people=20
    )
    grid = engines.LocalGrid(make_app(app), [{"node-dir": str(node)} for node in nodes])
    return run_federation(grid, study.experiment, FACTS, folder)


def ledger_of(folder: Path, name: str) -> Ledger:
    path = folder / "nodes" / name / "ledger.db"
    return Ledger(path, budget=None, scope="this run alone", people=f"{name}/people")


def test_a_run_without_noise_tells_what_the_pooled_rows_tell(
    make_study: MakeStudy, folder: Path, tmp_path: Path
) -> None:
    """Oracle: pandas on the rows of every agency's file that say test, scored with the final weights."""
    found = federate(
        make_study("privacy=none", "evaluation.cutoff=0.4", "evaluation.disclosure=none"), tmp_path
    )
    state = checkpoint.read_last(tmp_path / "checkpoints")
    assert state is not None
    (w,), (b,) = ([v for n, v in state.weights.items() if n.endswith(end)] for end in ("weight", "bias"))
    frames = []
    for name in ("clinic", "north", "south"):
        x, *_ = open_node(tmp_path / "nodes" / name)._dataset(0.2, 0.2).part("test")
        frame = pd.read_csv(folder / f"{name}.csv")
        frame = frame[frame["part"] == "test"].reset_index(drop=True)
        logit = x.numpy().astype(np.float64) @ w[0].astype(np.float64) + b[0]
        frames.append(frame.assign(score=1 / (1 + np.exp(-logit))))
    pooled = pd.concat(frames, ignore_index=True)
    told = found["users"]
    expected = by_pandas(pooled, 0.4)
    expected.pop("median")
    alike(values_of(told), expected)
    assert (told["sigma"], told["part"]) == (0.0, "test")
    assert told["declared"] == {
        "intensity": {
            "column": "contacts",
            "levels": ["few", "some", "many"],
            "description": "Contacts of the last year.",
        },
        "lead_time": {"column": "days", "unit": "days", "edges": [30.0, 90.0, 180.0], "description": ""},
        "practice": {"column": "listed", "description": "On today's list."},
    }
    total = sum(each["people"]["value"] for each in told["by_intensity"].values())
    assert total == len(pooled) == found["final"]["metrics"]["overall"]["people"]["value"]
    json.dumps(found, allow_nan=False)


def test_both_tables_together_keep_the_epsilon_and_the_result_is_the_ledger(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study("privacy.evaluate_epsilon=1.5", "privacy.epsilon=0.5", "evaluation.checkpoints=0")
    plan, found = study.experiment.plan("run-1", simulation=True), federate(study, tmp_path)
    delta = plan.privacy.delta
    assert plan.privacy.test_sigma == noise_for(1.5, delta, 1.0, 2)
    both = [plan.table_release("test"), *plan.users_releases()]
    assert epsilon(both[:1], delta) < 1.2 < epsilon(both, delta) <= 1.5
    for name in ("clinic", "north", "south"):
        with ledger_of(tmp_path, name) as ledger:
            spent, charged = ledger.epsilon(delta), ledger.releases()
        assert [(event.kind, event.part) for event in charged].count(("users", "test")) == 1
        told = found["agencies"][name]
        assert told["epsilon"]["total"] == spent == told["epsilon"]["evaluate"] == epsilon(both, delta)
        listed = [event.to_dict() | {"split_id": ""} for event in charged]
        for event in told["releases"]:
            times = event["times"]
            assert listed.count({key: value for key, value in event.items() if key != "times"}) == times
        assert sum(event["times"] for event in told["releases"]) == len(charged) == len(plan.releases())
    assert found["users"]["sigma"] == pytest.approx(math.sqrt(3) * plan.privacy.test_sigma)
    assert costs(plan, 3)["coordinator"].test == epsilon(both, delta)


def test_a_policy_admits_with_the_lines_that_plan_prints_and_says_no_without_the_kind(
    make_study: MakeStudy,
) -> None:
    from clients import rules
    from clients.policy import Policy

    experiment = make_study().experiment
    plan = experiment.plan("run-1", simulation=False)
    at = rules.Situation(datetime.now(UTC), experiment.data_contract)
    policy = Policy.model_validate(permits(USERS, budget={"life": 1e6, "delta": 1e-5}))
    verdict = rules.deciding(rules.explain(policy, plan, at))
    assert verdict is not None
    assert (verdict.rule, verdict.reason) == ("releases", Reason.MODEL)
    assert verdict.sentence == "the plan takes 'users', which is not listed"
    assert 'releases = ["train", "evaluate", "users"]' in limits(plan).toml
    more = policy.but(releases=("train", "evaluate", "users"))
    assert rules.deciding(rules.explain(more, plan, at)) is None
    assert noise_of(experiment, plan).users == noise_of(experiment, plan).test
    without = make_study("evaluation.users=false").experiment.plan("run-1", simulation=False)
    assert noise_of(experiment, without).users.tables == 0
    assert rules.deciding(rules.explain(policy, without, at)) is None
    never = more.but(never_columns=("Listed",))
    verdict = rules.deciding(rules.explain(never, plan, at))
    assert verdict is not None
    assert verdict.sentence == "the plan needs 'listed', never to be used here"


def test_a_refusal_reads_no_record_and_charges_nothing(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study()
    (node, *_) = engines.make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "nodes", seed=0, min_people=20
    )
    text = (node / "policy.toml").read_text()
    (node / "policy.toml").write_text('releases = ["train", "evaluate"]\n' + text)
    monkeypatch.setattr("clients.node.load", None)
    plan = study.experiment.plan("run-1", simulation=True)
    weights = risk.weights_of(risk.build(plan.model, len(layout(contract()).names)))
    order = RoundOrder(plan, 5, weights, False, ("test",))
    assert ask(node, wire.pack_round_order(order, 1)) == Refusal(node.name, Reason.MODEL)
    assert [entry.action for entry in open_node(node).ledger.entries()] == ["people"]


def ask(node: Path, order: Message) -> Reply:
    grid = engines.LocalGrid(make_app(node_from_config), [{"node-dir": str(node)}])
    (reply,) = grid.pull_messages(grid.push_messages([order]))
    return wire.read_reply(reply)


@pytest.mark.parametrize("cells", [4, CELLS - 2, CELLS + 2])
def test_a_table_that_is_not_the_contracts_is_malformed(
    make_study: MakeStudy, tmp_path: Path, cells: int
) -> None:
    study = make_study()
    (node, *_) = engines.make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "nodes", seed=0, min_people=20
    )
    plan = study.experiment.plan("run-1", simulation=True)
    assert plan.users is not None
    assert plan.users.cells == CELLS
    other = plan.but(users=plan.users.but(cells=cells))
    assert ask(node, wire.pack_ready_order(other, 1)) == Refusal(node.name, Reason.MALFORMED)
    with pytest.raises(ValueError, match=r"users\.cutoff must be one of edges"):
        plan.but(users=plan.users.but(cutoff=0.123))
    assert [entry.action for entry in open_node(node).ledger.entries()] == ["people"]


def test_a_contract_without_declarations_refuses_to_count_users(tmp_path: Path) -> None:
    write_agencies(tmp_path, {"north": "police"})
    study = study_of(tmp_path)
    plan = study.experiment.plan("run-1", simulation=True)
    assert plan.users is None
    assert plan.privacy.test_sigma == noise_for(3.0, plan.privacy.delta, 1.0, 1)
    assert {event.kind for event in plan.releases()} == {"train", "evaluate"}
    order = RoundOrder(plan, 5, {}, False, ("tune", "test"))
    assert order.tables == order.evaluate
    (node,) = engines.make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "nodes", seed=0, min_people=20
    )
    asked = plan.but(users={"cutoff": 0.5, "cells": 4})
    assert ask(node, wire.pack_ready_order(asked, 1)) == Refusal("north", Reason.MALFORMED)
    found = federate(study, tmp_path)
    assert found["users"] is None


def study_of(folder: Path, *overrides: str) -> Study:
    from experiments.config import compose, read

    common = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
    return read(compose([*common, f"output={folder}/outputs", "rounds=4", *overrides]))


def test_a_run_that_is_not_to_take_it_says_what_it_would_have_told(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study("evaluation.users=false")
    plan, found = study.experiment.plan("run-1", simulation=True), federate(study, tmp_path)
    assert plan.users is None
    assert plan.privacy.test_sigma == noise_for(3.0, plan.privacy.delta, 1.0, 1)
    told = found["users"]
    assert told["declared"]["practice"] == {"column": "listed", "description": "On today's list."}
    assert all(told[key] is None for key in ("sigma", "by_intensity", "found_beyond", "lead", "practice"))
    with ledger_of(tmp_path, "north") as ledger:
        assert "users" not in {event.kind for event in ledger.releases()}


Tables = dict[str, np.ndarray]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """The coordinator's tables of the last order, as it has them."""
    found: Tables = {}
    real = result.users_of

    def users_of(experiment: Any, plan: Any, measured: int, known: Tables) -> Any:
        found.update(known)
        return real(experiment, plan, measured, known)

    monkeypatch.setattr(result, "users_of", users_of)
    return found


def test_noise_is_its_own_and_as_large_as_charged(
    make_study: MakeStudy, tmp_path: Path, tables: Tables
) -> None:
    """The low bits tell nothing: every cell is a whole multiple of the grid, and no cell is exact."""
    from clients import noise

    study = make_study("evaluation.checkpoints=0")
    federate(study, tmp_path)
    state = checkpoint.read_last(tmp_path / "checkpoints")
    assert state is not None
    plan = study.experiment.plan("run-1", simulation=True)
    steps = noise.of_counts(plan.privacy.test_sigma).steps
    for name in ("clinic", "north", "south"):
        x, user = open_node(tmp_path / "nodes" / name)._dataset(0.2, 0.2).users("test")
        sent = tables[f"users/4/{name}"]
        assert (sent * steps == np.rint(sent * steps)).all()
        made = risk.build(plan.model, x.shape[-1])
        risk.load_weights(made, dict(state.weights))
        exact = user_counts(made, x, user, cutoff=0.5, shape=contract().users_shape or (2, 1, 1, 2))
        assert exact.sum() == len(x)
        assert 0.7 < np.std(sent - exact) / plan.privacy.test_sigma < 1.3
        scores = tables[f"test/4/{name}"]
        assert not np.isin(np.round(sent - exact, 6), np.round(scores - np.rint(scores), 6)).all()


# --- behind masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [5, 4])
def test_behind_masks_the_table_is_the_sum_of_the_agencies(
    make_shared: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: Tables, keep: int
) -> None:
    write_users(tmp_path, FIVE, 120)
    hidden: dict[int, dict[str, np.ndarray]] = {}
    real = masking.Masks.mask

    def mask(
        self: masking.Masks, plan: TrainPlan, transcript: str, draw: int, vector: np.ndarray
    ) -> np.ndarray:
        if draw == 3 and len(hidden.get(3, {})) == keep:
            raise RuntimeError("falls silent")
        hidden.setdefault(draw, {})[self.name] = vector.copy()
        return real(self, plan, transcript, draw, vector)

    monkeypatch.setattr(masking.Masks, "mask", mask)
    study = make_shared()
    plan = study.experiment.plan("run-1", simulation=True)
    found = federate(study, tmp_path)
    shared = plan.privacy.shared
    assert shared is not None
    sum_ = np.sum([masks.unwrap(vector).astype(object) for vector in hidden[3].values()], axis=0)
    assert len(sum_) == 2 * shared.cells + CELLS
    np.testing.assert_array_equal(
        tables[f"users/3/+{keep}"].ravel(),
        sum_[2 * shared.cells :].astype(float) / shared.steps_per_person,
    )
    (release,) = plan.users_releases()
    assert (release.kind, release.part, release.dimension) == ("users", "test", CELLS)  # type: ignore[union-attr]
    variance = keep * release.share_variance / release.sensitivity**2  # type: ignore[union-attr]
    assert found["users"]["sigma"] == pytest.approx(math.sqrt(variance))
    both = [plan.table_release("test"), release]
    assert epsilon(both, plan.privacy.delta) <= 3.0
    for name in FIVE:
        with ledger_of(tmp_path, name) as ledger:
            assert found["agencies"][name]["epsilon"]["total"] == ledger.epsilon(plan.privacy.delta)


# --- an agency that sends something else -----------------------------------------------------------------


def lying(change: Callable[[RoundReply], None]) -> type[engines.LocalGrid]:
    """A grid on which the reply of one agency to the last order is changed on its way."""

    class Changed(engines.LocalGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            found = list(super().pull_messages(message_ids))
            for i, message in enumerate(found):
                reply = wire.read_reply(message)
                if isinstance(reply, RoundReply) and reply.agency == "south" and "users" in reply.tables:
                    change(reply)
                    found[i] = Message(wire._content(reply), metadata=message.metadata)  # type: ignore[call-overload]
            return found

    return Changed


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (lambda t: t[:, :, :, 1:], "users must have shape (2, 2, 4, 6) and type float64"),
        (lambda t: t.astype(np.float32), "users must have shape (2, 2, 4, 6) and type float64"),
        (lambda t: t * np.nan, "users has NaN or infinite values"),
        (lambda t: t + 1e5, "users counts more people in a cell than 2 x its declared size"),
        (None, "the reply is not what was ordered"),
    ],
)
def test_a_table_of_another_shape_or_size_is_rejected_and_named(
    make_study: MakeStudy, tmp_path: Path, table: Callable[[np.ndarray], np.ndarray] | None, sentence: str
) -> None:
    def change(reply: RoundReply) -> None:
        tables = reply.tables
        assert isinstance(tables, dict)
        tables |= {} if table is None else {"users": table(tables["users"])}
        if table is None:
            del tables["users"]

    study = make_study("rounds=1", "evaluation.checkpoints=0")
    nodes = engines.make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "nodes", seed=0, min_people=20
    )
    grid = lying(change)(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    found = run_federation(grid, study.experiment, FACTS, tmp_path)
    assert found["final"]["rejected"] == {"south": sentence}
    plan = study.experiment.plan("run-1", simulation=True)
    assert found["users"]["sigma"] == pytest.approx(math.sqrt(2) * plan.privacy.test_sigma)


def test_a_target_that_no_noise_keeps_for_both_is_one_sentence(make_study: MakeStudy) -> None:
    tight = ("privacy.epsilon=3", "privacy.evaluate_epsilon=0.00351", "evaluation.checkpoints=0")
    make_study(*tight, "evaluation.users=false")
    with pytest.raises(SettingsError, match="privacy: no noise_multiplier up to 10000 keeps 2 steps"):
        make_study(*tight)
