"""One run of `fedrisk-node score`: the node's files, the panel's word, the people, the access log, the pages, in this order."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal, final

import yaml

from clients.folder import NodeError, NodeFile, read_node_file
from clients.keys import KeyFileError
from clients.policy import Policy, PolicyError, read_policy
from clients.records.cells import DataError
from clients.scoring import calibrate, pages
from clients.scoring.access import ACCESS, AccessLog, who
from clients.scoring.approval import Approved, read_permission
from clients.scoring.model_file import Model, ScoringError, read_model
from clients.scoring.people import read_people
from clients.scoring.score import Scores, score_people
from federation.decision import DecisionError
from models.contract import Contract, ContractError

Recalibrate = Literal["auto", "local", "federation"]
SENTENCES = (ScoringError, DecisionError, DataError, NodeError, PolicyError, KeyFileError)
"""Errors whose text is for the person at this machine and quotes no cell."""


@final
@dataclass(frozen=True)
class Asked:
    """What `score` was asked to do. `rehearsal`: no panel is asked, and no page may be acted on.

    `recalibrate`, "auto": on this agency's own records in a rehearsal, else as the panel saw it, on everybody's counts.
    """

    input: Path
    output: Path
    model: Path
    purpose: str
    capacity: int
    folder: Path
    as_of: date
    reference: str | None = None
    contest: str = ""
    recalibrate: Recalibrate = "auto"
    rehearsal: bool = False


def score_into(
    asked: Asked, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> tuple[Scores, pages.Run]:
    """Score, write down who looked, and only then write the pages. Returns the scores and what the pages say of the run."""
    folder = asked.folder
    facts, policy, contract = open_folder(folder)
    model = read_model(asked.model, contract)
    at = now()
    _permitted(asked.purpose, policy, contract, model, policy.today(at))
    approved = None if asked.rehearsal else read_permission(folder, facts, model, asked.model, at)
    if approved is not None:
        approved.check_capacity(asked.capacity)
    local = _on_own_records(asked, approved)
    people = read_people(asked.input, contract, facts.kind, asked.reference)
    map_ = calibrate.choose(model, folder, facts, contract, min_people=policy.min_people, local=local)
    found = score_people(
        model, contract, facts.kind, people, map_, as_of=asked.as_of, capacity=asked.capacity
    )
    pages.make_output(asked.output)
    listed = {people.references[i] for i in found.listed}
    with AccessLog(folder / ACCESS, now=now) as log:
        seq, chain = log.scored(
            user=who(),
            run=uuid.uuid4().hex[:16],
            purpose=asked.purpose,
            model=model.card.version,
            records={name: name in listed for name in people.references},
            note=_note(len(people.references), len(listed), asked.capacity, approved),
        )
    entry = f"{seq}:{chain[:12]}"
    run = pages.Run(asked.purpose, who(), entry, asked.capacity, asked.contest, facts.name, approved)
    pages.write_output(asked.output, found, run)
    return found, run


def open_approved(folder: Path, place: Path, now: datetime) -> tuple[Model, Approved]:
    """The model in `place`, and what the panel of the node in `folder` allows with it; the errors of `read_permission`."""
    facts, _, contract = open_folder(folder)
    model = read_model(place, contract)
    return model, read_permission(folder, facts, model, place, now)


def _on_own_records(asked: Asked, approved: Approved | None) -> bool:
    """Whether the score is corrected on this agency's own records; `ScoringError` where the panel did not allow it."""
    if approved is None:
        return asked.recalibrate != "federation"
    local = asked.recalibrate == "local"
    if local and not approved.permission.limits.local_recalibration:
        raise ScoringError(
            f"the panel {approved.panel!r} did not allow --recalibrate local: it approved scores that are corrected on "
            "all agencies' counts; leave the option out"
        )
    return local


def _note(scored: int, listed: int, capacity: int, approved: Approved | None) -> str:
    counts = f"{scored} scored, {listed} listed, capacity {capacity}"
    return f"rehearsal, {counts}" if approved is None else f"{counts}; {approved.sentence}"


def _permitted(purpose: str, policy: Policy, contract: Contract, model: Model, today: date) -> None:
    """`ScoringError` where the agency's own policy, or what the model was made for, does not allow this use."""
    if purpose not in policy.purposes:
        raise ScoringError(
            f"policy.toml does not list the purpose {purpose!r}: score for a purpose that this agency permits"
        )
    expires = policy.purposes[purpose].expires
    if expires is not None and today > expires:
        raise ScoringError(
            f"policy.toml: the purpose {purpose!r} expired on {expires}: whoever answers for it must renew it first"
        )
    never = sorted({column.name for column in contract.columns} & set(policy.never_columns))
    if never:
        raise ScoringError(
            f"policy.toml: never_columns lists {', '.join(never)}, which this model uses: nobody is scored with it"
        )
    if purpose != model.card.purpose:
        raise ScoringError(
            f"the model was trained for {model.card.purpose!r} and may not be used for {purpose!r}: scores for another "
            "purpose need a model, and a panel, of that purpose"
        )


def open_folder(folder: Path) -> tuple[NodeFile, Policy, Contract]:
    """node.toml, policy.toml and the contract of the node in `folder`."""
    facts, policy = read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")
    try:
        return facts, policy, Contract.from_dict(yaml.safe_load((folder / facts.contract).read_text()))
    except (OSError, UnicodeDecodeError):
        raise NodeError(f"node.toml: the contract file {facts.contract} cannot be read") from None
    except (ContractError, yaml.YAMLError) as error:
        raise NodeError(f"the contract {facts.contract} is not usable: {error}") from None
