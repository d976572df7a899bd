"""The `flwr-serverapp` of a coordinator: it runs the installed ServerApp, and no Python from a bundle.

Flower's SuperExec starts the command `flwr-serverapp` that it finds on PATH, unpacks the run's bundle and puts
it first on `sys.path`. A coordinator's PATH begins with `FOLDER/bin`, where this stands under that name: a bundle
other than the installed release's own (which has no code) is refused before it is unpacked, and the run fails with that
sentence. Under the names of Flower's other kinds of task stands a refusal.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.coordinator.folder import write_whole
from federation import installed


class NotInstalledHere(Exception):
    """The run wants code that nobody installed here."""


def main() -> None:
    """`flwr-serverapp`, which takes the installed release's bundle and no other."""
    from flwr.superlink.cli import flwr_serverapp
    from flwr.superlink.runtime import run_serverapp

    module: Any = sys.modules[run_serverapp.__module__]
    module.fab_from_proto = only_ours(module.fab_from_proto)  # the first thing done with the bundle
    flwr_serverapp()


def only_ours(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`read`, which raises `NotInstalledHere` for any bundle but the installed release's."""

    def checked(proto: Any) -> Any:
        if proto.content != installed.fab():
            raise NotInstalledHere(
                f"this coordinator runs the installed fedrisk {installed.version()} (code {installed.code_sha256()[:16]}) "
                "and nothing else: start runs with `fedrisk submit` of the same release, not with `flwr run`"
            )
        return read(proto)

    return checked


def refuse() -> None:
    """The command of a kind of task that a coordinator does not offer."""
    raise SystemExit("fedrisk: this coordinator runs ServerApps of the installed fedrisk and nothing else")


def write_commands(folder: Path) -> None:
    """Put Flower's task commands into `folder`, each a few lines that call this module."""
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType

    folder.mkdir(mode=0o700, exist_ok=True)
    for kind, command in TASK_TYPE_TO_COMMAND.items():
        call = "main" if kind == TaskType.SERVER_APP else "refuse"
        text = f"#!{sys.executable} -P\nfrom experiments.coordinator.serverapp import {call}\n\n{call}()\n"
        write_whole(folder / command, text.encode(), mode=0o700)
