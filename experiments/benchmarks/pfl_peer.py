"""The same rounds in Apple's pfl (arXiv:2404.06430), run by a Python that has it; fedrisk does not need it.

    python pfl_peer.py '{"agencies": 10, "people": 2000, "features": 60, "batch": 64, "hidden": [], "rounds": 50}'

pfl's privacy is of a user, which is here a whole agency: its update is clipped and noised, a person's gradient
is not. One local epoch of plain SGD on resident tensors in a fixed order. Prints seconds by round as JSON.
"""

import json
import logging
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism


class Risk(torch.nn.Module):
    """Logistic regression or an MLP with the two methods that pfl asks for."""

    def __init__(self, features: int, hidden: list[int]) -> None:
        super().__init__()
        widths = [features, *hidden]
        layers: list[torch.nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 1))

    def loss(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = False) -> torch.Tensor:
        logits = self.layers(x).squeeze(-1)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Seconds from one round's end to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.since = time.perf_counter()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        now = time.perf_counter()
        self.seconds.append(now - self.since)
        self.since = now
        return super().after_central_iteration(aggregate_metrics, model, central_iteration=central_iteration)


def main(work: dict[str, Any]) -> list[float]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(0)
    shape = (work["people"], work["features"])
    users = {}
    for agency in range(work["agencies"]):
        x = torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))
        users[agency] = PyTorchTensorDataset((x, (x.sum(1) > 0).float()))
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    module = Risk(work["features"], work["hidden"])
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    privacy = CentrallyAppliedPrivacyMechanism(GaussianMechanism(1.0, 1.0))
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work["rounds"],
            evaluation_frequency=work["rounds"] + 1,
            train_cohort_size=work["agencies"],
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, postprocessors=[privacy]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=work["batch"]),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    return clock.seconds


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
