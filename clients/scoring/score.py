"""People and a model -> scores with their evidence, and the short list. Pure: no file, no clock.

What is said of a person is: the calibrated probability with the interval of the map, the band of the model's own
score with the rate that was observed in it, the reasons, and what speaks against using any of it.
"""

import datetime
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from clients.scoring.calibrate import Calibration
from clients.scoring.model_file import Model
from clients.scoring.people import People, why_out_of_scope
from clients.scoring.reasons import Reason, contributions, label_of, top_reasons
from federation.scorecard import Band, Rate
from models.contract import Contract


@final
@dataclass(frozen=True, repr=False)  # repr=False: it is about one person
class Case:
    """One person's score as it is shown. `probability`: calibrated; its interval is None where it was not checked.

    reasons: None where the model is not additive, so none can be given.
    """

    reference: str
    probability: float
    low: float | None
    high: float | None
    band: Band
    reasons: tuple[Reason, ...] | None
    missing: tuple[str, ...]
    newest: datetime.date | None
    out_of_scope: tuple[str, ...]
    listed: bool


@final
@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Everybody's scores: arrays over people, and `listed`, places in the order of the list."""

    model: Model
    contract: Contract
    people: People
    calibration: Calibration
    as_of: datetime.date
    logits: np.ndarray
    probability: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    bands: np.ndarray
    scope: list[tuple[str, ...]]
    parts: np.ndarray | None
    listed: tuple[int, ...]

    def case(self, i: int) -> Case:
        """The person at place `i`."""
        people, card = self.people, self.model.card
        cells = {name: values[i] for name, values in people.cells.items()}
        reasons = None
        if self.parts is not None:
            reasons = top_reasons(self.contract, self.parts[i], cells, self.calibration.slope)
        gaps = zip(people.columns, people.missing[i], strict=True)
        return Case(
            reference=people.references[i],
            probability=float(self.probability[i]),
            low=None if self.low is None else float(self.low[i]),
            high=None if self.high is None else float(self.high[i]),
            band=card.bands[int(self.bands[i])],
            reasons=reasons,
            missing=tuple(label_of(column) for column, gone in gaps if gone),
            newest=people.newest[i],
            out_of_scope=self.scope[i],
            listed=i in self._listed,
        )

    def cases(self) -> Iterator[Case]:
        """Everybody, in the order of the input."""
        return map(self.case, range(len(self.people.references)))

    @functools.cached_property
    def _listed(self) -> frozenset[int]:
        return frozenset(self.listed)

    def as_high_but_unlisted(self) -> int:
        """People in the band of the last one listed, or above, for whom the capacity was too small."""
        if not self.listed:
            return 0
        lowest = self.bands[self.listed[-1]]
        return int((self.bands >= lowest).sum()) - len(self.listed)


def score_people(
    model: Model,
    contract: Contract,
    kind: str | None,
    people: People,
    calibration: Calibration,
    *,
    as_of: datetime.date,
    capacity: int,
) -> Scores:
    """Everybody's scores, and at most `capacity` of them on the list: the highest, equals by reference."""
    logits, score = model.scores(people.x)
    probability, low, high = calibration.probabilities(logits)
    parts = None if model.linear is None else contributions(model.linear[0], people.x, contract, kind)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], people.references[i]))
    return Scores(
        model=model,
        contract=contract,
        people=people,
        calibration=calibration,
        as_of=as_of,
        logits=logits,
        probability=probability,
        low=low,
        high=high,
        bands=_bands(model, score),
        scope=why_out_of_scope(people, contract, kind, model.card.kinds, as_of),
        parts=parts,
        listed=tuple(order[:capacity]),
    )


def _bands(model: Model, score: np.ndarray) -> np.ndarray:
    """Place of each score's band: low <= score < high, as the evaluation counted it."""
    lows = np.array([band.low for band in model.card.bands])
    return np.asarray(np.searchsorted(lows, score, side="right") - 1)


def frequency(rate: Rate | tuple[float, float, float]) -> str:
    """A share as people count: "14 in 100 (11 to 18)"; of 1,000 where it is below 2%; its interval rounded outwards."""
    value, low, high = (rate.value, rate.low, rate.high) if isinstance(rate, Rate) else rate
    return f"{told(value)} ({ends(value, low, high)})"


def told(value: float, of: int | None = None) -> str:
    """ "14 in 100", of 1,000 where the share is below 2%; never none or all of them where it is not exactly that."""
    of = of or base(value)
    found = math.floor(value * of + 0.5)
    if 0 < value < 1 and found in (0, of):
        return f"fewer than 1 in {of:,}" if found == 0 else f"more than {of - 1:,} in {of:,}"
    return f"{found:,} in {of:,}"


def ends(value: float, low: float, high: float) -> str:
    """The interval of `told(value)`, rounded outwards: "11 to 18"."""
    of = base(value)
    return f"{math.floor(low * of + 1e-9):,} to {math.ceil(high * of - 1e-9):,}"


def base(value: float) -> int:
    """Of how many people a share is told."""
    return 100 if value >= 0.02 else 1000
