"""The map from the model's score to a probability: this agency's own where its records allow one, else everybody's.

Published tools of this kind said too little until they were recalibrated where they are used (OxRec), so the
agency's own tune people come first: they were never trained on. Their records are read here and the map stays on
this machine, so nothing is released and no ε is spent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np

from clients import keys
from clients.folder import NodeFile
from clients.records.data import DataError, load
from clients.records.sources import find_source
from clients.scoring.model_file import Model
from models.calibration import Recalibration, recalibration_of
from models.contract import Contract

Source = Literal["local", "federation", "none"]


@final
@dataclass(frozen=True)
class Calibration:
    """The map in use, or None where neither evidence carries one; `why` says why it is not the agency's own."""

    map: Recalibration | None
    source: Source
    why: str = ""

    @property
    def slope(self) -> float:
        """What one unit of the model's logit is worth in the calibrated log-odds."""
        return 1.0 if self.map is None else self.map.slope

    def probabilities(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """(probability, low, high), each (n,); no interval where the score could not be checked."""
        if self.map is None:
            return np.exp(-np.logaddexp(0, -logits)), None, None
        return self.map.interval(logits)


def choose(
    model: Model, folder: Path, facts: NodeFile, contract: Contract, *, min_people: int, local: bool = True
) -> Calibration:
    """The agency's own map where `local` asks for it and its tune people carry one, else that of the card."""
    why = "" if not local else "this agency does not hold the outcome"
    if local and contract.holds_label(facts.kind):
        try:
            own = _of_this_agency(model, folder, facts, contract, min_people)
        except DataError:
            own, why = (
                None,
                "this agency's own table does not fit the contract: fedrisk-node doctor says where",
            )
        else:
            why = "this agency has too few records set aside to correct the score by itself"
        if own is not None:
            return Calibration(own, "local")
    everybody = model.card.recalibration
    if everybody is None:
        return Calibration(None, "none", why)
    return Calibration(
        Recalibration(everybody.intercept, everybody.slope, everybody.covariance), "federation", why
    )


def _of_this_agency(
    model: Model, folder: Path, facts: NodeFile, contract: Contract, min_people: int
) -> Recalibration | None:
    tune, test = model.card.tune_fraction, model.card.test_fraction
    dataset = load(
        contract,
        find_source(folder, facts.table),
        facts.kind,
        fractions={"train": 1 - tune - test, "tune": tune, "test": test},
        key=keys.secret(folder / "split.key"),
        min_people=min_people,
    )
    people = dataset.parts["tune"]
    if people.y is None or not len(people.y):
        return None
    x, y = (people.x, people.y) if people.x.ndim == 2 else (people.x[:, -1], people.y[:, -1])
    return recalibration_of(model.scores(x)[0], y.astype(np.float64))
