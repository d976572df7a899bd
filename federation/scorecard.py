"""`model/card.json`: what an agency must know of a model to score with it, beside `model.safetensors`.

Everything in it comes from the run's noised tables or was agreed: the coordinator writes it from nothing else. It
approves nothing: approval is the panel's.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from federation.plan import Agreed, Sha256, sentences
from models.spec import ModelSpec

CARD, WEIGHTS = "card.json", "model.safetensors"
Probability = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class CardError(ValueError):
    """A card that cannot be used: one sentence for each problem."""


class Measure(Agreed):
    """A number that may be published, with its 95% interval, where it has one; the noise is in it."""

    value: Finite
    low: Finite | None = None
    high: Finite | None = None


class Rate(Agreed):
    """A share of people with its 95% interval: of the sample and of the noise."""

    value: Probability
    low: Probability
    high: Probability

    @model_validator(mode="after")
    def in_order(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError("low, value and high must be in order")
        return self


class Band(Agreed):
    """People whose score, as the model gives it, is in [low, high) (the last band: and 1).

    `observed`: how many of them had the outcome, `share`: how many of all test people they are (noised).
    """

    name: str
    low: Probability
    high: Probability
    observed: Rate
    share: Probability


class RecalibrationMap(Agreed):
    """p' = sigmoid(intercept + slope logit p), fitted to the noised tables of the `part` people.

    `covariance`: (variance of the intercept, covariance, variance of the slope), noise included.
    """

    intercept: Finite
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    covariance: tuple[Finite, Finite, Finite]
    part: Literal["tune"] = "tune"


class ScoreCard(Agreed):
    """The model's identity, and the evidence about its scores.

    `kinds` are those of the agencies that trained. `bands` ascend and cover [0, 1]; () where no rate may be
    published. `recalibration` is null where the tables say too little to correct the scores. `performance` has
    the overall numbers of result.json that may be published.
    """

    card: Literal[1] = 1
    run_id: str
    created: str
    fedrisk_version: str
    experiment: str
    purpose: str
    simulation: bool
    plan_sha256: Sha256
    contract_sha256: Sha256
    contract_name: str
    weights_sha256: Sha256
    model: ModelSpec
    horizon: str
    outcome: str
    kinds: tuple[str | None, ...]
    agencies: Annotated[int, Field(ge=0)]
    tune_fraction: Annotated[float, Field(ge=0, lt=1)]
    test_fraction: Annotated[float, Field(ge=0, lt=1)]
    bands: tuple[Band, ...]
    recalibration: RecalibrationMap | None
    performance: dict[str, Measure]

    @model_validator(mode="after")
    def bands_cover_everyone(self) -> Self:
        ends = [(band.low, band.high) for band in self.bands]
        lows, highs = [low for low, _ in ends], [high for _, high in ends]
        if ends and (
            lows != [0.0, *highs[:-1]] or highs[-1] != 1.0 or any(low >= high for low, high in ends)
        ):
            raise ValueError("bands must ascend from 0 to 1 without a gap")
        return self

    @property
    def version(self) -> str:
        """How people name this model: the run, and the beginning of its weights' SHA-256."""
        return f"{self.run_id} ({self.weights_sha256[:12]})"


def read_card(text: str) -> ScoreCard:
    """The card in `text` (JSON); `CardError` says what does not fit."""
    try:
        return ScoreCard.model_validate_json(text)
    except ValidationError as error:
        raise CardError("\n".join(sentences(error))) from None
