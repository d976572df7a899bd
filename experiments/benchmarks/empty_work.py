"""A stock Flower app of empty work, which `deployed` puts into a bundle: agencies send back what they were sent."""

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """The weights as they came."""
    metrics = MetricRecord({"num-examples": 1})
    arrays = message.content.array_records["arrays"]
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """A number."""
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.0})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's FedAvg and its own loop; writes the seconds of each round to the file that the run config names."""
    ends: list[float] = []

    def clock(round_: int, arrays: ArrayRecord) -> None:
        ends.append(time.perf_counter())

    config = context.run_config
    columns, agencies = int(config["columns"]), int(config["agencies"])
    weights = {"weight": np.zeros((1, columns), np.float32), "bias": np.zeros(1, np.float32)}
    FedAvg(fraction_evaluate=float(bool(config["evaluate"])), min_available_nodes=agencies).start(
        grid,
        initial_arrays=ArrayRecord({name: Array(value) for name, value in weights.items()}),
        num_rounds=int(config["rounds"]),
        train_config=ConfigRecord(),
        evaluate_fn=clock,
    )
    beside = Path(f"{config['out']}.writing")
    beside.write_text(json.dumps([end - start for start, end in pairwise(ends)]))
    beside.rename(str(config["out"]))
