"""Agencies that lie: what each strategy survives, what is rejected, bounded and named, and what masks do not defend.

Whole runs of the real round loop over real nodes and ledgers in this process (`experiments.benchmarks.attacks`).
The figures on real data are in docs/poisoned.md.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIVE, write_agencies
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scipy import stats  # type: ignore[import-untyped]

from clients.train import dp_fit, simulated_noise, simulated_sampling
from experiments.benchmarks import attacks, poison
from experiments.benchmarks.attacks import ATTACKS, PoisonedGrid
from experiments.benchmarks.poison import BEHIND_MASKS, Line, Outcome, poisoned_run
from experiments.compare import Bench, open_bench
from experiments.config import Study, compose, read
from experiments.engines import make_node_folders
from federation.experiment import ROBUST, Experiment, SettingsError, Strategy
from federation.panel.report import view
from federation.plan import TrainPlan
from federation.protocol import RoundOrder, RoundReply, Weights
from federation.server import bounds, checkpoint, strategies
from federation.server.archive.writer import _Batch
from federation.server.exchange import NOT_A_REPLY, _problem, held_masks
from federation.server.result import RunFacts
from federation.server.rounds import RunError, run_federation
from federation.server.strategies import Update
from models import risk

FACTS = RunFacts("run-1", "local", simulation=True)
SURVIVED, BROKEN = 0.05, 0.3  # AUC lost to the attack: at most, at least
RUBBISH = ("wrong shape", "NaN", "infinite")
LIES = ("huge norm", "sign flip x 10")
QUIET = ("a little is enough", "labels flipped")


def study_of(folder: Path, kinds: dict[str, str], *overrides: str, people: int = 240) -> Study:
    write_agencies(folder, kinds, people)
    common = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
    common += [f"output={folder}", "rounds=5", "evaluation.checkpoints=0", "local.learning_rate=3"]
    common += ["strategy.server_momentum=0.5", "data.min_people=20", "round_timeout=0.2", "join_timeout=0.2"]
    common += ["engine.poll_seconds=0.01"]
    return read(compose([*common, *overrides]))


def bench_of(folder: Path, names: str) -> Iterator[Bench]:
    """Agencies that all hold every column: what a strategy is worth, without blocks."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    study = study_of(folder, dict.fromkeys(names, "health"))
    with open_bench(study.experiment, study.data, study.agencies, folder) as bench:
        yield bench


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from bench_of(tmp_path_factory.mktemp("five"), "abcde")


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from bench_of(tmp_path_factory.mktemp("seven"), "abcdefg")


known: dict[tuple[int, str, str], Outcome] = {}


def liars(bench: Bench, count: int) -> list[str]:
    return sorted(node.name for node in bench.nodes)[:count]


def outcome(bench: Bench, strategy: str, attack: str) -> Outcome:
    """A run with one attacker among five or two among seven; each is run once."""
    malicious = (len(bench.nodes) - 3) // 2
    key = (malicious, strategy, attack)
    if key not in known:
        experiment = poison.strategies_of(bench.experiment, malicious)[strategy]
        assert isinstance(experiment, Experiment), experiment
        attackers = liars(bench, malicious)
        known[key] = poisoned_run(bench, experiment, attack, attackers, f"run-{len(known)}")
    return known[key]


def lost(bench: Bench, strategy: str, attack: str) -> float:
    """AUC on honest people that `attack` costs `strategy`."""
    clean, poisoned = (outcome(bench, strategy, a).auc for a in ("none", attack))
    assert clean is not None
    assert poisoned is not None
    return clean - poisoned


# --- what survives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "attack"), list(itertools.product(ROBUST, (*LIES, *QUIET))))
def test_a_robust_strategy_survives_one_of_five(five: Bench, strategy: str, attack: str) -> None:
    assert lost(five, strategy, attack) < SURVIVED
    assert outcome(five, strategy, attack).bounded_honest == 0


