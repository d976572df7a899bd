"""Local scoring: what is said of a person, what it rests on, and that nothing of it leaves OUTPUT."""

import csv
import json
import re
import shutil
import stat
import subprocess
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml
from click.testing import Result
from scoring_node import (
    AS_OF,
    CONTRACT,
    EDGES,
    MAP,
    POLICY,
    RATES,
    VALUES,
    people,
    to_score,
    weights,
    write_model,
    write_node,
)
from typer.testing import CliRunner

from clients.scoring import calibrate, command
from clients.scoring import run as scoring_run
from clients.scoring.access import AccessLog
from clients.scoring.model_file import ScoringError, read_model
from clients.scoring.people import horizon_days, inputs_of, read_people
from clients.scoring.reasons import contributions, reference, top_reasons
from clients.scoring.score import frequency
from models import risk
from models.calibration import recalibration, recalibration_of
from models.contract import Contract, ContractError
from models.features import encode, layout
from models.scores import default_edges, tally
from models.spec import ModelSpec

CANARY = "CANARY-7731"
app = typer.Typer(pretty_exceptions_enable=False)
for name in ("score", "review", "access"):
    app.command(name)(getattr(command, name))


@pytest.fixture
def node(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return write_node(tmp_path / "node")


def run(node: Path, table: pd.DataFrame, output: str = "out", capacity: int = 5, *more: str) -> Result:
    source = node.parent / "people.csv"
    table.to_csv(source, index=False)
    return invoke(node, source, output, capacity, "--rehearsal", *more)


def invoke(node: Path, source: Path, output: str, capacity: int, *more: str) -> Result:
    arguments = ["score", str(source), str(node.parent / output), "--model", str(node.parent / "model")]
    arguments += ["--capacity", str(capacity), "--folder", str(node), "--as-of", AS_OF]
    if "--purpose" not in more:
        arguments += ["--purpose", "early-warning"]
    return CliRunner().invoke(app, [*arguments, *more])


def scored(
    node: Path, table: pd.DataFrame, output: str = "out", capacity: int = 5, *more: str
) -> list[dict[str, str]]:
    done = run(node, table, output, capacity, *more)
    assert done.exit_code == 0, done.output
    with (node.parent / output / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def refused(done: Result) -> str:
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    return done.stderr.strip()


def encoded(table: pd.DataFrame) -> np.ndarray:
    columns = {
        name: table[name].to_numpy(float) if name in ("age", "contacts") else table[name].to_numpy(object)
        for name in table
    }
    return encode(inputs_of(CONTRACT), columns, "police").x


# --- oracles -------------------------------------------------------------------------------------------


def test_probability_is_the_recalibrated_sigmoid_of_torchs_own_logit(node: Path) -> None:
    table = to_score(200)
    rows = scored(node, table, "out", 5, "--recalibrate", "federation")
    w = weights(ModelSpec("logistic"))
    logit = torch.nn.functional.linear(
        torch.from_numpy(encoded(table)), *(torch.from_numpy(value) for value in w.values())
    ).squeeze(1).double().numpy()  # fmt: skip
    eta = MAP.intercept + MAP.slope * logit
    gradient = np.stack([np.ones_like(logit), logit])
    aa, ab, bb = MAP.covariance
    error = np.sqrt(np.einsum("in,ij,jn->n", gradient, [[aa, ab], [ab, bb]], gradient))
    assert [row["reference"] for row in rows] == table["ref"].tolist()
    for name, shift in (("probability", 0), ("probability_low", -1.959964), ("probability_high", 1.959964)):
        expected = 1 / (1 + np.exp(-(eta + shift * error)))
        np.testing.assert_allclose([float(row[name]) for row in rows], expected, atol=6e-5)


def test_the_band_is_that_of_the_models_own_score_and_its_rate_is_the_cards(node: Path) -> None:
    table = to_score(200)
    rows = scored(node, table)
    model = read_model(node.parent / "model", CONTRACT)
    score = model.scores(encoded(table))[1]
    place = np.searchsorted(EDGES, score, side="right") - 1
    assert len(set(place.tolist())) == 3
    for row, at in zip(rows, place, strict=True):
        assert row["band"] == ("low", "middle", "high")[at]
        assert tuple(float(row[key]) for key in ("band_rate", "band_low", "band_high")) == RATES[at]
    assert {row["band_in_words"] for row in rows} == {
        "14 in 100 (11 to 18)",
        "42 in 100 (36 to 49)",
        "78 in 100 (70 to 85)",
    }


def test_the_agencys_own_records_recalibrate_where_there_are_enough(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    node = write_node(tmp_path / "node", n=6000)
    model = read_model(tmp_path / "model", CONTRACT)
    facts, policy, contract = scoring_run.open_folder(node)
    found = calibrate.choose(model, node, facts, contract, min_people=policy.min_people)
    assert found.source == "local"
    assert found.map is not None
    everyone = people(6000, seed=9)
    logit, y = model.scores(encoded(everyone))[0], everyone["outcome"].to_numpy(float)
    table = torch.tensor(np.stack([np.ones_like(logit), logit], 1))
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-10)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(table @ theta, torch.tensor(y))
        value.backward()
        return value

    optimiser.step(loss)
    whole = recalibration_of(logit, y)
    assert whole is not None
    np.testing.assert_allclose([whole.intercept, whole.slope], theta.detach().numpy(), atol=1e-5)
    # the tune people are a fifth of everybody, so their map is near, and about sqrt(5) less sure
    assert found.map.slope == pytest.approx(whole.slope, abs=4 * found.map.covariance[2] ** 0.5)
    assert found.map.covariance[2] / whole.covariance[2] == pytest.approx(5, rel=0.2)


def test_too_few_own_records_leave_the_map_of_all_agencies(node: Path) -> None:
    one, other = (
        scored(node, to_score(30)),
        scored(node, to_score(30), "two", 5, "--recalibrate", "federation"),
    )
    assert [row["probability"] for row in one] == [row["probability"] for row in other]
    assert "too few records set aside" in (node.parent / "out" / "list.html").read_text()


def test_without_any_map_the_score_is_shown_as_not_checked(tmp_path: Path) -> None:
    write_model(tmp_path / "model", recalibration=None)
    node = write_node(tmp_path / "node")
    rows = scored(node, to_score(30))
    assert {row["probability_low"] + row["probability_high"] for row in rows} == {""}
    assert "not checked" in (tmp_path / "out" / "list.html").read_text()


def test_the_covariance_of_a_map_is_that_of_many_draws() -> None:
    rng, edges = np.random.default_rng(0), default_edges()
    maps, covariances = [], []
    for _ in range(300):
        logit = rng.normal(-0.5, 1.2, 3000)
        y = rng.random(3000) < 1 / (1 + np.exp(-(0.3 + 0.7 * logit)))
        table = tally(edges, np.zeros(3000, int), 1 / (1 + np.exp(-logit)), y, 1)
        found = recalibration(table)
        assert found is not None
        maps.append((found.intercept, found.slope))
        covariances.append(found.covariance)
    spread = np.cov(np.array(maps).T)
    np.testing.assert_allclose(np.mean(covariances, 0), [spread[0, 0], spread[0, 1], spread[1, 1]], rtol=0.3)


# --- reasons -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["police", "health"])
def test_contributions_add_up_exactly_to_the_difference_of_the_logits(kind: str) -> None:
    rng = np.random.default_rng(3)
    w = rng.normal(0, 1, len(layout(CONTRACT).names))
    table = {name: values.to_numpy(object) for name, values in people(50).items()}
    table |= {"age": table["age"].astype(float), "contacts": table["contacts"].astype(float)}
    table["contacts"][:5], table["severity"][5:9], table["area"][9:12] = np.nan, None, "elsewhere"
    table["visits"] = rng.integers(0, 10, 50).astype(float)
    x = encode(inputs_of(CONTRACT), table, kind).x
    parts = contributions(w, x, CONTRACT, kind)
    assert parts.shape == (50, len(CONTRACT.columns))
    difference = (x.astype(float) - reference(CONTRACT, kind)) @ w
    np.testing.assert_allclose(parts.sum(1), difference, atol=1e-12)
    by_hand = x[:, 0].astype(float) * w[0]  # age: its reference is its center, which is encoded as 0
    np.testing.assert_allclose(parts[:, 0], by_hand, atol=1e-12)
    assert (parts[:, -1] == 0).all() == (
        kind == "police"
    )  # nobody's score is moved by what the agency does not hold


def test_reasons_are_the_largest_with_direction_value_and_marks() -> None:
    row = np.array([0.9, -0.3, 0.01, 0.9, -1.2, 0.0])
    cells: dict[str, object] = {"age": 22.0, "contacts": np.nan, "area": "west", "known": "1"}
    found = top_reasons(CONTRACT, row, cells, scale=0.5)
    assert [(r.column, r.direction, r.contribution) for r in found] == [
        ("known", "lowers", -0.6),
        ("age", "raises", 0.45),  # as large as area, and before it in the contract
        ("area", "raises", 0.45),
        ("contacts", "lowers", -0.15),
    ]
    assert [r.value for r in found] == ["yes", "22 years", "west", "not recorded"]
    assert found[1].marks == ("protected (age band)", "nobody can change this")
    assert found[2].marks == ("may stand for a protected characteristic (ethnicity)",)
    assert (found[0].marks, found[3].label) == ((), "contacts with the police")
    assert found[3].usual == f"{np.expm1(0.5 * np.log1p(20)):.3g}"


def test_a_network_gives_no_reasons_and_says_so(tmp_path: Path) -> None:
    write_model(tmp_path / "model", ModelSpec("mlp", (4,)))
    node = write_node(tmp_path / "node")
    rows = scored(node, to_score(20))
    assert {row["reasons"] for row in rows} == {"none: the model is not additive"}
    case = next((tmp_path / "out" / "cases").iterdir()).read_text()
    assert "no reasons can be given" in case
    assert "raises" not in case
    table = to_score(20)
    module = risk.build(ModelSpec("mlp", (4,)), len(layout(CONTRACT).names))
    risk.load_weights(module, weights(ModelSpec("mlp", (4,))))
    model = read_model(tmp_path / "model", CONTRACT)
    with torch.no_grad():
        expected = module(torch.from_numpy(encoded(table))).double().numpy()
    np.testing.assert_allclose(model.scores(encoded(table))[0], expected, atol=1e-6)


# --- the list ------------------------------------------------------------------------------------------


def test_the_list_holds_the_highest_up_to_the_capacity_and_equals_by_reference(node: Path) -> None:
    table = to_score(40)
    table.loc[10:29, list(table.columns[1:])] = table.iloc[table["contacts"].argmax()][1:].to_numpy()
    table = table.sample(frac=1, random_state=0)  # the order of the file decides nothing
    rows = scored(node, table, capacity=7)
    listed = [row["reference"] for row in rows if row["listed"] == "yes"]
    expected = sorted(rows, key=lambda row: (-float(row["probability"]), row["reference"]))[:7]
    assert len(listed) == 7
    assert set(listed) == {row["reference"] for row in expected}
    pages = {path.stem for path in (node.parent / "out" / "cases").iterdir()}
    assert pages == set(listed)
    text = (node.parent / "out" / "list.html").read_text()
    assert re.findall(r'href="cases/([^"]+)\.html"', text) == [row["reference"] for row in expected]
    lowest = min(float(row["band_rate"]) for row in expected)
    left = sum(float(row["band_rate"]) >= lowest for row in rows) - 7
    assert left > 0
    assert f"{left} more are" in text


def test_a_capacity_above_the_people_lists_everybody(node: Path) -> None:
    assert {row["listed"] for row in scored(node, to_score(4), capacity=50)} == {"yes"}


# --- out of scope --------------------------------------------------------------------------------------


def test_records_that_the_evidence_is_not_about_are_flagged_with_the_reason(node: Path) -> None:
    table = to_score(6)
    table["month"] = "2026-01-31"
    table[["severity", "area"]] = table[["severity", "area"]].astype(object)
    table["contacts"] = table["contacts"].astype(float)
    table.loc[0, "area"] = "elsewhere"
    table.loc[1, "age"] = 120
    table.loc[2, ["contacts", "severity"]] = np.nan
    table.loc[3, "month"] = "2024-12-01"
    table.loc[4, "month"] = "2026-05-01"
    rows = scored(node, table)
    why = [row["why_out_of_scope"] for row in rows]
    assert why == [
        "area has a value that the contract does not list",
        "age is outside 16 to 90 and was read as the nearer end",
        "more than 25% of the columns have no value",
        "the newest row is older than the horizon of 12 months",
        "the newest row is dated after the day of scoring",
        "",
    ]
    assert [row["out_of_scope"] for row in rows] == ["yes"] * 5 + ["no"]
    assert rows[2]["missing"] == "contacts with the police | severity"
    assert rows[3]["newest_row"] == "2024-12-01"


def test_a_kind_of_agency_that_did_not_train_is_out_of_scope(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    node = write_node(tmp_path / "node", kind="health")
    rows = scored(node, to_score(5).assign(visits=2))
    assert {row["why_out_of_scope"] for row in rows} == {"no agency of this kind took part in the training"}
    case = next((tmp_path / "out" / "cases").iterdir()).read_text()
    assert "Out of scope" in case
    assert "does not hold the outcome" in case


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("12 months", 365.25),
        ("2 years", 730.5),
        ("1 year", 365.25),
        ("90 days", 90),
        ("at examination", None),
    ],
)
def test_horizons_in_words_are_days(text: str, days: float | None) -> None:
    assert horizon_days(text) == days


def test_the_newest_row_of_a_person_counts(node: Path) -> None:
    table = to_score(1)
    older = table.assign(month="2025-05-01", contacts=0)
    newer = table.assign(month="2026-02-01", contacts=20)
    (row,) = scored(node, pd.concat([newer, older]))
    (alone,) = scored(node, newer, "two")
    assert row["newest_row"] == "2026-02-01"
    assert row["probability"] == alone["probability"]


# --- refusals ------------------------------------------------------------------------------------------


def test_without_rehearsal_nobody_is_scored(node: Path) -> None:
    source = node.parent / "people.csv"
    to_score(5).to_csv(source, index=False)
    said = refused(invoke(node, source, "out", 5))
    assert "node.toml pins no ethics panel" in said
    assert "add --rehearsal" in said
    assert len(said.splitlines()) == 1
    assert not (node.parent / "out").exists()
    assert not (node / "access.db").exists()


def test_a_model_of_another_contract_is_refused(node: Path) -> None:
    other = Contract.from_dict(VALUES | {"version": 2})
    write_model(node.parent / "model", contract_sha256=other.sha256)
    said = refused(run(node, to_score(5)))
    assert "another contract" in said
    assert len(said.splitlines()) == 1
    assert not (node.parent / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights_sha256": "00" * 32}, "is not the file that card.json is about"),
        ({"bands": ()}, "no observed rate of this model may be published"),
        ({"purpose": "rent-arrears"}, "may not be used for 'early-warning'"),
        ({"model": ModelSpec("mlp", (4,))}, "does not fit the model"),
    ],
)
def test_a_model_that_does_not_hold_together_is_refused(
    node: Path, change: dict[str, Any], sentence: str
) -> None:
    write_model(node.parent / "model", **change)
    assert sentence in refused(run(node, to_score(5)))
    assert not (node / "access.db").exists()


