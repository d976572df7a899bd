"""Whose records an audit may look at: made-up people, or a copy that the user says is a copy. Never a node's."""

import hashlib
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import yaml

from clients.records.data import DataError as TableError
from clients.records.data import Dataset, PartName, load
from experiments.agencies import DataError, read_agencies
from experiments.audit.membership import Split
from experiments.baselines import latest
from experiments.datasets import prepare
from models.contract import Contract, ContractError

OF_A_NODE = ("node.toml", "policy.toml", "ledger.db", "split.key")
HALVES = {"train": 0.5, "tune": 0.0, "test": 0.5}


def made_up(seed: int) -> Split:
    """The demo's population (docs/synthetic.md), about 3,000 people, half of them members."""
    with tempfile.TemporaryDirectory() as folder:
        agencies = prepare("synthetic", {"people": 0.2, "seed": seed}, Path(folder))
        return _split(agencies, hashlib.blake2b(f"audit {seed}".encode(), digest_size=32).digest())


def copied(agencies: Path, *, is_copy: bool) -> Split:
    """The people of an agencies.yaml, half of them members by a fresh deal.

    `DataError` unless the user says that it is a copy, and where anything about it looks like a node's own: a file
    of a node's in its folder or one above (links followed), or a table with another name on this disk (a hard
    link). An audit charges no ledger, so it must not look at people whose losses a ledger counts. A node whose
    table lies outside its folder cannot be recognised: there the user's word is all there is.
    """
    if not is_copy:
        raise DataError(
            f"{agencies} is audited only if you say that it is a copy (--this-is-a-copy): an audit charges no ledger, so it "
            "must never look at the records that a node serves"
        )
    _refuse_live([agencies])
    _refuse_live(agency.table for agency in read_agencies(agencies)[1])
    return _split(agencies, secrets.token_bytes(32))


def _refuse_live(paths: Iterable[Path]) -> None:
    problems = list(_looks_live(paths))
    if problems:
        raise DataError(*problems)


def _looks_live(paths: Iterable[Path]) -> Iterable[str]:
    """A sentence for each path that is a node's, or is not a file of its own."""
    for path in paths:
        whole = path.resolve()
        names = (above / name for above in [whole, *whole.parents] for name in OF_A_NODE)
        if (found := next((each for each in names if each.exists()), None)) is not None:
            yield f"{path} belongs to a node ({found} exists): copy the tables elsewhere and audit the copy"
        if whole.is_file() and whole.stat().st_nlink > 1:
            yield f"{path} is the same file as another (a hard link), not a copy: copy it and audit the copy"


def _split(agencies: Path, key: bytes) -> Split:
    """Members and others of all agencies that hold the label, each person by the most recent row."""
    contract_file, listed = read_agencies(agencies)
    try:
        contract = Contract.from_dict(yaml.safe_load(contract_file.read_text()))
        tables = [
            load(contract, agency.table, agency.kind, fractions=HALVES, key=key, min_people=1)
            for agency in listed
            if contract.holds_label(agency.kind)
        ]
    except (ContractError, TableError, yaml.YAMLError) as error:
        raise DataError(str(error)) from None
    groups = {"everyone": tuple(range(len(contract.group_names)))}
    for attribute, levels in contract.group_margins.items():
        groups |= {f"{attribute}={level}": places for level, places in levels.items()}
    return Split(_joined(tables, "train"), _joined(tables, "test"), groups)


def _joined(tables: Iterable[Dataset], part: PartName) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    parts = [table.parts[part] for table in tables]
    x, y = (np.concatenate(values) for values in zip(*(latest(each) for each in parts), strict=True))
    cell = np.concatenate([each.group for each in parts])
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32)), cell