@pytest.mark.parametrize(("strategy", "attack"), list(itertools.product(ROBUST, (LIES[1], QUIET[0]))))
def test_a_robust_strategy_survives_two_of_seven(seven: Bench, strategy: str, attack: str) -> None:
    """But for Krum, which takes one change alone: two that say the same are nearest to each other, so it takes theirs."""
    most = 0.2 if (strategy, attack) == ("krum", "a little is enough") else SURVIVED
    assert lost(seven, strategy, attack) < most


@pytest.mark.parametrize(("strategy", "attack"), list(itertools.product(poison.PLAIN, LIES)))
def test_an_average_does_not_survive_a_long_lie_with_a_bound_or_without(
    five: Bench, strategy: str, attack: str
) -> None:
    """The control: these attacks are real, and the plan's bound alone is no defence."""
    assert lost(five, strategy, attack) > BROKEN


@pytest.mark.parametrize("attack", QUIET)
def test_an_average_of_five_survives_one_that_stays_among_the_others(five: Bench, attack: str) -> None:
    assert lost(five, "averaged, bound from the plan", attack) < SURVIVED


@pytest.mark.parametrize("strategy", ROBUST)
def test_without_an_attack_a_robust_strategy_costs_little(five: Bench, strategy: str) -> None:
    average, robust = (outcome(five, s, "none").auc for s in ("averaged, bound from the plan", strategy))
    assert average is not None
    assert average > 0.8
    assert robust is not None
    assert robust > average - SURVIVED


@pytest.mark.parametrize("attack", RUBBISH)
@pytest.mark.parametrize("strategy", ["averaged, no bound", "krum"])
def test_rubbish_is_rejected_in_every_round_and_costs_the_liar_its_say(
    five: Bench, strategy: str, attack: str
) -> None:
    """Krum needs five honest-looking replies against one liar, but one that is caught is no longer among them."""
    assert lost(five, strategy, attack) < SURVIVED
    assert outcome(five, strategy, attack).rejected == five.experiment.settings.rounds


def test_behind_masks_nothing_is_defended_and_nobody_is_named(five: Bench) -> None:
    assert lost(five, BEHIND_MASKS, "sign flip x 10") > BROKEN
    found = outcome(five, BEHIND_MASKS, "sign flip x 10")
    assert (found.rejected, found.bounded) == (0, 0)


def test_more_liars_than_malicious_says_break_a_strategy(five: Bench) -> None:
    experiment = poison.strategies_of(five.experiment, 1)["fedmedian"]
    assert isinstance(experiment, Experiment)
    three = liars(five, 3)
    broken = poisoned_run(five, experiment, "sign flip x 10", three, "three")
    clean = outcome(five, "fedmedian", "none")
    assert clean.auc is not None
    assert broken.auc is not None
    assert clean.auc - broken.auc > BROKEN


def test_the_tables_of_the_page_are_made_from_runs(tmp_path: Path) -> None:
    write_agencies(tmp_path, FIVE, 120)
    line = Line(
        ("experiment=own", f"data.agencies={tmp_path}/agencies.yaml", "rounds=1", "data.min_people=20"),
        ("clinic", "east"),
    )
    found = poison.measure_line(line, [0], tmp_path, ["none", "NaN"])
    assert set(found["refused"]) == {
        n for n in (*found["refused"], *ROBUST) if n.startswith(("krum", "multi"))
    }
    assert all("needs at least 2 x 2 + 3 = 7 agencies" in why for why in found["refused"].values())
    assert found["rows"]["fedmedian"]["NaN"]["rejected"] == [2]
    text = poison.table("small", found)
    assert f"| fedmedian | {found['rows']['fedmedian']['none']['auc']['mean']:.3f} |" in text
    assert "| krum | refused |" in text


# --- rejected, bounded, named ---------------------------------------------------------------------------


def federate(study: Study, folder: Path, attack: str, *liars: str) -> dict[str, Any]:
    nodes = make_node_folders(
        study.agencies, study.experiment.contract, folder / "nodes", seed=0, min_people=20
    )
    return run_federation(
        PoisonedGrid(nodes, liars, ATTACKS[attack]), study.experiment, FACTS, folder / "run"
    )


