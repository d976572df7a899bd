"""What could be learned if rows were in one place. Simulation only.

It reads several agencies' tables and pools their rows, which no real federation may do; that is why it is
here and not under `federation/` or `clients/`. It shows what federation and privacy cost: the experiment's own
model and scikit-learn's, on everybody's rows or on one agency's, with the encoding and the people of the
federation's own nodes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clients.records.data import PART_NAMES, Part, PartName, load
from experiments.agencies import Agency
from federation.experiment import Experiment
from federation.protocol import Weights

Score = Callable[[np.ndarray], np.ndarray]  # features (n, d) -> risk in [0, 1], (n,)
People = Mapping[str, Mapping[PartName, Part]]  # agency -> its people by part


def read_people(
    experiment: Experiment, agencies: Sequence[Agency], nodes: Path, min_people: int
) -> dict[str, dict[PartName, Part]]:
    """The people of each agency that holds the label, as its node under `nodes`/NAME encodes and deals them.

    `DataError` (clients.records.data) where a table does not fit the contract.
    """
    contract, split = experiment.data_contract, experiment.settings.split
    fractions = {"train": 1 - split.tune - split.test, "tune": split.tune, "test": split.test}
    people = {}
    for agency in agencies:
        if contract.holds_label(agency.kind):
            people[agency.name] = load(
                contract,
                agency.table,
                agency.kind,
                fractions=fractions,
                key=(nodes / agency.name / "split.key").read_bytes(),
                min_people=min_people,
            ).parts
    return people


def pool(people: People) -> dict[PartName, Part]:
    """Everybody in one place. A person known to two agencies is two people here, as in the federation."""
    return {name: _joined(parts[name] for parts in people.values()) for name in PART_NAMES}


def _joined(parts: Iterable[Part]) -> Part:
    found = list(parts)
    outcomes = [part.y for part in found if part.y is not None]
    return Part(
        np.concatenate([part.x for part in found]),
        np.concatenate(outcomes) if outcomes else None,
        np.concatenate([part.present for part in found]),
        np.concatenate([part.group for part in found]),
    )


def latest(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """(x (n, d), y (n,)): the row by which a person is scored, the most recent one."""
    y = _outcomes(part)
    return (part.x, y) if part.x.ndim == 2 else (part.x[:, -1], y[:, -1])


def rows(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """(x (r, d), y (r,)): every row that is there, of everybody."""
    there = part.present > 0
    return part.x[there], _outcomes(part)[there]


def _outcomes(part: Part) -> np.ndarray:
    if part.y is None:
        raise ValueError("there is nothing to learn or to judge where no label is held")
    return part.y


# --- the experiment's own model -----------------------------------------------------------------------


def fit(experiment: Experiment, train: Part, public_size: int) -> Weights:
    """The weights that a federation of one agency that holds `train` would reach.

    Same model, rounds, steps, step size and strategy as `experiment`, without clipping and noise where it
    has no privacy. `public_size` is declared, as at a node: it scales the gradient, the true count does not.
    """
    import torch

    from clients.train import dp_fit, simulated_noise, simulated_sampling
    from federation.server import strategies
    from models import risk

    plan = experiment.plan("reference", simulation=True)
    settings = experiment.settings
    module = risk.build(settings.model, train.x.shape[-1], settings.seed)
    strategy = strategies.build(settings.strategy)
    weights = risk.weights_of(module)
    for number in range(1, plan.rounds + 1):
        risk.load_weights(module, weights)
        delta = dp_fit(
            module,
            torch.from_numpy(train.x),
            torch.from_numpy(_outcomes(train)),
            torch.from_numpy(train.present) if train.x.ndim == 3 else None,
            privacy=plan.privacy,
            local=plan.local,
            expected_batch=plan.privacy.sample_rate * public_size * plan.train_fraction,
            sampling=simulated_sampling(settings.seed * 100_003 + number),
            noise=simulated_noise(settings.seed * 100_003 + number),
        )
        update = strategies.Update(_message(), delta, 1.0, {})
        weights = strategies.combine(strategy, number, weights, [update])
    return weights


def _message() -> Any:
    """A reply from nobody: Flower's strategies take changes in messages only."""
    from flwr.app import Message, Metadata, RecordDict

    facts = Metadata(
        run_id=1,
        message_id="",
        src_node_id=1,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type="train.round",
    )
    return Message(RecordDict(), metadata=facts)  # type: ignore[call-overload]


def torch_score(experiment: Experiment, weights: Weights) -> Score:
    """The experiment's model at `weights`, scoring as a node does (float32)."""
    import torch

    from models import risk
    from models.features import layout

    module = risk.build(experiment.settings.model, len(layout(experiment.data_contract).names))
    risk.load_weights(module, weights)

    def score(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(torch.sigmoid(module(torch.from_numpy(x))).double().numpy())

    return score


# --- scikit-learn's, as they come ---------------------------------------------------------------------


def logistic(train: Part, seed: int = 0) -> Score:
    """LogisticRegression with its defaults (L2, C=1), trained to convergence."""
    from sklearn.linear_model import LogisticRegression

    return _fitted(LogisticRegression(max_iter=5000, random_state=seed), train)


def boosting(train: Part, seed: int = 0) -> Score:
    """HistGradientBoostingClassifier with its defaults."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return _fitted(HistGradientBoostingClassifier(random_state=seed), train)


SKLEARN: Mapping[str, Callable[[Part, int], Score]] = {
    "sklearn logistic": logistic,
    "sklearn boosting": boosting,
}


def _fitted(model: Any, train: Part) -> Score:
    """`model` trained on every row; where all outcomes are the same, that outcome for everybody."""
    x, y = rows(train)
    if len(np.unique(y)) < 2:
        return lambda x: np.full(len(x), float(y.mean()) if len(y) else 0.5)
    model.fit(x, y)
    return lambda x: np.asarray(model.predict_proba(x)[:, 1], dtype=np.float64)
