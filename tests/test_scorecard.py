"""The scorecard that a run writes beside its model: from its noised tables alone, and enough to score with."""

import hashlib
import json
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeStudy, people, write_table

from clients.scoring.run import Asked, score_into
from experiments.run import run_study
from federation.scorecard import CardError, read_card
from federation.server.card import CUTS, bands, score_card
from models.calibration import recalibrate
from models.disclosure import UNROUNDED
from models.scores import ScoreTable, default_edges, tally

EDGES = default_edges()
RULE = UNROUNDED


def table(seed: int, n: int, sigma: float = 0.0, slope: float = 1.0) -> ScoreTable:
    """Counts of n made-up people in two groups, with Gaussian noise of `sigma` people on each."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 1.3, n)
    y = rng.random(n) < 1 / (1 + np.exp(-slope * logit))
    exact = tally(EDGES, rng.integers(0, 2, n), 1 / (1 + np.exp(-logit)), y, 2)
    noise = rng.normal(0, sigma, exact.counts.shape) if sigma else 0.0
    return ScoreTable(EDGES, exact.counts + noise, sigma**2)


@pytest.mark.parametrize("sigma", [0.0, 2.0, 8.0, 40.0])
@pytest.mark.parametrize("n", [60, 600, 6000])
@pytest.mark.parametrize("slope", [1.0, 0.0])
def test_bands_cover_everybody_in_order_and_each_may_be_published(n: int, sigma: float, slope: float) -> None:
    for seed in range(8):
        found = bands(table(seed, n, sigma, slope), table(seed + 100, n, sigma, slope), RULE)
        if not found:
            assert n <= 60 * sigma  # only where noise drowns even everybody's rate
            continue
        assert (found[0].low, found[-1].high) == (0.0, 1.0)
        assert all(lower.high == higher.low for lower, higher in pairwise(found))
        assert all(lower.observed.value < higher.observed.value for lower, higher in pairwise(found))
        assert all(band.observed.high - band.observed.low < 1 for band in found)
        assert len({band.name for band in found}) == len(found)
        assert sum(band.share for band in found) == pytest.approx(1, abs=0.05)
        assert {band.low for band in found} <= set(EDGES)


def test_rates_of_bands_are_the_shares_of_the_test_people_in_them() -> None:
    rng = np.random.default_rng(0)
    score, y = rng.random(5000), rng.random(5000) < 0.5
    y = rng.random(5000) < score
    found = bands(table(1, 5000), tally(EDGES, np.zeros(5000, int), score, y, 1), RULE)
    assert len(found) > 2
    for band in found:
        inside = (score >= band.low) & ((score < band.high) | (band.high == 1))
        assert band.observed.value == pytest.approx(y[inside].mean())
        assert band.share == pytest.approx(inside.mean())


def test_bands_are_cut_where_the_tune_people_say() -> None:
    rng = np.random.default_rng(2)
    score = rng.random(20_000)
    tune = tally(EDGES, np.zeros(20_000, int), score, rng.random(20_000) < score, 1)
    for cut, band in zip(CUTS, bands(tune, tune, RULE)[1:], strict=False):
        below = np.array([(score < edge).mean() for edge in EDGES])
        assert abs((score < band.low).mean() - cut) == pytest.approx(abs(below - cut).min())


def test_the_interval_of_a_bands_rate_covers_the_truth_with_noise_in_it() -> None:
    """Bands are chosen on other people than they are measured on: the nominal 95% holds, less what merging takes."""
    edges_of = np.array(EDGES)
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1.3, 400_000)
    score = 1 / (1 + np.exp(-logit))
    covered, all_ = 0, 0
    for seed in range(120):
        for band in bands(table(seed, 3000, 6.0), table(seed + 1000, 3000, 6.0), RULE):
            assert band.low in edges_of
            inside = (score >= band.low) & ((score < band.high) | (band.high == 1))
            covered += band.observed.low <= score[inside].mean() <= band.observed.high
            all_ += 1
    assert covered / all_ > 0.92


def test_a_run_writes_a_card_of_its_own_final_tables(make_study: MakeStudy) -> None:
    study = make_study("rounds=8", "local.steps=10", "local.learning_rate=0.5", "privacy.epsilon=30")
    result = run_study(study, quiet=True)
    home = next(Path(study.experiment.settings.output).iterdir())
    text, weights = (
        (home / "model" / "card.json").read_text(),
        (home / "model" / "model.safetensors").read_bytes(),
    )
    card = read_card(text)
    assert card == score_card(
        json.loads((home / "result.json").read_text()), hashlib.sha256(weights).hexdigest()
    )
    assert card.bands
    assert card.contract_sha256 == study.experiment.data_contract.sha256
    assert (card.kinds, card.agencies, card.horizon) == (("health", "police"), 3, "12 months")
    rows = [row["observed"] for row in result["final"]["metrics"]["reliability"]]
    assert card.performance["auc"].value == result["final"]["metrics"]["overall"]["auc"]["value"]
    assert len(rows) == len(study.experiment.edges) - 1
    if len(card.bands) == 1:
        assert card.bands[0].observed.value == result["final"]["metrics"]["overall"]["base_rate"]["value"]


def test_a_runs_model_scores_at_an_agency_of_the_run(make_study: MakeStudy, tmp_path: Path) -> None:
    """From the command that trains to the page: the card, the weights and the node's own files fit each other."""
    study = make_study("rounds=8", "local.steps=10", "local.learning_rate=0.5", "privacy.mechanism=none")
    run_study(study, quiet=True)
    home = next(Path(study.experiment.settings.output).iterdir())
    node = home / "nodes" / "north"
    write_table(tmp_path / "people.csv", people(77, 50), ("outcome", "sex", "visits"))
    before = {path: path.read_bytes() for path in node.iterdir() if path.is_file()}
    asked = Asked(
        input=tmp_path / "people.csv",
        output=tmp_path / "scores",
        model=home / "model",
        purpose="early-warning",
        capacity=3,
        folder=node,
        as_of=date(2026, 3, 1),
        rehearsal=True,
    )
    found, _ = score_into(asked)
    assert len(found.listed) == 3
    assert {path.name for path in node.iterdir() if path.is_file()} - {path.name for path in before} == {
        "access.db"
    }
    assert all(
        path.read_bytes() == content for path, content in before.items()
    )  # the ledger too: nothing was spent
    y = np.array([row["outcome"] for row in people(77, 50)], float)
    assert found.probability[y == 1].mean() > found.probability[y == 0].mean() + 0.1


