"""What is learned in one place: laws against the federation, oracles from scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import MakeStudy

from clients.records.data import Part
from experiments import baselines
from experiments.agencies import read_agencies
from experiments.compare import Bench, open_bench, without_privacy
from experiments.config import Study


def only(study: Study, folder: Path, *names: str) -> Path:
    """An agencies.yaml that lists just `names` of the folder's agencies."""
    listing = yaml.safe_load((folder / "agencies.yaml").read_text())
    listing["agencies"] = [agency for agency in listing["agencies"] if agency["name"] in names]
    path = folder / f"{'-'.join(names)}.yaml"
    path.write_text(yaml.safe_dump(listing))
    return path


def plain_bench(study: Study, folder: Path):
    return open_bench(without_privacy(study.experiment), study.data, study.agencies, folder)


def worst(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def federate(bench: Bench) -> dict[str, np.ndarray]:
    return bench.federate(bench.experiment, "federated")


SETTINGS = [
    ("strategy=fedavg", "local.steps=3"),
    ("strategy=fedavgm", "strategy.server_momentum=0.8"),
    ("strategy=fedprox", "local.steps=3", "strategy.proximal_mu=0.5"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings[0])
def test_a_federation_of_one_is_that_agency_alone(
    make_study: MakeStudy, folder: Path, settings: tuple[str, ...]
) -> None:
    study = make_study(f"data.agencies={only(make_study(), folder, 'clinic')}", *settings)
    with plain_bench(study, folder) as bench:
        alone = baselines.fit(bench.experiment, bench.people["clinic"]["train"], 300)
        together = federate(bench)
    assert worst(alone, together) < 1e-5
    assert max(np.abs(value).max() for value in alone.values()) > 0.05  # it did learn


def test_one_full_step_a_round_is_pooled_training(make_study: MakeStudy, folder: Path) -> None:
    """Every agency of a kind, weights as public sizes, all people in each step: nothing but a sum."""
    study = make_study(f"data.agencies={only(make_study(), folder, 'north', 'south')}", "strategy=fedavgm")
    with plain_bench(study, folder) as bench:
        pooled = baselines.fit(bench.experiment, baselines.pool(bench.people)["train"], 600)
        assert worst(pooled, federate(bench)) < 1e-5


def test_pooling_in_another_order_changes_nothing(make_study: MakeStudy, folder: Path) -> None:
    with plain_bench(make_study(), folder) as bench:
        there = baselines.pool(bench.people)["train"]
        back = baselines.pool(dict(reversed(bench.people.items())))["train"]
        assert worst(*(baselines.fit(bench.experiment, part, 900) for part in (there, back))) < 1e-5


def test_the_people_are_those_of_the_nodes(make_study: MakeStudy, folder: Path) -> None:
    """Same parts, with the same people in them, as the nodes themselves hold."""
    from clients.node import open_node

    study = make_study()
    split = study.experiment.settings.split
    with plain_bench(study, folder) as bench:
        for node in bench.nodes:
            own = open_node(node)._dataset(split.tune, split.test)
            for name, part in bench.people[node.name].items():
                x, y, _, group = own.part(name)
                np.testing.assert_array_equal(part.x, x.numpy())
                np.testing.assert_array_equal(part.y, y.numpy())
                np.testing.assert_array_equal(part.group, group)


def test_who_holds_no_label_is_left_out(make_study: MakeStudy, folder: Path) -> None:
    listing = yaml.safe_load((folder / "agencies.yaml").read_text())
    listing["agencies"].append({"name": "aid", "kind": "charity", "table": "aid.csv", "public_size": 300})
    lines = (folder / "north.csv").read_text().splitlines()
    (folder / "aid.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    (folder / "agencies.yaml").write_text(yaml.safe_dump(listing))
    study = make_study()
    assert len(read_agencies(folder / "agencies.yaml")[1]) == 4
    with plain_bench(study, folder) as bench:
        assert set(bench.people) == {"north", "clinic", "south"}
        assert [entry.name for entry in bench.alone()] == ["north alone", "clinic alone", "south alone"]


def test_enough_rounds_reach_scikit_learns_optimum(make_study: MakeStudy, folder: Path) -> None:
    """Oracle: LogisticRegression without penalty on the same pooled rows."""
    from sklearn.linear_model import LogisticRegression

    study = make_study("rounds=400", "local.learning_rate=1", "strategy=fedavgm")
    with plain_bench(study, folder) as bench:
        pooled = baselines.pool(bench.people)
        x, y = baselines.rows(pooled["train"])
        size = round(len(y) / 0.6)  # the declared size that makes the expected batch the true one
        score = baselines.torch_score(
            bench.experiment, baselines.fit(bench.experiment, pooled["train"], size)
        )
        exact = LogisticRegression(C=1e6, max_iter=5000).fit(x, y)
        judged, _ = baselines.latest(pooled["test"])
        np.testing.assert_allclose(score(judged), exact.predict_proba(judged)[:, 1], atol=0.005)


def test_rows_that_are_not_there_teach_nothing_and_the_latest_row_is_judged() -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # two people, three rows each, two features
    y = np.array([[0, 0, 1], [0, 1, 0]], dtype=np.float32)
    present = np.array([[0, 1, 1], [0, 0, 1]], dtype=np.float32)
    part = Part(x, y, present, np.zeros(2, dtype=np.int64))
    learned, outcomes = baselines.rows(part)
    assert learned.tolist() == [[2, 3], [4, 5], [10, 11]]
    assert outcomes.tolist() == [0, 1, 0]
    judged, last = baselines.latest(part)
    assert judged.tolist() == [[4, 5], [10, 11]]
    assert last.tolist() == [1, 0]


@pytest.mark.parametrize("train", baselines.SKLEARN.values(), ids=list(baselines.SKLEARN))
def test_scikit_learns_models_learn_or_repeat_the_only_outcome(train: object) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.float32)
    there, group = np.ones(400, dtype=np.float32), np.zeros(400, dtype=np.int64)
    score = train(Part(x, y, there, group), 0)  # type: ignore[operator]
    assert ((score(x) >= 0.5) == y).mean() > 0.9
    same = train(Part(x, np.ones_like(y), there, group), 0)  # type: ignore[operator]
    assert same(x[:3]).tolist() == [1.0, 1.0, 1.0]
