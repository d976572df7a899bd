"""The audit passes what is right and catches what was broken on purpose, both at 99.9%.

Every planted bug is planted here: by a broken source of noise or batches, or by monkeypatching the code that is audited.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as logistic_loss
from torch.nn.functional import linear

from clients import train
from clients.randomness import Stream, discrete_gaussian
from clients.train import simulated_noise, simulated_sampling
from experiments import cli
from experiments.agencies import DataError
from experiments.audit import attacks, command, people, settings
from experiments.audit.attacks import Finding
from experiments.audit.canaries import bystanders, plant, watch
from experiments.audit.checks import sampler_chances
from experiments.audit.command import AuditOptions, audit_command
from experiments.audit.mechanisms import Local, Shared, local_plan, stream_seed
from experiments.audit.membership import FEWEST, Split, auc_and_error, infer
from experiments.audit.membership import train as train_model
from experiments.audit.settings import MODELS, Setting, claimed, examine, examine_table, setting
from experiments.audit.tables import HeldOut, TableSetting, as_it_is, audit_table
from federation.privacy import Release, epsilon

SURE = 0.999
RATE, ROUNDS, WATCHED, CANARIES = 0.25, 20, 150, 600

PAIR = "Gaussian pair (input canaries)"
QUIET_PAIR = "Gaussian pair (gradient canaries)"
APART = "Gaussian pair, two agencies' difference (input canaries)"
ONE_RUN = "one run, any mechanism (input canaries)"
F_DP = "one run, Gaussian curve (input canaries)"


@functools.cache
def sound(mechanism: str, model: str = "logistic", rate: float = RATE, rounds: int = ROUNDS) -> Setting:
    """The project's own mechanism, as the audit takes it."""
    return setting(mechanism, model, rate, rounds, canaries=CANARIES, watched=WATCHED if rate < 1 else 20)  # type: ignore[arg-type]


def findings(what: Setting, seed: int = 0, alone_runs: int = 100) -> dict[str, Finding]:
    return {found.method: found for found in examine(what, SURE, seed, alone_runs)}


def failing(found: dict[str, Finding]) -> set[str]:
    return {name for name, each in found.items() if not each.ok}


# --- what is right passes -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "what",
    [
        ("local",),
        ("local", "logistic", 1.0, 1),
        ("local", "mlp"),
        ("shared",),
        ("shared", "logistic", 1.0, 1),
    ],
    ids=str,
)
def test_no_false_alarm(what: tuple[Any, ...], seed: int) -> None:
    found = findings(sound(*what), seed)
    assert failing(found) == set()
    assert found[PAIR].epsilon is not None
    assert found[PAIR].epsilon > 0.6 * sound(*what).claim


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("mechanism", ["local", "shared"])
def test_no_false_alarm_about_tables(mechanism: Any, seed: int) -> None:
    found = examine_table(mechanism, 4.0, 1e-5, SURE, seed, runs=500)
    assert found["ok"]
    assert found["findings"][1]["epsilon"] > 0.5 * found["claim"]["epsilon"]


@pytest.mark.parametrize("what", ["noise", "sampling"])
def test_no_false_alarm_about_simulated_randomness(what: str) -> None:
    """The generators of simulations do as well as those of deployed nodes."""
    sources: dict[str, Any] = {"noise": simulated_noise, "sampling": simulated_sampling}
    assert failing(findings(local(**{what: sources[what]}))) == set()


@pytest.mark.parametrize("mechanism", ["local", "shared"])
def test_at_full_batch_the_pair_shows_most_of_the_claim(mechanism: str) -> None:
    """70% of ε = 4 at 95%: what a user reads. (Exact accounting of the same noise would say 3.70.)"""
    what = sound(mechanism, "logistic", 1.0, 1)
    seen = watch(what.mechanism, what.loud, what.watched, 0)
    found = attacks.gaussian_pair(seen.own, seen.included, what.mechanism.plan, 1, what.claim, 0.95)
    assert found.epsilon is not None
    assert 0.7 * 4.0 <= found.epsilon <= what.claim


# --- broken noise -------------------------------------------------------------------------------------


def scaled(factor: float) -> Callable[[int], train.Noise]:
    """Sources whose noise is `factor` times what was asked for."""

    def source(seed: int) -> train.Noise:
        draw = simulated_noise(seed)
        return lambda n, std: draw(n, std * factor)

    return source


def local(**changes: Any) -> Setting:
    what = sound("local")
    assert isinstance(what.mechanism, Local)
    return replace(what, mechanism=replace(what.mechanism, **changes))


def test_no_noise() -> None:
    found = failing(findings(local(noise=scaled(0.0))))
    assert {PAIR, QUIET_PAIR, "noise"} <= found
    what = sound("local", "logistic", 1.0, 1)
    assert isinstance(what.mechanism, Local)
    assert F_DP in failing(findings(replace(what, mechanism=replace(what.mechanism, noise=scaled(0.0)))))