def test_weights_that_have_diverged_are_refused(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scoring_node

    def diverged(spec: ModelSpec) -> dict[str, np.ndarray]:
        return {name: value * np.float32(np.nan) for name, value in weights(spec).items()}

    monkeypatch.setattr(scoring_node, "weights", diverged)
    write_model(node.parent / "model")
    with pytest.raises(ScoringError, match="has diverged"):
        read_model(node.parent / "model", CONTRACT)


def test_a_purpose_that_the_policy_does_not_list_is_refused(node: Path) -> None:
    assert "policy.toml does not list" in refused(run(node, to_score(5), "out", 5, "--purpose", "curiosity"))


def test_a_purpose_whose_time_is_over_is_refused_from_the_day_after(node: Path) -> None:
    source = node.parent / "people.csv"
    to_score(5).to_csv(source, index=False)
    (node / "policy.toml").write_text(POLICY + "expires = 2026-03-31\n")
    asked = scoring_run.Asked(
        source,
        node.parent / "out",
        node.parent / "model",
        "early-warning",
        5,
        node,
        date(2026, 3, 1),
        rehearsal=True,
    )
    with pytest.raises(ScoringError, match="expired on 2026-03-31"):
        scoring_run.score_into(asked, lambda: datetime(2026, 4, 1, tzinfo=UTC))
    assert not (node / "access.db").exists()
    scoring_run.score_into(asked, lambda: datetime(2026, 3, 31, 23, tzinfo=UTC))
    assert (node.parent / "out" / "list.html").exists()


def test_a_column_that_the_policy_never_permits_is_not_used(node: Path) -> None:
    (node / "policy.toml").write_text('never_columns = ["area"]\n' + POLICY)
    assert "never_columns lists area" in refused(run(node, to_score(5)))


def test_an_output_with_something_in_it_is_refused_before_anybody_is_consulted(node: Path) -> None:
    scored(node, to_score(5))
    with AccessLog(node / "access.db") as log:
        before = log.head
    assert "is not empty" in refused(run(node, to_score(5)))
    with AccessLog(node / "access.db") as log:
        assert log.head == before


def test_problems_of_a_table_are_named_by_column_and_never_by_cell(node: Path) -> None:
    table = to_score(5).astype(object)
    table.loc[2, "age"], table.loc[3, "known"] = CANARY, CANARY
    said = refused(run(node, table.drop(columns="area")))
    assert "column 'area' is not in the table" in said
    assert "column 'age' must be a number" in said
    assert CANARY not in said


def test_an_error_that_nobody_foresaw_is_told_without_its_text(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"the cell {CANARY}")

    monkeypatch.setattr(scoring_run, "score_people", broken)
    said = refused(run(node, to_score(5)))
    assert "RuntimeError" in said
    assert CANARY not in said


# --- a contract that is about rows ---------------------------------------------------------------------


def test_where_the_unit_is_a_row_the_reference_is_named(tmp_path: Path) -> None:
    values = VALUES | {"unit": {"kind": "row"}}
    contract = Contract.from_dict(values)
    write_model(tmp_path / "model", contract_sha256=contract.sha256)
    node = write_node(tmp_path / "node")
    (node / "contract.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert "--reference must name" in refused(run(node, to_score(4)))
    rows = scored(node, to_score(4), "out", 5, "--reference", "ref")
    assert [row["reference"] for row in rows] == to_score(4)["ref"].tolist()
    twice = pd.concat([to_score(4), to_score(1)])
    assert "each only once" in refused(run(node, twice, "two", 5, "--reference", "ref"))


# --- the pages -----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Text and links of a page; a tag that is closed out of turn is an error."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.tags, self.attributes = "", set[str](), list[tuple[str, str | None]]()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_every_page_says_what_it_must_and_needs_nothing_from_elsewhere(node: Path) -> None:
    card = write_model(node.parent / "model")
    scored(node, to_score(30), "out", 6, "--contest", "dpo@north.example")
    out = node.parent / "out"
    pages = [out / "list.html", *(out / "cases").iterdir()]
    assert len(pages) == 7
    for path in pages:
        page = Page(path.read_text())
        for said in (
            "NOT APPROVED — rehearsal. Do not act on this.",
            card.version,
            "approval state: not approved",
        ):
            assert said in page.text
        assert "12 months" in page.text
        assert "script" not in page.tags
        targets = [value or "" for name, value in page.attributes if name in ("src", "href")]
        assert all(re.fullmatch(r"cases/P-1-\d+\.html|\.\./list\.html", target) for target in targets)
    case = Page(pages[1].read_text()).text
    for said in (
        "did not.",
        "Your review (required)",
        "override",
        "defer",
        "dpo@north.example",
        "Newest row",
    ):
        assert said in case


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser that prints")
def test_a_case_with_everything_that_can_be_said_fits_on_one_sheet_of_a4(node: Path) -> None:
    table = to_score(3).astype(object)
    table["month"], table["area"], table["age"], table["contacts"] = "2024-12-01", "elsewhere", 120, 35
    table["severity"] = None
    scored(
        node,
        table,
        "out",
        1,
        "--contest",
        "Data protection officer, North Police, dpo@north.example, 01632 960 123",
    )
    (case,) = (node.parent / "out" / "cases").iterdir()
    assert case.read_text().count('class="mark"') >= 3
    printed = node.parent / "case.pdf"
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    home = f"--user-data-dir={node.parent / 'browser'}"
    subprocess.run(
        [*browser, home, f"--print-to-pdf={printed}", case.as_uri()],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) == 1


def test_colours_of_text_have_the_contrast_of_wcag_aa() -> None:
    """Every text colour on every ground that the pages use: 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    style = (Path(command.__file__).parent / "templates" / "base.html.j2").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style)) | {"white": "#ffffff"}

    def luminance(name: str) -> float:
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(text, ground) for text in ("ink", "soft", "accent", "alarm") for ground in ("white", "card")]
    pairs += [("alarm", "warn"), ("ink", "note"), ("ink", "warn"), ("white", "alarm"), ("white", "accent")]
    for text, ground in pairs:
        light, dark = sorted((luminance(text), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_a_reference_cannot_break_out_of_a_page_or_of_the_folder(node: Path) -> None:
    table = to_score(3)
    table["ref"] = ["../../evil", "<script>alert(1)</script>", "a b"]
    scored(node, table)
    out = node.parent / "out"
    assert {path.name[:5] for path in (out / "cases").iterdir()} == {"case-"}
    assert {path.name for path in out.iterdir()} == {"scores.csv", "list.html", "cases"}
    for path in [out / "list.html", *(out / "cases").iterdir()]:
        assert "script" not in Page(path.read_text()).tags


def test_output_is_for_its_owner_alone(node: Path) -> None:
    scored(node, to_score(5))
    out = node.parent / "out"
    modes = {path.relative_to(out).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*")}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert modes.pop("cases") == 0o700
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((node / "access.db").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        ((0.14, 0.11, 0.18), "14 in 100 (11 to 18)"),
        ((0.005, 0.0021, 0.0088), "5 in 1,000 (2 to 9)"),
        ((0.0001, 0.0, 0.004), "fewer than 1 in 1,000 (0 to 4)"),
        ((0.998, 0.97, 0.9999), "more than 99 in 100 (97 to 100)"),
        ((0.0, 0.0, 0.01), "0 in 1,000 (0 to 10)"),
        ((0.295, 0.2901, 0.3), "30 in 100 (29 to 30)"),
    ],
)
def test_rates_in_natural_frequencies(rate: tuple[float, float, float], words: str) -> None:
    assert frequency(rate) == words


# --- nothing leaves ------------------------------------------------------------------------------------


def test_a_canary_is_in_the_output_and_by_reference_in_the_access_log_and_nowhere_else(node: Path) -> None:
    table = to_score(5).astype(object)
    table["ref"], table["area"], table["secret_name"] = (
        [f"{CANARY}-{i}" for i in range(5)],
        f"{CANARY}-AREA",
        f"{CANARY}-NAME",
    )
    done = run(node, table)
    assert done.exit_code == 0, done.output
    assert CANARY not in done.stdout + done.stderr
    with_canary = {
        path.relative_to(node.parent).as_posix()
        for path in node.parent.rglob("*")
        if path.is_file() and (CANARY.encode() in path.read_bytes() or CANARY in path.name)
    }
    cases = {f"out/cases/{CANARY}-{i}.html" for i in range(5)}
    assert with_canary == {"people.csv", "node/access.db", "out/scores.csv", "out/list.html", *cases}
    held = (node / "access.db").read_bytes()
    assert f"{CANARY}-AREA".encode() not in held
    assert f"{CANARY}-NAME".encode() not in held


def test_json_says_what_was_done_without_any_reference(node: Path) -> None:
    done = run(node, to_score(5), "out", 2, "--json")
    facts = json.loads(done.stdout)
    assert (facts["scored"], facts["listed"], facts["approval"]) == (5, 2, "not approved")
    assert "P-1" not in done.stdout


# --- the contract's marks ------------------------------------------------------------------------------


def test_marks_are_part_of_the_contract_and_their_absence_changes_no_hash() -> None:
    bare = {
        **VALUES,
        "columns": {n: {k: v for k, v in c.items() if k != "about"} for n, c in VALUES["columns"].items()},
    }
    said_nothing = {
        **bare,
        "columns": {n: {**c, "about": {"actionable": True}} for n, c in bare["columns"].items()},
    }
    assert Contract.from_dict(said_nothing).sha256 == Contract.from_dict(bare).sha256 != CONTRACT.sha256
    assert "about" not in json.dumps(Contract.from_dict(bare).to_dict())
    assert Contract.from_dict(CONTRACT.to_dict()) == CONTRACT


def test_a_mark_that_names_no_group_or_is_misspelt_is_a_problem() -> None:
    columns = {
        **VALUES["columns"],
        "known": {"type": "flag", "about": {"proxy_for": "religion", "actionabel": False}},
    }
    with pytest.raises(ContractError) as wrong:
        Contract.from_dict(VALUES | {"columns": columns})
    assert "columns.known.about.proxy_for must be one of the groups, got 'religion'" in str(wrong.value)
    assert "columns.known.about.actionabel is not a known setting (did you mean actionable?)" in str(
        wrong.value
    )


def test_people_are_read_without_label_groups_and_split(node: Path) -> None:
    source = node.parent / "few.csv"
    to_score(1).assign(severity=None).to_csv(source, index=False)
    found = read_people(source, CONTRACT, "police")
    assert found.references == ("P-1-0000",)
    assert found.missing.sum() == 1  # one person whose severity is missing is no "column without a value"
