"""A node's folder, a model and people to score, for the tests of local scoring."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors.numpy import save

from federation.scorecard import Band, Measure, Rate, RecalibrationMap, ScoreCard
from models import risk
from models.contract import Contract
from models.features import layout
from models.spec import ModelSpec

VALUES: dict[str, Any] = {
    "name": "small",
    "purpose": "early-warning",
    "unit": {"kind": "person", "column": "ref", "order_by": "month"},
    "kinds": ["police", "health", "council"],
    "blocks": {"care": {"held_by": ["health", "council"]}},
    "columns": {
        "age": {"type": "number", "min": 16, "max": 90, "unit": "years", "center": 40, "scale": 15,
                "about": {"actionable": False}},
        "contacts": {"type": "number", "min": 0, "max": 20, "unit": "count", "log": True, "missing": "indicator",
                     "about": {"description": "contacts with the police"}},
        "severity": {"type": "ordinal", "levels": ["none", "some", "severe"], "missing": "indicator"},
        "area": {"type": "category", "levels": ["north", "south", "west"], "missing": "level",
                 "about": {"proxy_for": "ethnicity"}},
        "known": {"type": "flag"},
        "visits": {"type": "number", "min": 0, "max": 10, "block": "care"},
    },
    "groups": {
        "ethnicity": {"column": "ethnicity", "levels": ["a", "b"]},
        "age_band": {"column": "age", "edges": [25], "levels": ["under 25", "25 and over"]},
    },
    "label": {"column": "outcome", "positive": ["1"], "horizon": "12 months", "description": "A serious incident.",
              "held_by": ["police", "council"]},
}  # fmt: skip
CONTRACT = Contract.from_dict(VALUES)
MAP = RecalibrationMap(intercept=-0.3, slope=0.8, covariance=(0.01, 0.002, 0.004))
EDGES = (0.0, 0.3, 0.6, 1.0)
RATES = ((0.14, 0.11, 0.18), (0.42, 0.36, 0.49), (0.78, 0.7, 0.85))
AS_OF = "2026-03-31"
POLICY = """min_people = 20
[purposes.early-warning]
legal_basis = "made up for a test"
"""
LOGISTIC = ModelSpec("logistic")


def people(n: int, seed: int = 0) -> pd.DataFrame:
    """Records of a police force with a learnable outcome."""
    rng = np.random.default_rng(seed)
    age, contacts, known = rng.integers(16, 90, n), rng.integers(0, 20, n), rng.integers(0, 2, n)
    logit = contacts / 5 - 2 + known - (age - 40) / 30
    return pd.DataFrame(
        {
            "ref": [f"P-{seed}-{i:04d}" for i in range(n)],
            "month": rng.choice(["2025-09-15", "2026-01-31"], n),
            "age": age,
            "contacts": contacts,
            "severity": rng.choice(["none", "some", "severe"], n),
            "area": rng.choice(["north", "south", "west"], n),
            "known": known,
            "ethnicity": rng.choice(["a", "b"], n),
            "outcome": (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )


def to_score(n: int, seed: int = 1) -> pd.DataFrame:
    """`people` without the label and without what only an audit needs."""
    return people(n, seed).drop(columns=["outcome", "ethnicity"])


def weights(spec: ModelSpec, contract: Contract = CONTRACT) -> dict[str, np.ndarray]:
    """Random weights of the model's shapes; a logistic model leans the way in which `people` were made."""
    rng, names = np.random.default_rng(5), layout(contract).names
    first = risk.weights_of(risk.build(spec, len(names)))
    found = {name: rng.normal(0, 0.4, value.shape).astype(np.float32) for name, value in first.items()}
    if spec.name == "logistic":
        lean = {"contacts": 1.2, "known": 0.9, "age": -0.4}
        found[next(iter(found))] += np.array([[lean.get(name, 0.0) for name in names]], np.float32)
    return found


def write_model(folder: Path, spec: ModelSpec = LOGISTIC, **changes: Any) -> ScoreCard:
    """`model.safetensors` and `card.json`; `changes` are fields of the card."""
    folder.mkdir(exist_ok=True)
    content = save(weights(spec))
    bands = tuple(
        Band(name=name, low=low, high=high, observed=Rate(value=v, low=a, high=b), share=share)
        for name, low, high, (v, a, b), share in zip(
            ("low", "middle", "high"), EDGES[:-1], EDGES[1:], RATES, (0.6, 0.3, 0.1), strict=True
        )
    )
    values: dict[str, Any] = {
        "run_id": "run-7",
        "created": "2026-03-01T10:00:00+00:00",
        "fedrisk_version": "0.2.0",
        "experiment": "small",
        "purpose": "early-warning",
        "simulation": False,
        "plan_sha256": "ab" * 32,
        "contract_sha256": CONTRACT.sha256,
        "contract_name": CONTRACT.name,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "model": spec,
        "horizon": CONTRACT.label.horizon,
        "outcome": CONTRACT.label.description,
        "kinds": ("police",),
        "agencies": 3,
        "tune_fraction": 0.2,
        "test_fraction": 0.2,
        "bands": bands,
        "recalibration": MAP,
        "performance": {"auc": Measure(value=0.76, low=0.72, high=0.79)},
    }
    card = ScoreCard(**values | changes)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "card.json").write_text(json.dumps(json.loads(card.canonical)))
    return card


def write_node(folder: Path, kind: str = "police", n: int = 60) -> Path:
    """The node's folder, with a table of `n` people of its own."""
    folder.mkdir()
    table = people(n, seed=9)
    if kind == "health":
        table = table.drop(columns="outcome").assign(visits=3)
    table.to_csv(folder / "table.csv", index=False)
    (folder / "contract.yaml").write_text(yaml.safe_dump(VALUES, sort_keys=False))
    (folder / "node.toml").write_text(
        f'name = "north"\nkind = "{kind}"\ntable = "table.csv"\ncontract = "contract.yaml"\npublic_size = 60\n'
    )
    (folder / "policy.toml").write_text(POLICY)
    return folder
