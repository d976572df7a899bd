"""The round loop against agencies that are slow, refuse, or send rubbish; Flower's strategies around held blocks."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from experiments.engines import LocalGrid
from federation import protocol, wire
from federation.experiment import Experiment, Strategy
from federation.protocol import Ready, Reason, Refusal, RoundOrder, RoundReply, Weights
from federation.server import checkpoint, strategies
from federation.server.checkpoint import Checkpoint, CheckpointError
from federation.server.result import RunFacts
from federation.server.rounds import RunError, run_federation
from federation.server.strategies import Update

FACTS = RunFacts("run-1", "local", simulation=True)
Answer = Callable[[RoundOrder, str], RoundReply | Refusal | None]


def honest(order: RoundOrder, name: str, delta: float = 0.1) -> RoundReply:
    tables = {part: np.ones((2, len(order.plan.edges) - 1, 2)) * 20 for part in order.evaluate}
    moved = {"bias": delta}  # which every agency holds
    change = {k: np.full_like(w, moved.get(k.rpartition(".")[2], 0)) for k, w in order.weights.items()}
    return RoundReply(name, change if order.train else None, tables, order.releases)


def scripted(answers: Mapping[str, Answer], grid: type[LocalGrid] = LocalGrid) -> LocalGrid:
    """A grid whose agencies answer as written; None stands for an agency that never answers."""
    app = ClientApp()

    @app.query("ready")
    def ready(message: Message, context: Context) -> Message:
        return wire.pack_reply(Ready(str(context.node_config["name"])), message)

    @app.train("round")
    def one_round(message: Message, context: Context) -> Message:
        name = str(context.node_config["name"])
        reply = answers[name](wire.read_round_order(message), name)
        return (
            wire.pack_reply(reply, message) if reply is not None else Message(RecordDict(), reply_to=message)
        )

    return grid(app, [{"name": name} for name in answers])


class Losing(LocalGrid):
    """Loses the round replies of its second agency: it trained and charged, and nobody hears of it."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        return [m for m in found if m.metadata.message_type == protocol.READY or m.metadata.src_node_id != 2]


@pytest.fixture
def experiment(make_study: MakeStudy) -> Experiment:
    return make_study("round_timeout=0.2", "join_timeout=0.2", "void_rounds=1").experiment


AGENCIES = ("clinic", "north", "south")


def nan(order: RoundOrder, name: str) -> RoundReply:
    return honest(order, name, np.nan)


def infinite(order: RoundOrder, name: str) -> RoundReply:
    return honest(order, name, np.inf)


def wrong_shape(order: RoundOrder, name: str) -> RoundReply:
    reply = honest(order, name)
    return RoundReply(name, reply.delta and {k: v[..., :0] for k, v in reply.delta.items()}, reply.tables, ())


def wrong_type(order: RoundOrder, name: str) -> RoundReply:
    reply = honest(order, name)
    return RoundReply(
        name, reply.delta and {k: v.astype(float) for k, v in reply.delta.items()}, reply.tables, ()
    )


def other_parameters(order: RoundOrder, name: str) -> RoundReply:
    return RoundReply(
        name, {"x": np.zeros(1, np.float32)} if order.train else None, honest(order, name).tables, ()
    )


def another_name(order: RoundOrder, name: str) -> RoundReply:
    return honest(order, "north")


def nothing(order: RoundOrder, name: str) -> None:
    return None


def refuses(order: RoundOrder, name: str) -> Refusal:
    return Refusal(name, Reason.UNAVAILABLE)


@pytest.mark.parametrize(
    "answer",
    [nan, infinite, wrong_shape, wrong_type, other_parameters, another_name, nothing],
    ids=lambda answer: answer.__name__,
)
def test_rubbish_is_rejected_named_and_changes_nothing(
    experiment: Experiment, tmp_path: Path, answer: Answer
) -> None:
    with_rubbish = {"clinic": honest, "north": honest, "south": answer}
    result = run_federation(scripted(with_rubbish), experiment, FACTS, tmp_path / "with")
    assert all(list(record["rejected"]) == ["south"] for record in result["rounds"])
    assert result["agencies"]["south"]["rounds"] == 0
    run_federation(scripted({"clinic": honest, "north": honest}), experiment, FACTS, tmp_path / "without")
    for name, value in last(tmp_path / "with").items():
        np.testing.assert_array_equal(value, last(tmp_path / "without")[name])


def last(folder: Path) -> Weights:
    found = checkpoint.read_last(folder / "checkpoints")
    assert found is not None
    return found.weights