def weights_after(folder: Path) -> Weights:
    found = checkpoint.read_last(folder / "run" / "checkpoints")
    assert found is not None
    return found.weights


def test_a_long_change_is_cut_to_the_bound_named_and_tracked(tmp_path: Path) -> None:
    study = study_of(tmp_path, FIVE, "rounds=1", "strategy=fedavg")
    experiment = study.experiment
    plan = experiment.plan("run-1", simulation=True)
    result = federate(study, tmp_path / "huge", "huge norm", "clinic")
    (record,) = result["rounds"]
    assert list(record["bounded"]) == ["clinic"]
    assert record["bounded"]["clinic"] > 1000
    assert "clinic" in record["replied"]
    assert [result["agencies"][n]["bounded"] for n in sorted(FIVE)] == [1, 0, 0, 0, 0]
    told = view(result)["events"]["incidents"]
    assert ("clinic", "its change was longer than its norm bound, and was scaled down to it", "1") in told
    batch = _Batch()
    batch.round(record, 0)
    assert {m.key: m.value for m in batch.by_run[""]}["rounds/bounded"] == 1

    clean = federate(study, tmp_path / "clean", "none")
    assert clean["rounds"][0]["bounded"] == {}
    start = {name: np.zeros_like(value) for name, value in weights_after(tmp_path / "clean").items()}
    bound = bounds.plan_bound(plan, "clinic", start, {})
    shares = held_masks(experiment)[
        "police"
    ]  # it is one of five, and in a block that the police do not hold of two
    apart = [
        (value - weights_after(tmp_path / "clean")[name]) * np.where(shares.get(name, 1) == 1, 5, 2)
        for name, value in weights_after(tmp_path / "huge").items()
    ]
    length = math.sqrt(sum(float(np.square(value).sum()) for value in apart))
    assert bound < length < 1.3 * bound, "the bound the wrong way, and what it would have said"


def test_without_privacy_there_is_no_bound_but_nothing_beyond_the_largest_weight(tmp_path: Path) -> None:
    study = study_of(tmp_path, FIVE, "rounds=2", "privacy=none")
    result = federate(study, tmp_path / "a", "huge norm", "clinic")
    assert result["robustness"]["norm_bound"] == "none"
    grid = {name: np.full(1, 2e6, np.float32) for name in ("w",)}
    assert "beyond ±1e+06" in str(bounds.cannot_be(grid, {"w": np.zeros(1, np.float32)}, {}))
    number = study_of(tmp_path, FIVE, "rounds=1", "privacy=none", "strategy.norm_bound=0.5")
    bounded = federate(number, tmp_path / "b", "huge norm", "clinic")
    assert "clinic" in bounded["rounds"][0]["bounded"]
    assert bounded["robustness"]["norm_bound"] == 0.5


def test_a_block_that_an_agency_does_not_hold_is_not_its_to_move(tmp_path: Path) -> None:
    """`visits` is the clinic's and the ward's."""
    study = study_of(tmp_path, FIVE, "rounds=1")

    def everywhere(changes: attacks.Changes, attacker: str) -> Weights:
        return {name: np.full_like(value, 0.01) for name, value in changes[attacker].items()}

    nodes = make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "n", seed=0, min_people=20
    )
    for liar, rejected in (("north", True), ("ward", False)):
        grid = PoisonedGrid(nodes, [liar], everywhere)
        result = run_federation(grid, study.experiment, RunFacts(liar, "local", True), tmp_path / liar)
        assert (liar in result["rounds"][0]["rejected"]) is rejected
    (sentence,) = run_federation(
        PoisonedGrid(nodes, ["east"], everywhere),
        study.experiment,
        RunFacts("e", "local", True),
        tmp_path / "e",
    )["rounds"][0]["rejected"].values()
    assert "a block that this agency does not hold" in sentence


