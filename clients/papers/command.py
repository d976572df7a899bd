"""`fedrisk-node papers` and `backup`: the functions behind the commands. Bad input is one sentence, exit code 1."""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def papers(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="A folder for the papers; none of them may be there yet.")],
    part3: Annotated[
        bool | None,
        typer.Option(
            "--part3/--no-part3",
            help="Whether the agency is a competent authority (Data Protection Act 2018, Part 3); else its kind decides.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the papers that a data protection officer starts from: DPIA, Part 3, data flow, record of processing.

    What this node's configuration knows is filled in; what it cannot know is marked TO BE FILLED BY. No record is read.

    Example: fedrisk-node papers node papers-march
    """
    with _sentences():
        from clients.papers.write import write

        written = write(folder, out, datetime.now(UTC).date(), competent=part3)
        if as_json:
            typer.echo(json.dumps(written.to_dict(), indent=1))
            return
        for name, blanks in written.blanks.items():
            left = f"{blanks} blank{'' if blanks == 1 else 's'} to fill" if blanks else "complete"
            typer.echo(f"{out / name}  {left}")
        if written.note:
            typer.echo(written.note)


def backup(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="A new folder for the copy.")],
    as_json: AsJson = False,
) -> None:
    """Copy what this node must not lose: ledger, log, approvals, keys and rules, while it works or not. No records.

    The copy holds the node's keys: keep it as safe as the node. docs/restore.md says how to restore.

    Example: fedrisk-node backup node /media/safe/node-2026-11-25
    """
    with _sentences():
        from clients.desk.backup import back_up

        copied = back_up(folder, out)
        if as_json:
            typer.echo(json.dumps(copied.to_dict(), indent=1))
            return
        ledger = (
            "no ledger yet"
            if copied.ledger is None
            else f"ledger entry {copied.ledger[0]} {copied.ledger[1][:16]}"
        )
        typer.echo(f"copied  {len(copied.files)} files of {copied.agency} to {copied.folder}")
        typer.echo(f"holds   {ledger}, {copied.journal_lines} lines of the log; every chain was checked")
        typer.echo("keep    it as safe as the node: its keys are in it")


@contextmanager
def _sentences() -> Iterator[None]:
    """A known problem in its sentences; of any other only its kind and place, never its text."""
    from clients.folder import NodeError
    from clients.ledger import LedgerError
    from clients.policy import PolicyError
    from clients.records.data import DataError

    try:
        yield
    except (NodeError, PolicyError, LedgerError, DataError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(
            f"{error.filename or 'a file'} cannot be used ({error.strerror}): see to its permissions, and to free space"
        )
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - its text may quote a cell
        frame = traceback.extract_tb(error.__traceback__)[-1]
        _fail(f"{type(error).__name__} in {Path(frame.filename).name} line {frame.lineno}: please report it")


def _fail(sentences: str) -> NoReturn:
    for sentence in sentences.splitlines():
        print(f"fedrisk-node: {sentence}", file=sys.stderr)
    raise typer.Exit(1) from None
