"""An agency's node: its folder, its rules, its records, its ledger, and the two orders it answers.

A folder holds `node.toml` (what this agency is), `policy.toml` (what it permits), `split.key` (a secret
that only this node has), `ledger.db` and `node.log`. Nothing here knows where the order came from.
"""

import contextlib
import functools
import hashlib
import logging
import os
import secrets
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import yaml
from pydantic import Field, ValidationError

from clients.data import DataError, Dataset, load
from clients.evaluate import noised_table
from clients.ledger import Budget, Ledger, Scope
from clients.policy import Policy, read_policy
from federation.privacy import Release
from federation.protocol import (
    Agreed,
    Part,
    Ready,
    Reason,
    Refused,
    RoundOrder,
    RoundReply,
    Slug,
    TrainPlan,
    sentences,
)
from models import risk
from models.contract import Contract, ContractError
from models.features import layout

KEY_BYTES = 32


class NodeError(ValueError):
    """A node folder that cannot be used: one sentence, for the person at this machine."""


class NodeFile(Agreed):
    """`node.toml`: who this agency is, where its table and contract are, and its declared public size."""

    name: Slug
    kind: str | None = None
    table: str
    contract: str
    public_size: Annotated[int, Field(ge=1)]


class Node:
    """One agency. `open_node` makes it; `ready` and `round` answer the coordinator's two orders."""

    def __init__(self, folder: Path, facts: NodeFile, policy: Policy, contract: Contract) -> None:
        self.folder = folder
        self.facts = facts
        self.policy = policy
        self.contract = contract
        self.log = _file_log(folder, facts.name)
        self._resident: dict[tuple[float, float], Resident] = {}
        self._modules: dict[risk.ModelSpec, torch.nn.Module] = {}
        self._reserved: set[str] = set()
        budget = None if policy.budget is None else Budget(policy.budget.epsilon, policy.budget.delta)
        scope: Scope = "this run alone" if policy.simulation else "lifetime"
        self.ledger = Ledger(folder / "ledger.db", budget=budget, scope=scope)

    def ready(self, plan: TrainPlan) -> Ready:
        """Check the plan against the policy, the data against the contract, and reserve the budget."""
        self._review(plan)
        self._records(plan)
        self._reserve(plan)
        self.log.info("ready for run %s, plan %s", plan.run_id, plan.sha256)
        return Ready(self.facts.name)

    def round(self, order: RoundOrder) -> RoundReply:
        """One round: each release is charged before its noise is drawn, then it leaves."""
        plan = order.plan
        self._review(plan)
        self._reserve(plan)
        records = self._records(plan)
        module = self._module(plan, order.weights)
        tables: dict[str, np.ndarray] = {
            part: self._table(order, part, records, module) for part in order.evaluate
        }
        delta = self._train(order, records, module) if order.train else None
        releases = [plan.table_release(part) for part in order.evaluate]
        releases += [plan.train_release()] if order.train else []
        self.log.info("round %s of run %s: released %s", order.round, plan.run_id, [r.kind for r in releases])
        return RoundReply(self.facts.name, delta, tables, tuple(releases))

    def close(self) -> None:
        """Close the ledger and the log."""
        self.ledger.close()
        for handler in list(self.log.handlers):
            self.log.removeHandler(handler)
            handler.close()

    def check_data(self, tune_fraction: float, test_fraction: float) -> None:
        """`DataError` with every problem of this agency's table, for the person at this machine."""
        self._dataset(tune_fraction, test_fraction)

    def _reserve(self, plan: TrainPlan) -> None:
        if plan.sha256 not in self._reserved:
            split = self._split_id(plan)
            self.ledger.reserve(
                plan.sha256, [replace(release, split_id=split) for release in plan.releases()]
            )
            self._reserved.add(plan.sha256)

    def _charge(self, order: RoundOrder, release: Release) -> None:
        """On the agency's disk before its noise is drawn."""
        named = replace(release, split_id=self._split_id(order.plan))
        self.ledger.charge(order.plan.sha256, f"{order.order_id}/{release.part}", named)

    def _split_id(self, plan: TrainPlan) -> str:
        """Names how people are dealt into parts: another secret, fraction or split column is another split."""
        text = f"{plan.tune_fraction}|{plan.test_fraction}|{self.contract.split or ''}"
        return hashlib.blake2b(text.encode(), key=_split_key(self.folder), digest_size=8).hexdigest()

    def _review(self, plan: TrainPlan) -> None:
        self.policy.review(plan)
        if plan.contract_sha256 != self.contract.sha256:
            raise Refused(Reason.CONTRACT, "the plan's contract is not the one that this agency agreed to")
        agreed = plan.participant(self.facts.name)
        if (agreed.kind, agreed.public_size) != (self.facts.kind, self.facts.public_size):
            raise Refused(Reason.CONTRACT, "the plan's kind or public_size is not what node.toml declares")

    def _records(self, plan: TrainPlan) -> "Resident":
        return self._dataset(plan.tune_fraction, plan.test_fraction)

    def _dataset(self, tune_fraction: float, test_fraction: float) -> "Resident":
        key = (tune_fraction, test_fraction)
        if key not in self._resident:
            self._resident = {key: self._load(*key)}
        return self._resident[key]

    def _load(self, tune_fraction: float, test_fraction: float) -> "Resident":
        fractions: dict[str, float] = {
            "train": 1 - tune_fraction - test_fraction,
            "tune": tune_fraction,
            "test": test_fraction,
        }
        dataset = load(
            self.contract,
            self.folder / self.facts.table,
            self.facts.kind,
            fractions=fractions,
            key=_split_key(self.folder),
            min_people=self.policy.min_people,
        )
        return Resident(dataset)

    def _module(self, plan: TrainPlan, weights: dict[str, np.ndarray]) -> torch.nn.Module:
        if plan.model not in self._modules:
            self._modules = {plan.model: risk.build(plan.model, len(layout(self.contract).names))}
        module = self._modules[plan.model]
        try:
            risk.load_weights(module, weights)
        except ValueError as error:
            raise Refused(Reason.MALFORMED, str(error)) from None
        return module

    def _table(
        self, order: RoundOrder, part: Part, records: "Resident", module: torch.nn.Module
    ) -> np.ndarray:
        x, y, _, group = records.part(part)
        release = order.plan.table_release(part)
        self._charge(order, release)
        return noised_table(
            module,
            x,
            y,
            group,
            edges=np.asarray(order.plan.edges),
            n_groups=len(self.contract.group_names),
            sigma=release.noise_multiplier,
            noise=self._noise(order, part),
        )

    def _train(
        self, order: RoundOrder, records: "Resident", module: torch.nn.Module
    ) -> dict[str, np.ndarray]:
        from clients import train  # here, because Opacus takes seconds and a refusal needs none of it

        plan = order.plan
        x, y, present, _ = records.part("train")
        agreed = plan.participant(self.facts.name)
        self._charge(order, plan.train_release())
        return train.dp_fit(
            module,
            x,
            y,
            present,
            privacy=plan.privacy,
            local=plan.local,
            expected_batch=plan.privacy.sample_rate * agreed.public_size * plan.train_fraction,
            free=self._free(module),
            sampling=self._sampling(order),
            noise=self._noise(order, "train"),
        )

    def _free(self, module: torch.nn.Module) -> dict[str, torch.Tensor] | None:
        """0 where a first-layer weight belongs to a block that this agency does not hold."""
        if self._held.all():
            return None
        name = risk.input_weight(module)
        return {name: self._held.expand_as(module.get_parameter(name))}

    @functools.cached_property
    def _held(self) -> torch.Tensor:
        """0 or 1 for each feature: whether this agency holds its block."""
        blocks = layout(self.contract).block
        held = [block is None or self.contract.holds(self.facts.kind, block) for block in blocks]
        return torch.tensor(held, dtype=torch.float32)

    def _noise(self, order: RoundOrder, purpose: str) -> Callable[[int, float], torch.Tensor]:
        from clients import train

        if order.plan.seed is None:
            return train.os_noise()
        return train.simulated_noise(self._stream(order, f"{purpose} noise"))

    def _sampling(self, order: RoundOrder) -> np.random.Generator:
        from clients import train

        if order.plan.seed is None:
            return train.os_sampling()
        return train.simulated_sampling(self._stream(order, "sampling"))

    def _stream(self, order: RoundOrder, purpose: str) -> int:
        """Seed of one stream: of (seed, agency, round, purpose), so two agencies never share noise."""
        text = f"{order.plan.seed}|{self.facts.name}|{order.round}|{purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