def test_a_table_with_more_people_than_can_be_is_rejected_and_the_final_record_names_it(
    tmp_path: Path,
) -> None:
    study = study_of(tmp_path, FIVE, "rounds=1")

    class Crowded(PoisonedGrid):
        def _sent(self, identifier: str) -> Any:
            reply = super()._sent(identifier)
            if reply is not None and reply.agency == "east":
                for table in reply.tables.values():
                    table[0, 0, 0] = 1e6
                self._replies[identifier] = repacked(self._replies[identifier], reply)
            return reply

    def repacked(message: Message, reply: Any) -> Message:
        from federation import wire

        order = Message(RecordDict(), dst_node_id=1, message_type="train.round")
        message.content = wire.pack_reply(reply, order).content
        return message

    nodes = make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "n", seed=0, min_people=20
    )
    result = run_federation(Crowded(nodes), study.experiment, FACTS, tmp_path / "run")
    assert result["rounds"][0]["rejected"] == {}, "there is no table in this round"
    assert result["final"]["rejected"] == {
        "east": "test counts more people in a cell than 2 x its declared size"
    }
    assert "east" not in result["final"]["metrics"]["agencies"]


def test_too_few_honest_looking_replies_void_a_round_of_a_robust_strategy(tmp_path: Path) -> None:
    """Five agencies against one liar are the least for Krum: when one is lost, the promise is."""
    study = study_of(tmp_path, FIVE, "strategy=krum", "void_rounds=0")
    nodes = make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "n", seed=0, min_people=20
    )

    class Loses(PoisonedGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            found = super().pull_messages(message_ids)
            return [m for m in found if m.metadata.src_node_id != 2 or m.metadata.group_id != "2"]

    with pytest.raises(RunError, match="round 2 than the 5 that strategy krum against malicious=1 needs"):
        run_federation(Loses(nodes), study.experiment, FACTS, tmp_path / "run")
    with pytest.raises(
        RunError, match="at the start than the 5 that strategy krum against malicious=1 needs"
    ):
        run_federation(PoisonedGrid(nodes[:4]), study.experiment, FACTS, tmp_path / "start")


def test_a_rejected_reply_never_shows_a_value(five: Bench) -> None:
    order = RoundOrder(
        five.experiment.plan("r", simulation=True), 1, {"w": np.zeros(3, np.float32)}, True, ()
    )
    secret = np.array([0.7331, np.nan, 0.7331], np.float32)
    replies = [
        RoundReply("a", delta, {}, order.releases)
        for delta in ({"w": secret}, {"w": secret[:2]}, {"v": secret}, {"w": secret.astype(float)})
    ]
    found = [str(_problem(reply, "a", order, 2)) for reply in replies]
    assert len(set(found)) == 3
    assert not any("7331" in sentence for sentence in found)
    assert _problem(replies[0], "b", order, 2) == NOT_A_REPLY


# --- the norm bound -------------------------------------------------------------------------------------

PLANS: list[dict[str, Any]] = [
    {"noise_multiplier": 0.5},
    {"noise_multiplier": 0.5, "sample_rate": 0.1, "steps": 20},
    {"noise_multiplier": 0.01, "steps": 5, "weight_decay": 0.1, "proximal_mu": 0.2},
    {"noise_multiplier": 20, "steps": 3, "learning_rate": 0.1},
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Five agencies, the health block at two."""
    return study_of(tmp_path_factory.mktemp("plans"), FIVE).experiment


def plan_with(experiment: Experiment, **changes: Any) -> TrainPlan:
    """A plan of one round with other privacy or local settings."""
    settings = experiment.settings
    names = ("noise_multiplier", "sample_rate")
    privacy: dict[str, Any] = {k: changes.pop(k) for k in names if k in changes}
    privacy |= {
        "epsilon": None,
        "evaluate_epsilon": 3,
        "noise_multiplier": privacy.get("noise_multiplier", 1),
    }
    strategy = settings.strategy.but(proximal_mu=changes.pop("proximal_mu", 0))
    settings = settings.but(
        privacy=settings.privacy.but(**privacy), local=settings.local.but(**changes), strategy=strategy
    )
    return experiment.but(settings=settings).plan("r", simulation=True)


def most_people(plan: TrainPlan) -> int:
    return round(2 * plan.participant("clinic").public_size * plan.train_fraction)


@pytest.mark.parametrize("changes", PLANS, ids=range(len(PLANS)))
@pytest.mark.parametrize("started", [False, True], ids=["from zero", "from afar"])
def test_the_most_that_honest_training_can_do_is_below_the_bound_and_near_it(
    experiment: Experiment, changes: dict[str, Any], started: bool
) -> None:
    """Twice the declared people, all alike and all wrong about: every gradient is as long as the clip, and one way."""
    plan = plan_with(experiment, **changes)
    module = risk.build(plan.model, 3, 0)
    weights = {name: np.full_like(v, -1.0 if started else 0.0) for name, v in risk.weights_of(module).items()}
    people = most_people(plan)
    lengths = []
    for seed in range(5):
        risk.load_weights(module, weights)
        change = dp_fit(
            module,
            np.full((people, 3), 40.0, np.float32),
            np.ones(people, np.float32),
            None,
            privacy=plan.privacy,
            local=plan.local,
            expected_batch=plan.expected_batch("clinic"),
            sampling=simulated_sampling(seed),
            noise=simulated_noise(seed),
        )
        lengths.append(math.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in change.values())))
    bound = bounds.plan_bound(plan, "clinic", weights, {})
    assert max(lengths) <= bound
    if changes == PLANS[0]:
        assert max(lengths) > 0.9 * bound, "a bound that nobody can reach says little"


@pytest.mark.parametrize("parameters", [1, 2, 10, 100, 25_000])
def test_the_tail_of_the_noise_is_rarer_than_was_promised(parameters: int) -> None:
    """Oracle: scipy's chi-squared. Without people or decay the bound is the noise's length alone."""
    x = math.log(2 / bounds.CHANCE)
    squared = parameters + 2 * math.sqrt(parameters * x) + 2 * x
    assert stats.chi2.sf(squared, parameters) <= bounds.CHANCE / 2
    assert stats.chi2.sf(squared / 2, parameters) > bounds.CHANCE / 2, "and not much longer than it must be"


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 100])
def test_more_people_than_the_bound_counts_are_hardly_ever_drawn(
    experiment: Experiment, rate: float, steps: int
) -> None:
    """Oracle: scipy's binomial, over all steps of a round."""
    plan = plan_with(experiment, sample_rate=rate, steps=steps)
    people, most = most_people(plan), bounds._most_drawn(plan, "clinic")
    assert steps * stats.binom.sf(math.floor(most + 1e-9), people, rate) <= bounds.CHANCE / 2
    assert most <= people * (1 + 1e-9)


def test_the_bound_is_of_what_an_agency_holds(experiment: Experiment) -> None:
    plan = plan_with(experiment, weight_decay=0.5)
    weights = {"w": np.full((1, 1000), 3.0, np.float32)}
    half = {"w": (np.arange(1000) < 500).astype(float)}
    assert bounds.plan_bound(plan, "clinic", weights, half) < bounds.plan_bound(plan, "clinic", weights, {})


def test_scaling_down_keeps_the_direction_and_leaves_short_changes_alone() -> None:
    delta = {"a": np.array([3.0, 0], np.float32), "b": np.array([[4.0]], np.float32)}
    same, times = bounds.bounded(delta, 5.0)
    assert (same is delta, times) == (True, 1.0)
    cut, times = bounds.bounded(delta, 0.5)
    assert times == pytest.approx(10)
    np.testing.assert_allclose(cut["a"], [0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(cut["b"], [[0.4]], rtol=1e-6)
    huge, _ = bounds.bounded({"a": np.full(3, 3e38, np.float32)}, 1.0)
    assert float(np.sqrt(np.square(huge["a"]).sum())) == pytest.approx(1)


def test_a_clip_that_is_infinite_bounds_nothing(tmp_path: Path) -> None:
    plan: TrainPlan = study_of(tmp_path, FIVE, "privacy=none").experiment.plan("r", simulation=True)
    assert bounds.plan_bound(plan, "clinic", {"w": np.zeros(3, np.float32)}, {}) == math.inf


# --- Flower's robust strategies around held blocks ---------------------------------------------------------

ALL = [Strategy.model_validate({"name": name, "server_momentum": 0.9}) for name in ROBUST]
COMBINE = [settings.but(thin_blocks="combine") for settings in ALL]


def updates(
    deltas: list[list[float]],
    held: list[list[float]] | None = None,
    weights: tuple[float, ...] = (1, 2, 3, 4, 5),
) -> list[Update]:
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    holds = [{} if held is None else {"w": np.array(held[i])} for i in range(len(deltas))]
    return [
        Update(message, {"w": np.array([delta], np.float32)}, weights[i % len(weights)], holds[i])
        for i, delta in enumerate(deltas)
    ]


def change_of(settings: Strategy, given: list[Update], caught: int = 0) -> list[float]:
    size = given[0].delta["w"].shape
    start = {"w": np.full(size, 7.0, np.float32)}
    got = strategies.combine(strategies.build(settings), 1, start, given, caught)
    return [float(value) for value in (got["w"] - 7).ravel()]


ROWS = [[1.0, 10], [2.0, 20], [3.0, 30], [4.0, 40], [500.0, -900]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedmedian", [3, 20]),
        ("fedtrimmedavg", [(2 + 3 + 4) / 3, (10 + 20 + 30) / 3]),
        ("krum", [2, 20]),
        ("multikrum", [(1 * 1 + 2 * 2 + 3 * 3 + 4 * 4) / 10, (10 + 40 + 90 + 160) / 10]),
    ],
)
def test_one_change_out_of_five_by_hand(name: Any, expected: list[float]) -> None:
    """Public weights (1 to 5) count in MultiKrum alone. Krum: the nearest n - f - 2 = 2 of each decide."""
    assert change_of(Strategy(name=name), updates(ROWS)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg"])
def test_a_block_is_combined_over_its_holders_alone(name: Any) -> None:
    """Three of five hold coordinate 1: the zeros of the two others must not count."""
    held = [[1.0, 0], [1.0, 0], [1.0, 1], [1.0, 1], [1.0, 1]]
    deltas = [[1.0, 0], [1.0, 0], [1.0, 5], [1.0, 6], [1.0, 700]]
    assert change_of(Strategy(name=name), updates(deltas, held)) == pytest.approx([1, 6])


@pytest.mark.parametrize("name", ROBUST)
def test_columns_that_too_few_hold_are_left_alone_or_combined_as_was_said(name: Any) -> None:
    held = [[1.0, 0], [1.0, 0], [1.0, 0], [1.0, 0], [1.0, 1]]
    deltas = [[1.0, 0], [1.0, 0], [1.0, 0], [1.0, 0], [1.0, 700]]
    settings = Strategy(name=name)
    assert change_of(settings, updates(deltas, held)) == pytest.approx([1, 0])
    assert change_of(settings.but(thin_blocks="combine"), updates(deltas, held)) == pytest.approx([1, 700])


@pytest.mark.parametrize("name", ["fedtrimmedavg", "multikrum"])
def test_one_that_was_caught_is_not_looked_for_again(name: Any) -> None:
    """Of four that are left, none need be cut: all are averaged."""
    rest = updates(ROWS[:4], weights=(1, 1, 1, 1))
    assert change_of(Strategy(name=name), rest, caught=1) == pytest.approx([2.5, 25])
    assert change_of(Strategy(name=name), rest, caught=0) == pytest.approx(
        [2.5, 25] if name == "fedtrimmedavg" else [2, 20]
    )


@pytest.mark.parametrize(
    ("agencies", "malicious"),
    [(n, m) for n in (3, 4, 5, 7, 10, 49, 100) for m in (1, 2, 3, 24) if n >= 2 * m + 1],
)
def test_a_trimmed_mean_cuts_as_many_as_may_lie(agencies: int, malicious: int) -> None:
    deltas = [[float(i)] for i in range(agencies - malicious)] + [[1e6]] * malicious
    kept = [min(i, 10**6) for i in range(malicious, agencies - malicious)]
    settings = Strategy(name="fedtrimmedavg", malicious=malicious)
    assert change_of(settings, updates(deltas)) == pytest.approx([np.mean(kept)], rel=1e-5)


@pytest.mark.parametrize("settings", [*ALL, *COMBINE], ids=lambda s: f"{s.name}-{s.thin_blocks}")
def test_the_order_of_agencies_is_irrelevant(settings: Strategy) -> None:
    """Where the strategy holds: of three, Krum's nearest two are as near to each other, and the first name wins."""
    if settings.thin_blocks == "combine" and settings.name == "krum":
        settings = settings.but(thin_blocks="leave")
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(5, 4)).tolist()
    held = [[1.0, 1, 1, 1]] * 3 + [[1.0, 1, 1, 0]] * 2
    forward, backward = updates(deltas, held), updates(deltas, held)[::-1]
    assert change_of(settings, forward) == pytest.approx(change_of(settings, backward), abs=1e-5)


@pytest.mark.parametrize("settings", ALL, ids=lambda settings: settings.name)
def test_a_saved_optimiser_goes_on_to_the_same_weights(settings: Strategy) -> None:
    rng = np.random.default_rng(1)
    rounds = [updates(rng.normal(size=(5, 4)).tolist()) for _ in range(4)]

    def run(combiner: strategies.Combiner, weights: Weights, some: list[list[Update]]) -> Weights:
        for each in some:
            weights = strategies.combine(combiner, 1, weights, each)
        return weights

    start = {"w": np.zeros((1, 4), np.float32)}
    whole = run(strategies.build(settings), start, rounds)
    first, second = strategies.build(settings), strategies.build(settings)
    middle = run(first, start, rounds[:2])
    strategies.restore(second, ["w"], strategies.state(first, ["w"]))
    np.testing.assert_array_equal(run(second, middle, rounds[2:])["w"], whole["w"])


def test_a_run_that_leaves_thin_blocks_learns_nothing_from_them_and_says_so(tmp_path: Path) -> None:
    study = study_of(tmp_path, FIVE, "rounds=2", "strategy=fedmedian")
    result = federate(study, tmp_path / "leave", "none")
    assert result["robustness"] == {
        "malicious": 1,
        "least_agencies": 3,
        "thin_blocks": ["care"],
        "thin_blocks_are": "leave",
        "norm_bound": "plan",
        "masked": False,
    }
    said = dict(view(result)["identity"])["Against agencies that send wrong changes"]
    assert "at most 1" in said
    assert "nothing was learned from the columns of care" in said
    combine = study_of(tmp_path, FIVE, "rounds=2", "strategy=fedmedian", "strategy.thin_blocks=combine")
    federate(combine, tmp_path / "combine", "none")
    (name,) = masks = held_masks(study.experiment)["police"]
    left, combined = (weights_after(tmp_path / how)[name] for how in ("leave", "combine"))
    np.testing.assert_array_equal(left.ravel() != 0, masks[name].ravel() == 1)
    assert (combined != 0).all()


# --- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["strategy=krum", "strategy.malicious=2"],
            "krum against malicious=2 needs at least 2 x 2 + 3 = 7 agenc",
        ),
        (
            ["strategy=fedmedian", "strategy.malicious=3"],
            "needs at least 2 x 3 + 1 = 7 agencies that train, got 5",
        ),
        (
            ["strategy=krum", "strategy.malicious=0"],
            "strategy.malicious should be greater than or equal to 1",
        ),
        (["strategy.norm_bound=-1"], "norm_bound must be plan, none or a finite number above 0, got -1"),
        (
            ["strategy.norm_bound=tight"],
            "norm_bound must be plan, none or a finite number above 0, got 'tight'",
        ),
        (["strategy.thin_blocks=freeze"], "strategy.thin_blocks should be 'leave' or 'combine'"),
        (["strategy=fedmedian", "privacy=shared"], "order statistics need each agency's own change"),
    ],
)
def test_settings_that_cannot_hold_are_one_sentence(
    tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        study_of(tmp_path, FIVE, *overrides)
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