def test_half_the_noise_is_missed_by_one_run_and_found_by_the_pair() -> None:
    found = failing(findings(local(noise=scaled(0.5))))
    assert {PAIR, QUIET_PAIR, "noise"} <= found
    assert ONE_RUN not in found


@pytest.mark.long
def test_a_share_without_its_peers() -> None:
    """One share of h is all the noise there is, and is accounted as the h together."""
    what = sound("shared")
    assert isinstance(what.mechanism, Shared)
    honest = 6

    def lone(seed: int, n: int, variance: int) -> np.ndarray:
        return discrete_gaussian(Stream.seeded(str(seed)), n, variance // honest)

    found = failing(findings(replace(what, mechanism=replace(what.mechanism, share=lone))))
    assert {PAIR, QUIET_PAIR, "noise"} <= found


def test_one_seed_in_two_agencies() -> None:
    """Each sum alone is noised as it should be; their difference is not noised at all."""
    found = failing(findings(local(stream=lambda seed, agency, purpose: stream_seed(seed, 0, purpose))))
    assert {APART, "noise"} <= found
    assert PAIR not in found


def test_one_seed_in_two_rounds() -> None:
    found = failing(findings(local(noise=lambda seed: simulated_noise(7))))
    assert "noise" in found


# --- broken clipping ----------------------------------------------------------------------------------


def test_clipping_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_clip_factors", lambda squared, norm: torch.ones_like(squared))
    found = failing(findings(sound("local")))
    assert {PAIR, F_DP, "sensitivity"} <= found
    assert QUIET_PAIR not in found  # whose gradients need no clipping: the noise is in order


@pytest.mark.long
@pytest.mark.parametrize("mechanism", ["local", "shared"])
def test_clipping_at_four_times_the_norm(mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = train._clip_factors
    monkeypatch.setattr(train, "_clip_factors", lambda squared, norm: factors(squared, 4 * norm))
    found = failing(findings(sound(mechanism)))
    assert {PAIR, "sensitivity"} <= found
    assert QUIET_PAIR not in found


def test_loss_of_shape_b_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ghost clipping with a loss (B, 1): times factors (B,) it is (B, B), and everyone has the sum of all factors."""

    def ghost(module: torch.nn.Module, weights: torch.Tensor, max_grad_norm: float) -> train.ClippedSum:
        weight, bias = train._unflatten(module, weights).values()

        def clipped_sum(x: torch.Tensor, y: torch.Tensor, *_: object) -> torch.Tensor:
            with torch.inference_mode(False):
                x, y = x.clone(), y.clone().unsqueeze(-1)
                w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
                logit = linear(x, w, b)
                losses = logistic_loss(logit, y, reduction="none")
                norms = (torch.sigmoid(logit.detach()) - y).abs().squeeze(-1) * (x.square().sum(1) + 1).sqrt()
                (losses * (max_grad_norm / norms).clamp(max=1.0)).sum().backward()
                return torch.cat([w.grad.flatten(), b.grad]).double()

        return clipped_sum

    monkeypatch.setattr(train, "_summer", ghost)
    found = failing(findings(sound("local")))
    assert {PAIR, "sensitivity"} <= found


# --- broken sampling and accounting -------------------------------------------------------------------


def batches_of_one_size(seed: int) -> train.Sampling:
    generator = np.random.default_rng(seed)
    return lambda n, rate: generator.choice(n, round(n * rate), replace=False)


def dealt_epochs() -> Callable[[int], train.Sampling]:
    """Shuffled once an epoch and dealt out, for each number of people, whatever the seed of the round."""
    left: dict[int, list[np.ndarray]] = {}
    generator = np.random.default_rng(0)

    def draw(n: int, rate: float) -> np.ndarray:
        if rate == 1:
            return np.arange(n)
        if not left.get(n):
            left[n] = np.array_split(generator.permutation(n), round(1 / rate))
        return left[n].pop()

    return lambda seed: draw


@pytest.mark.parametrize("sampling", [batches_of_one_size, dealt_epochs()], ids=["one size", "epochs"])
def test_fixed_batches_accounted_as_poisson(sampling: Callable[[int], train.Sampling]) -> None:
    assert "sampling" in failing(findings(local(sampling=sampling)))


def test_twice_the_sample_rate() -> None:
    def double(seed: int) -> train.Sampling:
        draw = simulated_sampling(seed)
        return lambda n, rate: draw(n, min(1.0, 2 * rate))

    assert {"sampling", PAIR} <= failing(findings(local(sampling=double)))


def test_sampler_chances_are_uniform_enough() -> None:
    """Of 600 sound samplers, few fail at 1% each."""
    rng = np.random.default_rng(1)
    wrong = sum(
        min(sampler_chances(rng.random((40, 300)) < 0.1, 0.1).values()) < 0.01 / 3 for _ in range(600)
    )
    assert wrong <= 16  # Binomial(600, 0.01) is above 16 with chance 0.03%


def test_an_accountant_rebuilt_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """It remembers one round at a time, so that is what is claimed for all of them."""
    monkeypatch.setattr(
        settings, "epsilon", lambda events, delta: max(epsilon([event], delta) for event in events)
    )
    what = sound("local")
    claim = claimed(what.mechanism, what.rounds)
    assert claim < 0.6 * what.claim
    assert {PAIR, QUIET_PAIR} <= failing(findings(replace(what, claim=claim)))


@pytest.mark.long
def test_a_skipped_empty_batch() -> None:
    """Nobody was drawn, so nothing is noised and sent: zeros."""
    drawn = [0]

    def sampling(seed: int) -> train.Sampling:
        draw = simulated_sampling(seed)

        def watched(n: int, rate: float) -> np.ndarray:
            batch = draw(n, rate)
            drawn[0] = len(batch)
            return batch

        return watched

    def noise(seed: int) -> train.Noise:
        draw = simulated_noise(seed)
        return lambda n, std: draw(n, std) if drawn[0] else torch.zeros(n)

    assert failing(findings(local(sampling=sampling, noise=noise), alone_runs=1500)) == {"one person alone"}


# --- tables -------------------------------------------------------------------------------------------


def table(mechanism: Any = as_it_is, sigma: float = 1.2) -> TableSetting:
    claim = epsilon([Release("evaluate", "test", sigma, 1.0, 1)], 1e-5)
    return TableSetting(sigma, claim, 1e-5, mechanism)


def test_a_table_with_half_the_noise() -> None:
    def half(module: Any, who: HeldOut, sigma: float, seed: int) -> np.ndarray:
        return as_it_is(module, who, sigma / 2, seed)

    assert not audit_table(table(half), SURE, 500, 0)[1].ok


@pytest.mark.long
def test_a_person_counted_in_two_cells() -> None:
    def twice(module: Any, who: HeldOut, sigma: float, seed: int) -> np.ndarray:
        return as_it_is(module, who, sigma, seed) + np.roll(as_it_is(module, who, 0.0, seed), 1, axis=1)

    assert [each.ok for each in audit_table(table(twice), SURE, 1500, 0)] == [False, False]


# --- membership ---------------------------------------------------------------------------------------


def a_split(members: int = 60, others: int = 200) -> Split:
    both = bystanders(members + others, 40, seed=3)
    cell = np.arange(members + others) % 2
    groups = {"everyone": (0, 1), "even": (0,), "odd": (1,), "few": (2,)}
    return Split(
        (both.x[:members], both.y[:members], cell[:members]),
        (both.x[members:], both.y[members:], cell[members:]),
        groups,
    )


def test_membership_is_inferred_from_a_model_that_learned_its_members_by_heart() -> None:
    split = a_split()
    plan = local_plan(4.0, 1e-5, 1.0, 200).but(max_grad_norm=1.0)
    private = infer(train_model(split, MODELS["mlp"], plan, 200, 0), split, 4.0, 1e-5, SURE)
    bare = plan.but(
        mechanism="none", noise_multiplier=0.0, tune_sigma=0.0, test_sigma=0.0, max_grad_norm=100.0
    )
    exposed = infer(train_model(split, MODELS["mlp"], bare, 1500, 0), split, 0.2, 1e-5, SURE)
    assert [each.group for each in private] == ["everyone", "even", "odd"]
    assert all(each.ok for each in private)
    assert exposed[0].auc > 0.7 > private[0].auc
    assert not exposed[0].ok  # an AUC that ε = 0.2 rules out


def test_auc_and_its_error_are_those_of_others() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    mine, theirs = np.round(rng.normal(0.5, 1, 300), 1), np.round(rng.normal(0, 1, 200), 1)
    auc, error = auc_and_error(mine, theirs)
    assert auc == pytest.approx(roc_auc_score(np.repeat([1, 0], [300, 200]), np.concatenate([mine, theirs])))
    again = [
        auc_and_error(rng.choice(mine, 300), rng.choice(theirs, 200))[0] for _ in range(400)
    ]  # the bootstrap
    assert error == pytest.approx(np.std(again), rel=0.15)


def test_small_groups_are_left_out() -> None:
    split = a_split(members=2 * FEWEST - 2)
    plan = local_plan(4.0, 1e-5, 1.0, 5)
    found = infer(train_model(split, MODELS["logistic"], plan, 5, 0), split, 4.0, 1e-5, SURE)
    assert [each.group for each in found] == ["everyone"]


# --- whose records ------------------------------------------------------------------------------------


def test_a_copy_must_be_declared(folder: Path) -> None:
    with pytest.raises(DataError, match="say that it is a copy"):
        people.copied(folder / "agencies.yaml", is_copy=False)
    split = people.copied(folder / "agencies.yaml", is_copy=True)
    assert set(split.groups) == {"everyone", "sex=female", "sex=male"}
    assert len(split.members[1]) + len(split.others[1]) == 900


@pytest.mark.parametrize("name", people.OF_A_NODE)
@pytest.mark.parametrize("above", [False, True])
def test_a_nodes_folder_is_refused(folder: Path, name: str, above: bool) -> None:
    (folder.parent / name if above else folder / name).touch()
    try:
        with pytest.raises(DataError, match=r"belongs to a node .* audit the copy"):
            people.copied(folder / "agencies.yaml", is_copy=True)
    finally:
        (folder.parent / name).unlink(missing_ok=True)


def test_a_nodes_folder_itself_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "node.toml").touch()
    with pytest.raises(DataError, match="belongs to a node"):
        people.copied(tmp_path, is_copy=True)


def test_a_table_that_lies_in_a_nodes_folder_or_is_linked_is_refused(folder: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir()
    (node / "ledger.db").touch()
    (folder / "north.csv").rename(node / "north.csv")
    (folder / "north.csv").symlink_to(node / "north.csv")
    with pytest.raises(DataError, match="belongs to a node"):
        people.copied(folder / "agencies.yaml", is_copy=True)
    (folder / "north.csv").unlink()
    (folder / "north.csv").hardlink_to(node / "north.csv")
    with pytest.raises(DataError, match="hard link"):
        people.copied(folder / "agencies.yaml", is_copy=True)


@pytest.mark.long
def test_the_audit_makes_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clients.ledger

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an audit opened a ledger")

    monkeypatch.setattr(clients.ledger.Ledger, "__init__", refuse)
    found = command.report(
        AuditOptions(mechanism="local", canaries=200, sample_rate=1.0, out=tmp_path / "a.json")
    )
    assert found["ok"]


# --- the command --------------------------------------------------------------------------------------


def test_command(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "audit.json"
    options = AuditOptions(
        sample_rate=1.0, canaries=400, copy=folder / "agencies.yaml", is_copy=True, out=out, mechanism="local"
    )
    assert audit_command(options) == 0
    found = json.loads(out.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert found["verdict"] == "no bound exceeds its claim"
    assert found["verdict"] in capsys.readouterr().out
    assert [each["name"] for each in found["settings"]] == [
        "local, logistic, full batch, 1 round",
        "local, score table",
    ]
    claim = found["settings"][0]["claim"]
    assert claim["epsilon"] == pytest.approx(4.0, abs=1e-3)
    assert (claim["delta"], claim["accountant"], claim["sample_rate"]) == (1e-5, "rdp", 1.0)
    for each in found["settings"]:
        for finding in each["findings"]:
            assert finding["kind"] == "check" or finding["epsilon"] <= finding["claim"]
    assert {each["group"] for each in found["membership"]} == {"everyone", "sex=female", "sex=male"}
    assert str(folder) not in out.read_text()


@pytest.mark.long
def test_command_says_what_exceeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "_clip_factors", lambda squared, norm: torch.ones_like(squared))
    out = tmp_path / "audit.json"
    options = AuditOptions(sample_rate=1.0, canaries=400, out=out, mechanism="local", quiet=True)
    assert audit_command(options) == 1
    found = json.loads(out.read_text())
    assert not found["ok"]
    assert any("EXCEEDS the claim 4.00" in sentence for sentence in found["exceeded"])
    assert any("FAILS" in sentence for sentence in found["exceeded"])
    assert "EXCEEDS" in capsys.readouterr().out


def test_wrong_options_are_sentences(tmp_path: Path) -> None:
    options = AuditOptions(epsilon=0, canaries=3, sample_rate=2.0, out=tmp_path / "audit.json")
    with pytest.raises(DataError) as refused:
        audit_command(options)
    assert len(refused.value.problems) == 3
    assert "--sample-rate must be in (0, 1], got 2.0" in refused.value.problems
    assert not options.out.exists()


def test_help_says_what_it_takes() -> None:
    assert "takes no node's folder" in " ".join((cli.audit.__doc__ or "").split())
    assert "this_is_a_copy" in cli.audit.__annotations__


# --- canaries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_a_canary_is_all_that_its_statistic_sees(model: str) -> None:
    """Without noise, at full batch: 1 for each that is in, 0 for each that is not, whoever else there is."""
    canaries = plant(bystanders(30, 5), MODELS[model], 50)
    seen = watch(Local(local_plan(4.0, 1e-5, 1.0, 1)).silent(), canaries, 2, 0)
    assert np.abs(seen.own - seen.included).max() < 1e-3
    assert (canaries.rho > 0.7).all()