class Resident:
    """The encoded parts as tensors that stay in memory between rounds."""

    def __init__(self, dataset: Dataset) -> None:
        self._parts = {
            name: (
                torch.from_numpy(part.x),
                None if part.y is None else torch.from_numpy(part.y),
                torch.from_numpy(part.present) if part.x.ndim == 3 else None,
                part.group,
            )
            for name, part in dataset.parts.items()
        }

    def part(self, name: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, np.ndarray]:
        """(x, y, present, group) of one part; `Refused(CONTRACT)` where this agency holds no label."""
        x, y, present, group = self._parts[name]
        if y is None:
            raise Refused(
                Reason.CONTRACT, "the contract says that this kind of agency does not hold the label"
            )
        return x, y, present, group


@functools.cache
def open_node(folder: Path) -> Node:
    """The node in `folder`, opened once per process. `NodeError` or `PolicyError` says what is wrong."""
    facts = _read_node_file(folder / "node.toml")
    policy = read_policy(folder / "policy.toml")
    try:
        contract = Contract.from_dict(yaml.safe_load((folder / facts.contract).read_text()))
    except (OSError, UnicodeDecodeError):
        raise NodeError(f"node.toml: the contract file {facts.contract} cannot be read") from None
    except (ContractError, yaml.YAMLError) as error:
        raise NodeError(f"the contract {facts.contract} is not usable: {error}") from None
    return Node(folder, facts, policy, contract)


def _read_node_file(path: Path) -> NodeFile:
    try:
        return NodeFile.model_validate(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError):
        raise NodeError(f"{path} cannot be read: is this a node's folder?") from None
    except tomllib.TOMLDecodeError as error:
        raise NodeError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise NodeError("\n".join(f"{path.name}: {line}" for line in sentences(error))) from None


@functools.cache
def _split_key(folder: Path) -> bytes:
    """The node's secret for the split, made at first use, readable by its owner alone.

    It appears whole: two processes that start at once, or one that is killed, leave no half of a key.
    """
    path = folder / "split.key"
    if not path.exists():
        whole = folder / f".split.key.{secrets.token_hex(8)}"
        whole.touch(mode=0o600)
        whole.write_bytes(secrets.token_bytes(KEY_BYTES))
        with contextlib.suppress(FileExistsError):  # another process was first: its key counts
            os.link(whole, path)
        whole.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise NodeError(
            f"{path} must hold {KEY_BYTES} bytes: put the node's own key back, or remove the file"
        )
    return key


def _file_log(folder: Path, name: str) -> logging.Logger:
    log = logging.getLogger(f"fedrisk.node.{folder}")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        handler = logging.FileHandler(folder / "node.log", delay=True)
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name} %(message)s"))
        log.addHandler(handler)
    return log


__all__ = ["DataError", "Node", "NodeError", "NodeFile", "open_node"]
