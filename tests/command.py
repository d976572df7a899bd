"""The `fedrisk` command in this process: what a person types, and what they then see."""

import sys
from dataclasses import dataclass
from pathlib import Path

import click
from typer.testing import CliRunner

from experiments.cli import app

TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The sentences on stderr, without the command's name."""
        lines = [line for line in self.err.splitlines() if line]
        assert all(line.startswith("fedrisk: ") for line in lines), self.err
        return [line.removeprefix("fedrisk: ") for line in lines]


def fedrisk(*arguments: str) -> Done:
    """Run `fedrisk ARGUMENTS`; an error that the command does not know is the test's."""
    argv = sys.argv
    try:
        result = CliRunner().invoke(app, list(arguments))
    finally:
        sys.argv = argv
    if result.exception is not None and not isinstance(result.exception, SystemExit | click.Abort):
        raise result.exception
    assert TRACEBACK not in result.output
    return Done(result.exit_code, result.stdout, result.stderr)


def small_run(folder: Path, *overrides: str) -> list[str]:
    """The words after `fedrisk` for a short run of the agencies in `folder`, without tracking."""
    common = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
    common += [f"output={folder}/outputs", "rounds=4", "evaluation.checkpoints=2"]
    return ["run", *common, *overrides]


def files_under(folder: Path, *besides: Path) -> dict[Path, bytes]:
    """Every file in `folder` and what is in it, but for those under `besides`."""
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(path.is_relative_to(other) for other in besides)
    }
