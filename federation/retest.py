"""What a coordinator is asked for when a model is measured again: which one, and what brings it back to its panel."""

from typing import Annotated

from pydantic import AwareDatetime, Field

from federation.plan import Agreed, Carried, Sha256, Slug
from federation.scorecard import Measure


class Decided(Agreed):
    """The decision whose thresholds are measured. `verified`: a quorum's signatures were checked against pinned keys."""

    decision_sha256: Sha256
    panel: str
    verdict: str
    decided: AwareDatetime
    expires: AwareDatetime | None
    owner: str
    verified: bool


class Watched(Agreed):
    """A sentence of a decision (or that somebody typed: `decided` False), and, of a threshold, what the run's own test had."""

    text: Annotated[str, Field(min_length=1, max_length=20_000)]
    decided: bool
    then: Measure | None = None


class RetestRequest(Carried):
    """Measure the model of the finished run `of`, whose model.safetensors has the SHA-256 `weights_sha256`."""

    of: Slug
    weights_sha256: Sha256
    result_sha256: Sha256
    decision: Decided | None = None
    watched: tuple[Watched, ...] = ()
