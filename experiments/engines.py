"""Where the apps run: in this process, under Flower's Ray simulation, or on a Flower SuperLink.

The same ServerApp and ClientApp run everywhere; an engine only says how they find each other. The local
engine is a Flower `Grid` that hands each message to the ClientApp in this process and thread.
"""

import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from experiments.agencies import Agency
from federation.experiment import Experiment, SettingsError
from federation.server.rounds import RunError

Found = TypeVar("Found")
FLOWER_ENV = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


class LocalGrid(Grid):
    """Runs the ClientApp for each message at `push_messages`; replies wait for `pull_messages`.

    `node_configs[i]` is the node config of node id i + 1.
    """

    def __init__(self, app: ClientApp, node_configs: Sequence[Mapping[str, Any]]) -> None:
        self._app = app
        self._contexts = {
            number: Context(
                run_id=1, node_id=number, node_config=dict(config), state=RecordDict(), run_config={}
            )
            for number, config in enumerate(node_configs, start=1)
        }
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(run_id=1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            self._replies[identifier] = self._app(message, self._contexts[message.metadata.dst_node_id])
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


def simulate(act: Callable[[Grid], Found], nodes: Sequence[Path], engine: str = "local") -> Found:
    """What `act` makes of a grid of the node folders `nodes`: in this process, or (`engine` ray) under Ray."""
    import torch

    torch.set_num_threads(1)
    return (_simulate_with_ray if engine == "ray" else _simulate_here)(act, nodes)


def _simulate_here(act: Callable[[Grid], Found], nodes: Sequence[Path]) -> Found:
    from clients.app import make_app, node_from_config

    return act(LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)} for folder in nodes]))


def _simulate_with_ray(act: Callable[[Grid], Found], nodes: Sequence[Path]) -> Found:
    """Flower's own simulation engine, one worker process for each core."""
    os.environ.update(
        FLOWER_ENV | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    )  # else Ray warns of CPU-only work
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError:
        raise SettingsError("engine=ray needs Ray: pip install 'fedrisk[ray]', or use engine=local") from None

    ended, found = threading.Event(), list[Found]()
    try:
        run_simulation(
            server_app=_stoppable(lambda grid: found.append(act(grid)), ended),
            client_app=_ray_client_app([str(folder) for folder in nodes]),
            num_supernodes=len(nodes),
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"logging_level": "error", "log_to_driver": False, "include_dashboard": False},
            },
        )
    finally:
        ended.set()
    if not found:
        raise RunError("Ray ended before the coordinator did: run.log says why")
    return found[0]


def _stoppable(act: Callable[[Grid], None], ended: threading.Event) -> ServerApp:
    """The ServerApp that does `act`, in a thread of Flower's: it must not wait on for an engine that has ended."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        pull = grid.pull_messages

        def pull_while_it_runs(message_ids: Iterable[str]) -> Iterable[Message]:
            if ended.is_set():
                raise RunError("Ray ended before the run did: run.log says why; the run can be resumed")
            return pull(message_ids)

        grid.pull_messages = pull_while_it_runs  # type: ignore[method-assign]
        act(grid)

    return app


def _ray_client_app(folders: Sequence[str]) -> ClientApp:
    from clients.app import make_app as make_client_app
    from clients.node import open_node

    return make_client_app(lambda context: open_node(Path(folders[int(context.node_config["partition-id"])])))


def submit(
    superlink: str,
    experiment: Experiment,
    run_id: str,
    *,
    stats: str = "",
    cohort: str = "",
    retest: str = "",
    map: str = "",
) -> str:
    """Hand the run to a SuperLink; returns Flower's number for the run.

    `superlink` is a running coordinator's folder, or a name in Flower's configuration. `stats` is a `StatsRequest` in
    base64, where a statistic is asked for and no training, `cohort` a `CohortRequest`, `retest` a `RetestRequest`, `map` a `MapRequest`. The bundle is `federation.installed`'s, without any code:
    the coordinator and the agencies run the fedrisk that they have installed. `SettingsError` when the SuperLink
    does not take the run.
    """
    config = {"experiment": experiment.encode(), "run-id": run_id}
    config |= {"stats": stats, "cohort": cohort, "retest": retest, "map": map}
    return str(_start_run(superlink, config))


def home_of(superlink: str) -> Path:
    """Where the relative paths of a submitted run begin: a coordinator's folder, or where the submitter stands."""
    return Path(superlink).absolute() if _is_folder(superlink) else Path.cwd()


def flwr_of(superlink: str) -> tuple[str, str]:
    """How Flower's own command is called to watch a run, and its name for the SuperLink."""
    from experiments.coordinator.folder import NAME

    return (
        (f"FLWR_HOME={home_of(superlink)}/flower flwr", NAME)
        if _is_folder(superlink)
        else ("flwr", superlink)
    )


def _is_folder(superlink: str) -> bool:
    return (Path(superlink) / "coordinator.toml").is_file()


def _start_run(superlink: str, config: Mapping[str, str]) -> int:
    """Flower's number for a new run with `config`."""
    from experiments.coordinator import control

    try:
        connection = control.find_connection(superlink)
    except control.ControlError as error:
        raise SettingsError(str(error)) from None
    try:
        return control.start_run(connection, config)
    except control.ControlError as error:
        raise SettingsError(
            f"the SuperLink {superlink!r} at {connection.address} did not take the run: {error}"
        ) from None


def make_node_folders(
    agencies: Sequence[Agency],
    contract: Mapping[str, Any],
    folder: Path,
    *,
    seed: int,
    min_people: int,
    stats_columns: Sequence[str] = (),
    map_columns: Sequence[str] = (),
) -> list[Path]:
    """One node folder for each agency of a simulation, as an agency's IT would lay it out.

    The policy says that it is a simulation, and permits statistics of `stats_columns`, counts of people by
    `map_columns`, and cohorts with every other agency; the split key derives from `seed`, so runs repeat. Signing keys are made here and pinned by all: a simulation has no other channel.
    """
    import tomli_w
    import yaml

    from clients.keys import public_text

    homes = {agency.name: folder / agency.name for agency in agencies}
    for home in homes.values():
        home.mkdir(parents=True, exist_ok=True)
    public = {name: public_text(home) for name, home in homes.items()}
    folders = []
    for agency in agencies:
        home = homes[agency.name]
        facts = {
            "name": agency.name,
            "table": str(agency.table.resolve()),
            "contract": "contract.yaml",
            "public_size": agency.public_size,
            "peers": {name: key for name, key in public.items() if name != agency.name},
        }
        facts |= {} if agency.kind is None else {"kind": agency.kind}
        policy = {
            "simulation": True,
            "purposes": [str(contract["purpose"])],
            "models": ["logistic", "mlp", "residual"],
            "stats_columns": list(stats_columns),
            "map_columns": list(map_columns),
            "cohort_peers": sorted(set(homes) - {agency.name}),
            "min_people": min_people,
        }
        (home / "contract.yaml").write_text(yaml.safe_dump(dict(contract), sort_keys=False))
        (home / "node.toml").write_text(tomli_w.dumps(facts))
        (home / "policy.toml").write_text(tomli_w.dumps(policy))
        (home / "split.key").write_bytes(
            hashlib.blake2b(f"{seed}|{agency.name}|split".encode()).digest()[:32]
        )
        folders.append(home)
    return folders