def test_an_agency_that_refuses_leaves_the_run_and_is_named(experiment: Experiment, tmp_path: Path) -> None:
    result = run_federation(
        scripted({"clinic": honest, "north": refuses, "south": honest}), experiment, FACTS, tmp_path
    )
    assert result["rounds"][0]["refused"] == {"north": "UNAVAILABLE"}
    assert result["rounds"][1]["replied"] == ["clinic", "south"]
    assert result["agencies"]["north"]["status"] == "unavailable"
    assert result["agencies"]["north"]["epsilon"]["train"] > 0, "it may have charged before it failed"


def test_a_late_agency_is_named_asked_again_and_its_charge_counted(
    experiment: Experiment, tmp_path: Path
) -> None:
    grid = scripted(dict.fromkeys(AGENCIES, honest), Losing)
    result = run_federation(grid, experiment, FACTS, tmp_path)
    assert all(record["late"] == ["north"] for record in result["rounds"])
    charged = result["agencies"]["north"]["releases"]
    assert sum(release["times"] for release in charged if release["kind"] == "train") == 4


def test_too_few_agencies_is_one_sentence_that_names_them(make_study: MakeStudy, tmp_path: Path) -> None:
    experiment = make_study("min_agencies=3", "join_timeout=0.1", "round_timeout=0.2").experiment
    with pytest.raises(RunError, match=r"at the start than min_agencies=3 .*south \(late: did not answer\)"):
        run_federation(scripted({"clinic": honest, "north": honest}), experiment, FACTS, tmp_path)


