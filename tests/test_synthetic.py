"""The made-up population is what docs/synthetic.md says it is: seeded, with a known risk and known disparities."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from experiments.datasets import CONTRACTS
from experiments.synthetic import (
    BLOCKS,
    COEFFICIENTS,
    DISPARITIES,
    HORIZON,
    INTERCEPT,
    KINDS,
    MAY_BE_MISSING,
    PEOPLE,
    PRACTICE,
    SCALES,
    SHARED,
    Options,
    Population,
    declared_size,
    encode_truth,
    latent_features,
    population,
    tables,
    true_risk,
)
from models.contract import Contract, Number, validate
from models.features import encode, layout

Tables = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.from_dict(yaml.safe_load((CONTRACTS / "synthetic.yaml").read_text()))


@pytest.fixture(scope="module")
def people() -> Population:
    return population()


@pytest.fixture(scope="module")
def agencies(people: Population) -> Tables:
    return tables(people)


@pytest.fixture(scope="module")
def many() -> Population:
    return population(Options(seed=3, people=5.0))


def known(people: Population) -> np.ndarray:
    return people.member.any(axis=1)


def rows_of(table: dict[str, np.ndarray]) -> list[tuple[object, ...]]:
    return list(zip(*(column.astype(str).tolist() for column in table.values()), strict=True))


def test_a_seed_is_a_population(people: Population, agencies: Tables) -> None:
    again, other = tables(population()), tables(population(Options(seed=1)))
    for name, table in agencies.items():
        assert rows_of(table) == rows_of(again[name])
        assert rows_of(table) != rows_of(other[name])


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_every_table_fits_the_contract(contract: Contract, seed: int, size: float) -> None:
    for name, table in tables(population(Options(seed, size))).items():
        assert validate(contract, table, name) == ()


def test_the_scales_are_those_of_the_contract(contract: Contract) -> None:
    numbers = {column.name: column for column in contract.columns if isinstance(column, Number)}
    assert set(numbers) == set(SCALES)
    for name, scale in SCALES.items():
        column = numbers[name]
        assert (scale.low, scale.high, scale.log) == (column.min, column.max, column.log)
        assert (scale.center, scale.spread) == (column.center, column.scale)


def test_the_features_of_the_newest_rows_are_the_truth_as_recorded(
    contract: Contract, people: Population
) -> None:
    """`encode` and `encode_truth` are written apart; without missing values they must agree."""
    complete = population(Options(missing=0.0))
    names = layout(contract).names
    place = {person: i for i, person in enumerate(complete.person_id)}
    truth = encode_truth(dict(complete.truth) | {"prior_contacts": complete.recorded_contacts})
    for kind in KINDS:
        encoded = encode(contract, tables(complete)[kind.name], kind.name)
        who = np.array([place[person] for person in encoded.ids])
        np.testing.assert_array_equal(encoded.y, complete.label[who])
        shared_and_held = [f for f in truth if f.split("=")[0] in SHARED + BLOCKS[kind.block]]
        for feature in shared_and_held:
            got = encoded.x[:, names.index(feature)]
            np.testing.assert_allclose(got, truth[feature][who], atol=1e-6, err_msg=feature)


def test_the_true_coefficients_are_recovered(many: Population) -> None:
    """Maximum likelihood on the latent features lands within 4 standard errors of every coefficient."""
    x, y = latent_features(many), many.label
    fitted = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8).fit(x, y)
    design = np.column_stack([np.ones(len(y)), x])
    risk = true_risk(many)
    error = np.sqrt(np.diag(np.linalg.inv(design.T @ (design * (risk * (1 - risk))[:, None]))))
    truth = np.array([INTERCEPT, *COEFFICIENTS.values()])
    found = np.array([*fitted.intercept_, *fitted.coef_[0]])
    assert np.all(np.abs(found - truth) < 4 * error)
    assert error.max() < 0.15  # so that the test can fail


def test_the_true_risk_is_calibrated_and_as_sharp_as_declared(people: Population, many: Population) -> None:
    risk, y = true_risk(many), many.label
    for low, high in [(0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1)]:
        bin_ = (risk >= low) & (risk < high)
        assert abs(risk[bin_].mean() - y[bin_].mean()) < 4 * 0.5 / np.sqrt(bin_.sum())
    assert 0.25 < people.label[known(people)].mean() < 0.35
    assert 0.79 < roc_auc_score(people.label[known(people)], true_risk(people)[known(people)]) < 0.84


def test_the_minority_lives_in_worse_circumstances(many: Population) -> None:
    gap = many.truth["deprivation"][many.minority].mean() - many.truth["deprivation"][~many.minority].mean()
    assert gap == pytest.approx(
        2.6 * DISPARITIES.deprivation_shift, rel=0.15
    )  # 2.6 deciles a deviation, cut at 1, 10
    assert true_risk(many)[many.minority].mean() > true_risk(many)[~many.minority].mean() + 0.03


def test_contacts_of_the_minority_are_recorded_too_often(many: Population) -> None:
    happened, recorded = many.truth["prior_contacts"], many.recorded_contacts
    np.testing.assert_array_equal(recorded[~many.minority], happened[~many.minority])
    ratio = recorded[many.minority].sum() / happened[many.minority].sum()
    assert ratio == pytest.approx(1 + DISPARITIES.over_recording, abs=0.02)
    at_three = many.minority & (recorded == 3)
    assert happened[at_three].mean() < 2.5


def test_men_have_a_higher_risk_at_equal_circumstances(many: Population) -> None:
    logit = np.log(true_risk(many)) - np.log1p(-true_risk(many))
    rest = logit - DISPARITIES.male_logit * many.male
    assert rest[many.male].mean() == pytest.approx(rest[~many.male].mean(), abs=0.03)


def test_a_model_misjudges_the_groups_as_documented(contract: Contract, many: Population) -> None:
    """Observed over expected by group, for the best linear model that may see no group: docs/synthetic.md."""
    found = [encode(contract, table, name) for name, table in tables(many).items()]
    x, group = np.vstack([e.x for e in found]), np.concatenate([e.group for e in found])
    y = np.concatenate([np.asarray(e.y) for e in found])
    risk = LogisticRegression(max_iter=1000).fit(x, y).predict_proba(x)[:, 1]
    ratio = {
        level: y[np.isin(group, cells)].sum() / risk[np.isin(group, cells)].sum()
        for levels in contract.group_margins.values()
        for level, cells in levels.items()
    }
    assert ratio == pytest.approx(
        {"female": 0.89, "male": 1.11, "majority": 1.02, "minority": 0.95}, abs=0.02
    )


@pytest.mark.parametrize("several", [0.0, 0.2, 0.4])
def test_overlap_is_as_declared(several: float) -> None:
    people = population(Options(seed=5, known_to_several=several))
    times = Counter(people.member.sum(axis=1).tolist())
    everyone = sum(n for k, n in times.items() if k > 0)
    assert (times[2] + times[3]) == round(several * everyone)
    assert times[3] == (times[2] + times[3]) // 4
    assert set(times) <= {0, 1, 2, 3}
    assert sum(k * n for k, n in times.items()) == pytest.approx(PEOPLE, rel=0.001)


def test_people_known_to_several_are_the_same_people_there(agencies: Tables, people: Population) -> None:
    seen: dict[object, tuple[object, ...]] = {}
    newest: dict[tuple[str, object], float] = {}
    shared = 0
    for name, table in agencies.items():
        for person, month in zip(table["person_id"], table["month"], strict=True):
            newest[name, person] = max(month, newest.get((name, person), 0))
        for i, person in enumerate(table["person_id"]):
            if table["month"][i] == newest[name, person]:
                facts = (table["sex"][i], table["ethnicity"][i], table["age"][i], table["incident_12m"][i])
                shared += person in seen
                assert seen.setdefault(person, facts) == facts
    assert shared == (people.member.sum(axis=1).clip(1) - 1).sum()


def test_repeated_rows_are_as_declared_and_older(agencies: Tables, people: Population) -> None:
    for a, kind in enumerate(KINDS):
        table = agencies[kind.name]
        rows = Counter(table["person_id"].tolist())
        assert set(rows) == set(people.person_id[people.member[:, a]])
        assert sum(n > 1 for n in rows.values()) == round(people.options.repeated * len(rows))
        assert max(rows.values()) == 4
        assert len({*zip(table["person_id"], table["month"], strict=True)}) == len(table["month"])
        assert np.any(np.diff(table["month"]) < 0)  # rows are in no order: a reader must use the month
        assert table["month"].min() >= 1
        assert table["month"].max() <= 36


def test_an_older_row_has_an_incident_only_if_it_came_within_the_horizon_of_that_row(
    agencies: Tables, people: Population
) -> None:
    place = {person: i for i, person in enumerate(people.person_id)}
    table = agencies["police"]
    who = np.array([place[person] for person in table["person_id"]])
    wait = people.months_to_incident[who] + people.month[who] - table["month"]
    np.testing.assert_array_equal(table["incident_12m"], wait <= HORIZON)
    assert (table["month"] < people.month[who]).any()


def test_missing_values_are_where_and_as_often_as_declared(agencies: Tables, people: Population) -> None:
    for kind in KINDS:
        for name, column in agencies[kind.name].items():
            missing = np.array([value is None or value != value for value in column]).mean()
            if name == "months_to_incident":
                continue
            rate = kind.gaps * people.options.missing if name in MAY_BE_MISSING else 0
            assert (
                missing == pytest.approx(rate, abs=4 * np.sqrt(0.1 / len(column))) if rate else missing == 0
            )


def test_agencies_differ_and_hold_only_their_own_block(agencies: Tables) -> None:
    for kind in KINDS:
        columns = set(agencies[kind.name]) - {"person_id", "month", "sex", "ethnicity", "incident_12m"}
        columns -= {"months_to_incident", "on_list"}
        assert columns == set(SHARED) | set(BLOCKS[kind.block])
    ages = [np.mean(table["age"]) for table in agencies.values()]
    assert max(ages) - min(ages) > 10


def test_the_columns_of_an_agency_are_what_they_were_before_two_more_were_drawn(agencies: Tables) -> None:
    """SHA-256 of every earlier column of every agency, of the commit before lead time and practice were added."""
    digest = hashlib.sha256()
    for name, table in agencies.items():
        for column in sorted(set(table) - {"months_to_incident", "on_list"}):
            digest.update(f"{name} {column} {table[column].tolist()}".encode())
    assert digest.hexdigest() == "095e8b581cdcfbedc26d9d2e567353043a27de1df306674e0014e4991c965b6c"


def test_whoever_is_known_well_is_more_at_risk_and_sooner_and_a_rule_of_today_misses_some(
    many: Population,
) -> None:
    found = tables(many)
    together = {
        name: np.concatenate([table[name] for table in found.values()])
        for name in ("prior_contacts", "earlier_incident", "incident_12m", "months_to_incident", "on_list")
    }
    contacts, months, outcome = (
        together[name] for name in ("prior_contacts", "months_to_incident", "incident_12m")
    )
    assert np.isnan(months[outcome == 0]).all()
    assert np.isnan(months[outcome == 1]).mean() == pytest.approx(PRACTICE.no_date, abs=0.005)
    assert np.nanmin(months) >= 0
    assert np.nanmax(months) <= HORIZON
    levels = [contacts < 2, (contacts >= 2) & (contacts < 6), contacts >= 6]
    assert [outcome[level].mean() for level in levels] == pytest.approx([0.12, 0.24, 0.49], abs=0.04)
    medians = [float(np.nanmedian(months[level])) for level in levels]
    assert medians == sorted(medians, reverse=True)
    assert medians[0] - medians[2] > 1
    rule = (contacts >= PRACTICE.contacts) | (together["earlier_incident"] == 1)
    listed = together["on_list"] == 1
    assert not (listed & ~rule).any()
    assert listed[rule].mean() == pytest.approx(PRACTICE.looked_at, abs=0.01)
    assert 0.3 < listed[outcome == 1].mean() < 0.7, "it finds many, and misses many"


def test_public_sizes_are_declared_not_counted(people: Population) -> None:
    assert [declared_size(kind, 1.0) for kind in KINDS] == [600, 1200, 3000, 4800, 5400]
    assert [declared_size(kind, 0.37) for kind in KINDS] == [220, 440, 1100, 1800, 2000]
    actual = people.member.sum(axis=0)
    for kind, n in zip(KINDS, actual, strict=True):
        assert n != declared_size(kind, 1.0)
        assert n == pytest.approx(declared_size(kind, 1.0), rel=0.25)


@pytest.fixture(scope="module")
def encoded(contract: Contract, many: Population) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {name: encode(contract, table, name) for name, table in tables(many).items()}
    return {name: (e.x, np.asarray(e.y)) for name, e in found.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_only_some_agencies_hold_adds_something(
    contract: Contract, encoded: dict[str, tuple[np.ndarray, np.ndarray]], kind: object
) -> None:
    x, y = encoded[kind.name]  # type: ignore[attr-defined]
    shared = np.array([block is None for block in layout(contract).block])
    half = len(y) // 2

    def auc(columns: np.ndarray) -> float:
        model = LogisticRegression(solver="newton-cholesky").fit(x[:half][:, columns], y[:half])
        return float(roc_auc_score(y[half:], model.decision_function(x[half:][:, columns])))

    assert auc(np.ones_like(shared)) > auc(shared) + 0.003


def test_a_small_agency_gains_from_the_federation(
    contract: Contract, encoded: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Children's services alone, at its default size, against everybody together, on people it did not train on."""
    x, y = encoded["children"]
    test = slice(1500, None)
    rest_x = np.vstack([encoded[name][0][:2000] for name in encoded if name != "children"])
    rest_y = np.concatenate([encoded[name][1][:2000] for name in encoded if name != "children"])
    gains = []
    for start in range(0, 1440, 360):  # four samples of 360 people: 60% of 600
        own = slice(start, start + 360)
        alone = LogisticRegression(solver="newton-cholesky").fit(x[own], y[own])
        together = LogisticRegression(solver="newton-cholesky").fit(
            np.vstack([x[own], rest_x]), np.concatenate([y[own], rest_y])
        )
        aucs = [roc_auc_score(y[test], model.decision_function(x[test])) for model in (together, alone)]
        gains.append(aucs[0] - aucs[1])
    assert np.mean(gains) > 0.01


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"people": 0.0}, "people"),
        ({"people": "all"}, "people"),
        ({"known_to_several": 0.6}, "known_to_several"),
        ({"missing": float("nan")}, "missing"),
    ],
)
def test_impossible_options_are_named(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a "):
        Options(**options)  # type: ignore[arg-type]
