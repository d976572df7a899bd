"""One run of `fedrisk-node score`: the node's files, the people, the access log, the pages, in this order."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import final

import yaml

from clients.folder import NodeError, NodeFile, read_node_file
from clients.keys import KeyFileError
from clients.policy import Policy, PolicyError, read_policy
from clients.records.cells import DataError
from clients.scoring import calibrate, pages
from clients.scoring.access import ACCESS, AccessLog, who
from clients.scoring.model_file import Model, ScoringError, read_model
from clients.scoring.people import read_people
from clients.scoring.score import Scores, score_people
from models.contract import Contract, ContractError

SENTENCES = (ScoringError, DataError, NodeError, PolicyError, KeyFileError)
"""Errors whose text is for the person at this machine and quotes no cell."""


@final
@dataclass(frozen=True)
class Asked:
    """What `score` was asked to do."""

    input: Path
    output: Path
    model: Path
    purpose: str
    capacity: int
    folder: Path
    as_of: date
    reference: str | None = None
    contest: str = ""
    local: bool = True


def score_into(asked: Asked, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> tuple[Scores, str]:
    """Score, write down who looked, and only then write the pages. Returns the scores and the log's row."""
    folder = asked.folder
    facts, policy, contract = open_folder(folder)
    model = read_model(asked.model, contract)
    _permitted(asked.purpose, policy, contract, model, policy.today(now()))
    people = read_people(asked.input, contract, facts.kind, asked.reference)
    map_ = calibrate.choose(model, folder, facts, contract, min_people=policy.min_people, local=asked.local)
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
            note=f"rehearsal, {len(people.references)} scored, {len(listed)} listed, capacity {asked.capacity}",
        )
    entry = f"{seq}:{chain[:12]}"
    run = pages.Run(asked.purpose, who(), entry, asked.capacity, asked.contest, facts.name)
    pages.write_output(asked.output, found, run)
    return found, entry


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
