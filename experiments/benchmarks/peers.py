"""The same rounds as others do them, each in a process of its own that prints seconds by round.

`flower`: Flower's Ray engine running a plain Flower client with Opacus, the way Flower's own Opacus example is
written: for each message a new PrivacyEngine, `make_private` with default hooks and its DataLoader, and ε of that
message alone. (Such an ε starts from zero in each round, so it is not what the people lose.) `pfl`: see pfl_peer.py.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn.functional import binary_cross_entropy_with_logits as logistic_loss
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmarks.work import CLIP, DELTA, LEARNING_RATE, NOISE, Work, plain_module, resident
from experiments.engines import FLOWER_ENV

NOT_INSTALLED = "not installed"
QUIET_RAY: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "include_dashboard": False}


def flower_rounds(work: Work, rounds: int, *, epsilon: bool) -> list[float] | str:
    """Seconds of each of `rounds` rounds under Ray, the first of which starts the workers."""
    if importlib.util.find_spec("ray") is None:
        return NOT_INSTALLED
    call = json.dumps({"work": asdict(work), "rounds": rounds, "epsilon": epsilon})
    main = "import sys; from experiments.benchmarks import peers; peers.main(sys.argv[1])"
    return _seconds([sys.executable, "-c", main, call])


def pfl_rounds(work: Work, rounds: int, python: str | None) -> list[float] | str:
    """Seconds of each of `rounds` rounds in pfl, by the Python at `python`, which must have pfl and torch."""
    if python is None:
        return NOT_INSTALLED
    script = Path(__file__).with_name("pfl_peer.py")
    return _seconds([python, str(script), json.dumps(asdict(work) | {"rounds": rounds})])


def _seconds(command: list[str]) -> list[float] | str:
    """What `command` prints on its last line; why it failed otherwise."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **FLOWER_ENV}
    )
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    seconds: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds


# --- a plain Flower client with Opacus ------------------------------------------------------------------


def plain_client(work: Work, *, epsilon: bool) -> ClientApp:
    """One local epoch of DP-SGD for each message."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        people = people_of(work, int(context.node_config["partition-id"]))
        return private_epoch(work, people, message, epsilon=epsilon)

    return app


@functools.cache
def people_of(work: Work, agency: int) -> TensorDataset:
    """One agency's people, made once in each worker."""
    return TensorDataset(*resident(work, agency))


def private_epoch(work: Work, people: TensorDataset, message: Message, *, epsilon: bool) -> Message:
    """Opacus as its tutorials and Flower's example use it."""
    from opacus import PrivacyEngine

    warnings.simplefilter("ignore", UserWarning)  # Opacus about its own defaults
    torch.set_num_threads(1)
    module = plain_module(work)
    module.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=LEARNING_RATE),
        data_loader=DataLoader(people, batch_size=work.batch, shuffle=True),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
    )
    private.train()
    for x, y in loader:
        optimizer.zero_grad()
        torch.autograd.backward(logistic_loss(private(x).squeeze(-1), y))
        optimizer.step()
    metrics: dict[str, Any] = {"num-examples": len(people)}
    if epsilon:
        metrics["epsilon"] = engine.get_epsilon(DELTA)
    arrays = ArrayRecord(module.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)


class Complete(FedAvg):
    """FedAvg that stops where Flower would go on without the clients that failed."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        found = list(replies)
        for reply in found:
            if reply.has_error():
                raise RuntimeError(f"a client failed: {reply.error.reason}")
        return super().aggregate_train(server_round, found)


def plain_server(work: Work, rounds: int, seconds: list[float]) -> ServerApp:
    """Flower's FedAvg and its own loop, training only; appends each round's seconds to `seconds`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        ends: list[float] = []

        def clock(round_: int, arrays: ArrayRecord) -> None:
            ends.append(time.perf_counter())

        Complete(fraction_evaluate=0.0, min_available_nodes=work.agencies).start(
            grid,
            initial_arrays=ArrayRecord(plain_module(work).state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord(),
            evaluate_fn=clock,
        )
        seconds.extend(end - start for start, end in pairwise(ends))

    return app


def main(arguments: str) -> None:
    """Run the rounds here, and print their seconds."""
    from flwr.simulation import run_simulation

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    call = json.loads(arguments)
    work = Work(**call["work"] | {"hidden": tuple(call["work"]["hidden"])})
    seconds: list[float] = []
    run_simulation(
        server_app=plain_server(work, call["rounds"], seconds),
        client_app=plain_client(work, epsilon=call["epsilon"]),
        num_supernodes=work.agencies,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": QUIET_RAY},
    )
    print(json.dumps(seconds), flush=True)
