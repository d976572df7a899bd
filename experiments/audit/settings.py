"""What is audited together: a mechanism, its rounds and its claim; and everything that is tried on it."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from experiments.audit import attacks, checks
from experiments.audit.attacks import Finding
from experiments.audit.bounds import epsilon_of_noise
from experiments.audit.canaries import LOUD, QUIET, Canaries, bystanders, plant, watch
from experiments.audit.mechanisms import Local, Mechanism, Shared, local_plan, shared_plan
from experiments.audit.tables import TableSetting, as_it_is, audit_table, behind_masks
from federation.privacy import epsilon
from models.spec import ModelSpec

MODELS = {"logistic": ModelSpec("logistic"), "mlp": ModelSpec("mlp", (16,))}
MechanismName = Literal["local", "shared"]
ADJACENCY = "add or remove one person at one agency"
FULL_WATCHED, SAMPLED_WATCHED = (
    40,
    400,
)  # rounds, where a run has fewer: with sampling a canary is in few of them
FEATURES, BYSTANDERS = 20, 100  # of the made-up people among whom canaries are planted


@dataclass(frozen=True)
class Setting:
    """`rounds` rounds of `mechanism` are claimed to cost ε `claim`.

    quiet: canaries that clipping does not touch, or None. alone: one canary and nobody else. watched: how many rounds are
    seen, of which the first `rounds` are one run.
    """

    name: str
    mechanism: Mechanism
    loud: Canaries
    quiet: Canaries | None
    alone: Canaries
    rounds: int
    claim: float
    watched: int

    @property
    def delta(self) -> float:
        return self.mechanism.plan.delta


def claimed(mechanism: Mechanism, rounds: int) -> float:
    """What a ledger with one event for each round comes to, to the coordinator: federation.privacy, RDP."""
    return epsilon([mechanism.plan.gradient_release(1)] * rounds, mechanism.plan.delta)


def setting(
    mechanism: MechanismName,
    model: str,
    sample_rate: float,
    rounds: int,
    *,
    target: float = 4.0,
    delta: float = 1e-5,
    canaries: int = 2000,
    watched: int = 0,
    seed: int = 0,
) -> Setting:
    """The project's own mechanism at the noise that costs ε `target`: two agencies of local noise, or 8 that share.

    Of the 8, h = 6 carry the whole noise. canaries: m of each kind. watched: see `Setting`; 0 is 40 at full batch, else 400.
    """
    agencies = range(2) if mechanism == "local" else range(8)
    people = bystanders(BYSTANDERS, FEATURES, agencies, seed)
    spec = MODELS[model]
    loud = plant(people, spec, canaries, LOUD, seed)
    quiet = plant(people, spec, canaries, QUIET, seed) if model == "logistic" else None
    audited: Mechanism
    if mechanism == "local":
        audited = Local(local_plan(target, delta, sample_rate, rounds), agencies=2)
    else:
        parameters = sum(p.numel() for p in loud.module.parameters())
        audited = Shared(shared_plan(target, delta, sample_rate, rounds, parameters))
    batches = "full batch" if sample_rate == 1 else f"q = {sample_rate:g}"
    name = f"{mechanism}, {model}, {batches}, {rounds} round{'s' if rounds > 1 else ''}"
    nobody = people.only(np.zeros(len(people.y), bool))
    watched = max(rounds, watched or (FULL_WATCHED if sample_rate == 1 else SAMPLED_WATCHED))
    claim = claimed(audited, rounds)
    return Setting(name, audited, loud, quiet, plant(nobody, spec, 1), rounds, claim, watched)


def examine(what: Setting, confidence: float, seed: int, alone_runs: int = 400) -> list[Finding]:
    """Every attack and check on one setting. Each holds at `confidence` by itself; checks at 99.9% at least."""
    sure = max(confidence, 0.999)
    found = [
        checks.sensitivity(what.mechanism, what.loud, sure, seed),
        checks.sampler(what.mechanism, what.loud, max(40, min(what.rounds, 200)), sure, seed),
        checks.noise(what.mechanism, what.loud, sure, seed),
        attacks.alone(what.mechanism, what.alone, what.delta, confidence, alone_runs, seed),
        *_by_canaries(what, what.loud, "input canaries", confidence, seed),
    ]
    if what.quiet is not None:
        found += _by_canaries(what, what.quiet, "gradient canaries", confidence, seed + 1)
    return found


def _by_canaries(what: Setting, canaries: Canaries, kind: str, confidence: float, seed: int) -> list[Finding]:
    """The pair of Gaussians, on one vector and on the difference of two, and both one-run bounds."""
    seen = watch(what.mechanism, canaries, what.watched, seed)
    plan = what.mechanism.plan
    at = (seen.included, plan, what.rounds, what.claim, confidence)
    found = [attacks.gaussian_pair(seen.own, *at)]
    if seen.apart is not None:
        found.append(attacks.gaussian_pair(seen.apart, *at, method="Gaussian pair, two agencies' difference"))
    found += attacks.guesses(seen.own[: what.rounds], seen.included, plan, what.claim, confidence)
    return [_named(each, kind) for each in found]


def _named(found: Finding, kind: str) -> Finding:
    return replace(found, method=f"{found.method} ({kind})", sentence=f"{kind}, {found.sentence}")


def described(what: Setting, found: list[Finding]) -> dict[str, Any]:
    """A setting and its findings, JSON-ready. `epsilon_tight` is what the claimed noise costs by tight accounting."""
    plan = what.mechanism.plan
    facts = (what.claim, plan.delta, plan.noise_multiplier, plan.sample_rate, what.rounds)
    return _described(what.name, facts, what.loud.count, found)


def examine_table(
    mechanism: MechanismName, target: float, delta: float, confidence: float, seed: int, runs: int = 2000
) -> dict[str, Any]:
    """One score table at the noise that costs ε `target`, as `described`."""
    shared = mechanism == "shared"
    plan = (
        shared_plan(target, delta, 1.0, 1, parameters=1, cells=80)
        if shared
        else local_plan(target, delta, 1.0, 1)
    )
    claim = epsilon([plan.table_release("test")], delta)
    audited = behind_masks(plan.shared) if plan.shared else as_it_is
    found = audit_table(TableSetting(plan.test_sigma, claim, delta, audited), confidence, runs, seed)
    return _described(f"{mechanism}, score table", (claim, delta, plan.test_sigma, 1.0, 1), 1, found)


def _described(
    name: str, facts: tuple[float, float, float, float, int], canaries: int, found: list[Finding]
) -> dict[str, Any]:
    keys = ("epsilon", "delta", "noise_multiplier", "sample_rate", "rounds")
    _, delta, noise, rate, rounds = facts
    fixed = {
        "epsilon_tight": epsilon_of_noise(noise, rate, int(rounds), delta),
        "accountant": "rdp",
        "adjacency": ADJACENCY,
        "viewer": "coordinator",
    }
    return {
        "name": name,
        "claim": dict(zip(keys, facts, strict=True)) | fixed,
        "canaries": canaries,
        "findings": [each.to_dict() for each in found],
        "ok": all(each.ok for each in found),
    }
