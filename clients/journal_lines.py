"""What a journal may say: a closed list of kinds, each with a closed list of facts.

There is no field for a cell, a count, the id of a record or an error's text. `order_id`, `run_id`, `experiment`,
`purpose` and `plan_sha256` come from the coordinator's order and are public among the agencies; `rule` is a key
of this agency's own `policy.toml`, and `sentence` is what the policy said about it, in this project's words.
"""

from typing import Annotated, Literal

from pydantic import Field

from federation.plan import Agreed, Reason, Sha256, Slug

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{1,64}$")]
Text = Annotated[str, Field(max_length=400)]
OrderType = Literal[
    "ready", "keys", "deal", "agree", "open", "stats", "map", "greet", "seal", "cohort", "round", "unknown"
]
What = Literal["training", "tune table", "test table", "users table", "statistic", "map", "cohort"]
HowStopped = Literal["asked", "now"]


class Line(Agreed):
    """One line's facts; its kind is the class's name in small letters."""


class _OfOrder(Line):
    """`order_id` names a draw in the ledger, and is empty where nothing would be drawn."""

    order: OrderType
    run_id: Slug | None = None
    plan_sha256: Sha256 | None = None
    order_id: Text = ""


class Ordered(_OfOrder):
    """An order arrived. A run, a plan and the rest are left out where it did not decode.

    `registration`: what the plan says an ethics panel signed before the run. `retest_of`: the run whose model is
    measured again, and nothing is trained.
    """

    experiment: Slug | None = None
    purpose: Slug | None = None
    registration: Sha256 | None = None
    retest_of: Slug | None = None
    round: Annotated[int, Field(ge=0)] | None = None


class Accepted(_OfOrder):
    """An order was permitted and answered, and nothing about records left with the answer."""


class Refused(_OfOrder):
    """An order was refused: the `reason` left, the deciding `rule` of the policy did not."""

    reason: Reason
    rule: Annotated[str, Field(pattern=r"^[a-z0-9_.-]{0,100}$")] = ""
    sentence: Text = ""


class Released(_OfOrder):
    """An order was permitted, and `released` is about to leave. `ledger_seq` and `ledger_sha256`: the ledger's head."""

    released: tuple[What, ...]
    steps: Annotated[int, Field(ge=0)] = 0
    ledger_seq: Annotated[int, Field(ge=0)]
    ledger_sha256: Sha256


class Started(Line):
    """The node was started with this release of fedrisk."""

    version: Word
    code_sha256: Sha256


class Rules(Line):
    """The process that answers orders began with these rules, which nobody else sees: they are what decided from here on."""

    policy_sha256: Sha256
    contract_sha256: Sha256


class Stopped(Line):
    """The node was stopped: after the order in hand (`asked`), or at once (`now`)."""

    how: HowStopped


class Left(Line):
    """The agency left the federation. `by` is the name given; `left.json` has the reason."""

    by: Text


class Approved(Line):
    """A person approved a plan. `by` is the name given; `approvals.jsonl` has the reason."""

    plan_sha256: Sha256
    by: Text


class Withdrawn(Line):
    """A person took an approval back."""

    plan_sha256: Sha256
    by: Text


class Repaired(Line):
    """A line that a crash had cut off was removed: this many bytes, which had never counted as written."""

    cut_off: Annotated[int, Field(ge=1)]


KINDS: dict[str, type[Line]] = {
    kind.__name__.lower(): kind
    for kind in (
        Ordered,
        Accepted,
        Refused,
        Released,
        Started,
        Rules,
        Stopped,
        Left,
        Approved,
        Withdrawn,
        Repaired,
    )
}


def printable(text: str) -> str:
    """`text` as it may stand in a line: without control characters, and not too long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:400]
