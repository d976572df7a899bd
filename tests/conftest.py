"""What several test files share: quiet Flower, one torch thread, and a small federation to run."""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import pytest
import torch
import yaml
from flwr.supercore.task_identity import TaskIdentity

from experiments.config import Study, compose, read
from models.contract import Contract

torch.set_num_threads(1)

# absl (under dp-accounting) closes the stream that it first saw as stderr when Hydra sets up logging: under
# pytest that would be pytest's own.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

CONTRACT: dict[str, Any] = {
    "name": "small",
    "version": 1,
    "description": "A made-up contract for tests.",
    "purpose": "early-warning",
    "unit": {"kind": "person", "column": "person"},
    "kinds": ["police", "health", "charity"],
    "blocks": {"care": {"held_by": ["health"]}},
    "columns": {
        "age": {"type": "number", "min": 0, "max": 100, "unit": "years"},
        "visits": {"type": "number", "min": 0, "max": 10, "unit": "count", "block": "care"},
        "known": {"type": "flag"},
    },
    "groups": {"sex": {"column": "sex", "levels": {"female": ["f"], "male": ["m"]}, "other": False}},
    "label": {
        "column": "outcome",
        "positive": ["1"],
        "horizon": "12 months",
        "description": "A made-up outcome.",
        "held_by": ["police", "health"],
    },
}


def permits(contract: dict[str, Any] = CONTRACT, **more: Any) -> dict[str, Any]:
    """What policy.toml of a node that guards records must list for the plans of these tests; `more` keys go with it."""
    return {
        "purposes": {"early-warning": {"legal_basis": "made up for a test"}},
        "contracts": [Contract.from_dict(contract).sha256],
        "models": ["logistic"],
        "strategies": [
            "fedavg",
            "fedavgm",
            "fedprox",
            "fedadam",
            "fedyogi",
            "dp_fedsgd",
            "fedmedian",
            "krum",
        ],
        "releases": ["train", "evaluate", "stats"],
    } | more


@pytest.fixture(autouse=True)
def flower_identity() -> None:
    """Messages carry the ids of a run; outside Flower's runners somebody must say them."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1


def people(seed: int, n: int = 300) -> list[dict[str, object]]:
    """Rows of a made-up agency's table with a learnable outcome."""
    rng = np.random.default_rng(seed)
    age, visits, known = rng.integers(0, 100, n), rng.integers(0, 10, n), rng.integers(0, 2, n)
    logit = (age - 50) / 15 + (visits - 5) / 3 + known - 0.5
    outcome = rng.random(n) < 1 / (1 + np.exp(-logit))
    return [
        {
            "person": f"p{seed}-{i}",
            "age": int(age[i]),
            "visits": int(visits[i]),
            "known": int(known[i]),
            "sex": "f" if rng.random() < 0.5 else "m",
            "outcome": int(outcome[i]),
        }
        for i in range(n)
    ]


def write_table(path: Path, rows: list[dict[str, object]], without: tuple[str, ...] = ()) -> None:
    """`rows` as CSV, without the columns named."""
    columns = [column for column in rows[0] if column not in without]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_agencies(folder: Path, kinds: dict[str, str], n: int = 300) -> None:
    """Agencies as a person would write them by hand: contract, tables, agencies.yaml."""
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    listing = []
    for seed, (name, kind) in enumerate(kinds.items()):
        write_table(folder / f"{name}.csv", people(seed, n), () if kind == "health" else ("visits",))
        listing.append({"name": name, "kind": kind, "table": f"{name}.csv", "public_size": n})
    (folder / "agencies.yaml").write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three agencies."""
    write_agencies(tmp_path, {"north": "police", "clinic": "health", "south": "police"})
    return tmp_path


MakeStudy = Callable[..., Study]


@pytest.fixture
def make_study(folder: Path) -> MakeStudy:
    """A study of the three agencies; arguments are overrides as on the command line."""

    def make(*overrides: str) -> Study:
        common = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
        common += [f"output={folder}/outputs", "rounds=4", "evaluation.checkpoints=2"]
        return read(compose([*common, *overrides]))

    return make


FIVE = {"north": "police", "clinic": "health", "south": "police", "east": "police", "ward": "health"}


@pytest.fixture
def make_shared(tmp_path: Path) -> MakeStudy:
    """A study of five agencies that share noise behind masks: c = d = 1, so t = 4 and h = 3."""
    write_agencies(tmp_path, FIVE, 120)

    def make(*overrides: str) -> Study:
        common = ["experiment=own", f"data.agencies={tmp_path}/agencies.yaml", "name=small", "tracking=none"]
        common += [f"output={tmp_path}/outputs", "rounds=3", "evaluation.checkpoints=1", "data.min_people=20"]
        common += ["strategy=dp_fedsgd", "privacy=shared", "privacy.colluders=1", "privacy.dropouts=1"]
        common += ["round_timeout=0.2", "join_timeout=0.2", "engine.poll_seconds=0.01"]
        return read(compose([*common, *overrides]))

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start servers come first: with two workers the longest must not be what is left at the end."""
    items.sort(key=lambda item: "deployed" not in item.keywords)
