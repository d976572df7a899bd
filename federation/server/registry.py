"""A panel's approval in MLflow's model registry: a version of the model, and the alias `champion` on it.

Whoever calls this has checked the approval (`federation.panel.binding.missing`). The alias decides nothing: nodes
verify the panel's signatures themselves and never ask MLflow.

A version holds the model as a PyTorch 2 export (`data/model.pt2`: logits for rows of encoded features; no pickle), and its
MLflow run says by which decision and holds what was decided on under the artifact path `panel/DECISION`: the files of `model/`
(the approval, where it was delivered, among them), report, cards and gates.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from federation.scorecard import WEIGHTS
from federation.server.archive.address import SETTINGS, TrackerError, check_address
from federation.server.archive.writer import NOBODY, log_file, told_files
from models import risk
from models.spec import ModelSpec

CHAMPION = "champion"


class RegistryError(RuntimeError):
    """A registry that cannot be used: one sentence with what to do."""


@dataclass(frozen=True)
class Promoted:
    """Which version the alias is on now, and which it was on before."""

    name: str
    version: str
    alias: str
    before: str | None
    run: str


def promote(
    uri: str,
    name: str,
    model: Path,
    spec: ModelSpec,
    features: int,
    run_id: str,
    experiment: str,
    tags: Mapping[str, str],
) -> Promoted:
    """Register the model in the folder `model` as the next version of `name` at `uri`, and move the alias to it.

    features: how many encoded features a row has. run_id: the federation's; its MLflow run is used where there is one.
    """
    client = _client(uri)
    from mlflow.exceptions import MlflowException

    module = _module(model / WEIGHTS, spec, features, tags["fedrisk.weights_sha256"])
    try:
        with _told(uri):
            before = _champion(client, name)
            run, logged = _log(client, uri, module, features, run_id, experiment, model, tags)
            with contextlib.suppress(
                MlflowException
            ):  # it is there already; if it is not, the next line says so
                client.create_registered_model(name)
            version = client.create_model_version(
                name, logged.model_uri, run_id=run, tags=dict(tags), model_id=logged.model_id
            )
            client.set_registered_model_alias(name, CHAMPION, version.version)
    except MlflowException as error:
        first = str(error).partition("\n")[0][:200]
        raise RegistryError(
            f"MLflow did not register the model ({first}): the alias stays where it was"
        ) from None
    return Promoted(name, str(version.version), CHAMPION, before, run)


def mirror(uri: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Put `tags` on the federation's MLflow run, and on the versions of its model by the same decision; that run.

    `RegistryError` where MLflow knows no such run, or lets nobody write there.
    """
    client = _client(uri)
    from mlflow.exceptions import MlflowException

    found = _find_run(client, run_id)
    if found is None:
        raise RegistryError(f"MLflow has no run {run_id}: put it there with fedrisk track")
    try:
        for name, value in tags.items():
            client.set_tag(found, name, value)
        for version in client.search_model_versions(f"run_id = '{found}'"):
            if version.tags.get("panel.decision_sha256") == tags["panel.decision_sha256"]:
                for name, value in tags.items():
                    client.set_model_version_tag(version.name, version.version, name, value)
    except MlflowException as error:
        first = str(error).partition("\n")[0][:200]
        raise RegistryError(f"MLflow did not take the decision's tags ({first})") from None
    return found


def champion(uri: str, name: str) -> str | None:
    """The version of `name` that the alias is on, if any."""
    return _champion(_client(uri), name)


def _champion(client: Any, name: str) -> str | None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        return str(client.get_model_version_by_alias(name, CHAMPION).version)
    return None


def _client(uri: str) -> Any:
    """MLflow at `uri`; imported here, because it takes seconds."""
    if importlib.util.find_spec("mlflow") is None:
        raise RegistryError("a promotion needs MLflow: install fedrisk[server]")
    try:
        check_address(uri, "--uri")
    except TrackerError as error:
        raise RegistryError(str(error).replace(", or use tracking=none", "")) from None
    os.environ.update(SETTINGS | os.environ)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        first = str(error).partition("\n")[0][:200]
        raise RegistryError(
            f"--uri: MLflow cannot be reached there ({first}): start it, or correct the address"
        ) from None
    return client


def _module(path: Path, spec: ModelSpec, features: int, weights_sha256: str) -> Any:
    """The model with the weights that were decided on: the bytes that are hashed are those that are read."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != weights_sha256:
        raise RegistryError(f"{path} is not what was approved any more: it was changed just now")
    try:
        module = risk.build(spec, features)
        risk.load_weights(module, load(content))
    except (SafetensorError, ValueError) as error:
        raise RegistryError(f"{path} does not hold the weights of the card's model ({error})") from None
    return module.eval()


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """MLflow's log_model asks a global for the address; it is put back. What MLflow warns of is not ours to mend."""
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before[0])
            mlflow.set_registry_uri(before[1])


def _log(
    client: Any,
    uri: str,
    module: Any,
    features: int,
    run_id: str,
    experiment: str,
    model: Path,
    tags: Mapping[str, str],
) -> tuple[str, Any]:
    """The MLflow run that holds the files, and the model that was logged to it."""
    import mlflow
    import mlflow.pytorch
    from mlflow.models import infer_signature

    folder = model.parent
    rows = np.zeros((2, features), np.float32)  # two: an export of one row would be for one row alone
    found = _find_run(client, run_id)
    where = (
        {"run_id": found}
        if found
        else {"experiment_id": _experiment(client, uri, experiment), "run_name": run_id}
    )
    with mlflow.start_run(**where, tags=None if found else {"fedrisk.run_id": run_id, **NOBODY}) as run:
        logged = mlflow.pytorch.log_model(
            module,
            name="model",
            serialization_format="pt2",
            input_example=rows,
            signature=infer_signature(rows, np.zeros(2, np.float32)),
            pip_requirements=["torch"],
            tags={**tags, **NOBODY},
        )
        place = f"panel/{tags['panel.decision_sha256'][:12]}"
        client.log_artifacts(run.info.run_id, str(model), artifact_path=place)
        for path in (
            folder / "gates.json",
            *told_files(json.loads((folder / "result.json").read_text()), folder),
        ):
            log_file(client, run.info.run_id, path, place)
        for name, value in tags.items():
            client.set_tag(run.info.run_id, name, value)
        return str(run.info.run_id), logged


def _find_run(client: Any, run_id: str) -> str | None:
    """The federation's MLflow run, as `federation.server.archive.writer` tagged it; not those of its agencies."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    tagged = f"tags.`fedrisk.run_id` = '{run_id}'"
    for run in client.search_runs(experiments, tagged) if experiments else ():
        if "mlflow.parentRunId" not in run.data.tags:
            return str(run.info.run_id)
    return None


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = None
    if uri.startswith("sqlite:"):
        place = (Path(urlsplit(uri).path[1:]).resolve().parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=place))
