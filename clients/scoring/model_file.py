"""The model that a node scores with: `model.safetensors` and `card.json` in one folder, as a run writes them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load

from clients import blocks
from federation.scorecard import CARD, WEIGHTS, CardError, ScoreCard, read_card
from models import risk
from models.contract import Contract
from models.features import layout

LARGEST_WEIGHT = 1e6  # as in an order: models with larger ones overflow


class ScoringError(ValueError):
    """Nobody can be scored like this: sentences for the person at this machine, without any cell."""


@final
@dataclass(frozen=True, eq=False)
class Model:
    """The card and the module of one model. `linear` has (weights (d,), bias) where the logit is additive.

    `card_sha256` is of the very bytes that `card` was read from.
    """

    card: ScoreCard
    card_sha256: str
    module: torch.nn.Module
    linear: tuple[np.ndarray, float] | None

    def scores(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logits, scores) of x (n, d), both float64 (n,), computed as in the evaluation that measured the bands."""
        with torch.no_grad():
            logits = blocks.logits(self.module, torch.from_numpy(np.ascontiguousarray(x, np.float32)))
            score = torch.sigmoid(logits)
        return np.asarray(logits.double().numpy()), np.asarray(score.double().numpy())


def read_model(folder: Path, contract: Contract) -> Model:
    """The model in `folder`, for this contract and no other; `ScoringError` says what is wrong."""
    try:
        described, content = (folder / CARD).read_bytes(), (folder / WEIGHTS).read_bytes()
        text = described.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ScoringError(
            f"{folder} must hold {WEIGHTS} and {CARD}: name the model/ folder that the run wrote"
        ) from None
    try:
        card = read_card(text)
    except CardError as error:
        raise ScoringError("\n".join(f"{CARD}: {line}" for line in str(error).splitlines())) from None
    if card.contract_sha256 != contract.sha256:
        raise ScoringError(
            f"the model was trained under another contract ({card.contract_name}, {card.contract_sha256[:12]}) than "
            f"this agency's ({contract.name}, {contract.sha256[:12]}): nobody is scored; get the model of this contract"
        )
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise ScoringError(
            f"{WEIGHTS} is not the file that {CARD} is about: get both again from the same run"
        )
    if not card.bands:
        raise ScoringError(
            "no observed rate of this model may be published (too few people, or too much noise), so a score "
            "would have nothing behind it: nobody is scored"
        )
    return _model(card, hashlib.sha256(described).hexdigest(), content, len(layout(contract).names))


def _model(card: ScoreCard, card_sha256: str, content: bytes, n_features: int) -> Model:
    module = risk.build(card.model, n_features)
    try:
        weights = load(content)
        risk.load_weights(module, weights)
    except (SafetensorError, ValueError):
        raise ScoringError(f"{WEIGHTS} does not fit the model that {CARD} names: get both again") from None
    if not all((np.abs(values) <= LARGEST_WEIGHT).all() for values in weights.values()):  # nor NaN
        raise ScoringError(
            f"a weight is not within ±{LARGEST_WEIGHT:g}: the model has diverged, do not use it"
        )
    linear = None
    if card.model.name == "logistic":
        w, b = (p.detach().double().numpy() for p in module.parameters())
        linear = (w.reshape(-1), float(b.reshape(-1)[0]))
    return Model(card, card_sha256, module.eval(), linear)