def test_void_rounds_leave_the_weights_and_end_the_run(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study("min_agencies=3", "void_rounds=1", "round_timeout=0.2", "join_timeout=0.2")
    grid = scripted({"clinic": honest, "north": honest, "south": nan})
    with pytest.raises(RunError, match="round 2"):
        run_federation(grid, study.experiment, FACTS, tmp_path)
    assert all((value == 0).all() for value in last(tmp_path).values())


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_agencies_are_enough(make_study: MakeStudy, tmp_path: Path, count: int) -> None:
    experiment = make_study("join_timeout=0.1", "round_timeout=0.2").experiment
    result = run_federation(scripted(dict.fromkeys(AGENCIES[:count], honest)), experiment, FACTS, tmp_path)
    assert result["rounds"][-1]["replied"] == list(AGENCIES[:count])


# --- strategies -------------------------------------------------------------------------------------

ALL = [
    Strategy(name="fedavg"),
    Strategy(name="fedprox", proximal_mu=0.1),
    Strategy(name="fedavgm", server_learning_rate=0.7, server_momentum=0.9),
    Strategy(name="fedadam", server_learning_rate=0.1),
    Strategy(name="fedyogi", server_learning_rate=0.1),
]


def updates(
    deltas: list[np.ndarray], weights: list[float], held: list[dict[str, np.ndarray]]
) -> list[Update]:
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    return [
        Update(message, {"w": d.astype(np.float32)}, w, h)
        for d, w, h in zip(deltas, weights, held, strict=True)
    ]


@pytest.mark.parametrize("settings", ALL, ids=lambda settings: settings.name)
def test_the_order_of_agencies_is_irrelevant(settings: Strategy) -> None:
    rng = np.random.default_rng(0)
    deltas, weights = [rng.normal(size=(1, 4)) for _ in range(3)], [1.0, 2.0, 5.0]
    held = [{}, {"w": np.array([1.0, 1, 0, 0])}, {"w": np.array([1.0, 1, 1, 0])}]
    start = {"w": rng.normal(size=(1, 4)).astype(np.float32)}
    forward = strategies.combine(strategies.build(settings), 1, start, updates(deltas, weights, held))
    backward = strategies.combine(
        strategies.build(settings), 1, start, updates(deltas[::-1], weights[::-1], held[::-1])
    )
    np.testing.assert_allclose(forward["w"], backward["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", ALL, ids=lambda settings: settings.name)
def test_a_saved_optimiser_goes_on_to_the_same_weights(settings: Strategy) -> None:
    rng = np.random.default_rng(1)
    rounds = [[rng.normal(size=(1, 4)) for _ in range(2)] for _ in range(4)]

    def run(strategy: Any, weights: Weights, some: list[list[np.ndarray]]) -> Weights:
        for deltas in some:
            weights = strategies.combine(strategy, 1, weights, updates(deltas, [1.0, 3.0], [{}, {}]))
        return weights

    start = {"w": np.zeros((1, 4), np.float32)}
    whole = run(strategies.build(settings), start, rounds)
    first = strategies.build(settings)
    middle = run(first, start, rounds[:2])
    second = strategies.build(settings)
    strategies.restore(second, ["w"], strategies.state(first, ["w"]))
    np.testing.assert_array_equal(run(second, middle, rounds[2:])["w"], whole["w"])


def test_fedavg_is_the_publicly_weighted_mean_and_blocks_are_averaged_over_holders() -> None:
    """By hand: coordinate 0 is everybody's, 1 the first two's, 2 the third's alone, 3 nobody's."""
    held = [{"w": np.array([1.0, 1, 0, 0])}, {"w": np.array([1.0, 1, 0, 0])}, {"w": np.array([1.0, 0, 1, 0])}]
    deltas = [np.array([[3.0, 1, 0, 0]]), np.array([[6.0, 4, 0, 0]]), np.array([[9.0, 0, 5, 0]])]
    start = {"w": np.ones((1, 4), np.float32)}
    got = strategies.combine(strategies.build(ALL[0]), 1, start, updates(deltas, [1.0, 2.0, 3.0], held))
    np.testing.assert_allclose(got["w"], 1 + np.array([[(3 + 12 + 27) / 6, (1 + 8) / 3, 5, 0]]), rtol=1e-6)


# --- checkpoints ------------------------------------------------------------------------------------


def test_a_checkpoint_survives_and_only_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        saved = Checkpoint(
            number, "abc", {"w": np.float32([number])}, {"m/w": np.ones(1)}, {"t": np.ones(2)}, {"a": [1]}
        )
        path = checkpoint.write(saved, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "round-00004.safetensors",
        "round-00005.safetensors",
    ]
    found = checkpoint.read_last(tmp_path)
    assert found is not None
    assert (found.round, found.config_sha256, found.history) == (5, "abc", {"a": [1]})
    assert found.optimiser["m/w"] == 1
    assert set(load_file(path)) == {"weights/w", "optimiser/m/w", "tables/t"}


def test_a_half_written_checkpoint_is_never_found(tmp_path: Path) -> None:
    checkpoint.write(Checkpoint(1, "abc", {"w": np.zeros(3)}), tmp_path)
    (tmp_path / "round-00002.writing").write_bytes(b"half")
    found = checkpoint.read_last(tmp_path)
    assert found is not None
    assert found.round == 1
    (tmp_path / "round-00003.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"round-00003.*not a whole checkpoint"):
        checkpoint.read_last(tmp_path)


def test_a_long_history_survives_and_does_not_make_checkpoints_grow(tmp_path: Path) -> None:
    """Two and a half chapters, as `run_federation` writes them; a chapter is written once, when it ends."""
    whole: dict[str, list[dict[str, Any]]] = {"rounds": [], "checkpoints": []}
    written: dict[str, int] = {}
    sizes = {}
    for number in range(1, int(2.5 * checkpoint.CHAPTER) + 1):
        whole["rounds"].append({"round": number, "replied": list(AGENCIES)})
        whole["checkpoints"].append({"round": number - 1, "metrics": {"auc": 1 / number}})
        path = checkpoint.write(
            Checkpoint(number, "abc", {}, history={**whole, "orders": {"n": number}}), tmp_path
        )
        sizes[number] = path.stat().st_size
        found = checkpoint.read_last(tmp_path)
        assert found is not None
        assert found.history == {**whole, "orders": {"n": number}}
        for chapter in tmp_path.glob("history-*.json"):
            assert written.setdefault(chapter.name, chapter.stat().st_mtime_ns) == chapter.stat().st_mtime_ns
    assert sorted(written) == ["history-00001.json", "history-00002.json"]
    assert sizes[2 * checkpoint.CHAPTER + 5] <= sizes[5] + 100

    resumed = found.history | {"rounds": found.history["rounds"][: checkpoint.CHAPTER]}
    again = tmp_path / "again"
    checkpoint.write(Checkpoint(checkpoint.CHAPTER + 3, "abc", {}, history=resumed), again)
    assert [path.name for path in again.glob("history-*")] == ["history-00001.json"]
    (tmp_path / "history-00002.json").write_text("half")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        checkpoint.read_last(tmp_path)


def test_another_configuration_does_not_resume_a_run(make_study: MakeStudy, tmp_path: Path) -> None:
    checkpoint.write(Checkpoint(1, "another", {"w": np.zeros(3)}), tmp_path / "checkpoints")
    with pytest.raises(RunError, match="another configuration"):
        run_federation(scripted(dict.fromkeys(AGENCIES, honest)), make_study().experiment, FACTS, tmp_path)