def test_the_map_of_the_card_is_that_of_the_tune_tables(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from federation.server import card as module

    seen: list[ScoreTable] = []
    real = module.recalibration
    monkeypatch.setattr(module, "recalibration", lambda tune: (seen.append(tune), real(tune))[1])
    study = make_study("rounds=8", "local.steps=10", "local.learning_rate=0.5", "privacy.mechanism=none")
    result = run_study(study, quiet=True)
    (tune,) = seen
    found = result["scoring"]["recalibration"]
    expected = recalibrate(tune)
    assert ((0.0, 1.0) if found is None else (found["intercept"], found["slope"])) == pytest.approx(
        expected, abs=5e-4
    )
    assert tune.counts.sum() == pytest.approx(0.2 * 900, rel=0.25)  # the tune people of three agencies


def test_a_card_that_is_not_one_is_refused_with_every_problem() -> None:
    with pytest.raises(CardError) as wrong:
        read_card('{"card": 2, "surprise": 2}')
    said = str(wrong.value).splitlines()
    assert {"run_id is missing", "surprise is not a known setting"} <= set(said)
    assert any(line.startswith("card ") for line in said)
    with pytest.raises(CardError, match="JSON"):
        read_card("not json")


def test_bands_with_a_gap_are_no_card(make_study: MakeStudy) -> None:
    study = make_study("rounds=2", "privacy.mechanism=none")
    result = run_study(study, quiet=True)
    card = score_card(result, "0" * 64)
    assert len(card.bands) > 1
    broken = json.loads(card.canonical)
    del broken["bands"][0]
    with pytest.raises(CardError, match="bands must ascend from 0 to 1 without a gap"):
        read_card(json.dumps(broken))
