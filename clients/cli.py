"""`fedrisk-node`: the command of an agency's IT, its data protection officer and its case workers.

Exit code 0: done, or nothing to mend. 1: something is wrong or was refused, said in a sentence. 2: the command was
typed wrongly. One function for each command, each of which calls a module and shows what it found.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from clients.papers.command import backup, papers
from clients.scoring.command import access, approval, review, score

Answer = TypeVar("Answer")
Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
InFolder = Annotated[Path, typer.Option("--folder", help="The node's folder.")]
PlanArgument = Annotated[
    str,
    typer.Argument(
        metavar="PLAN",
        help="A plan's JSON file (`fedrisk plan --plan-file`), or the first 8 digits of the SHA-256 of one that was asked for.",
    ),
]
By = Annotated[str, typer.Option("--by", help="Who decides: the name of a person.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the record.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Verify = Annotated[bool, typer.Option("--verify", help="Check the hash chain, and say so.")]
HERE = Path(".")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Host an agency's node: it answers a federation's orders inside this agency's own policy, and no record leaves.",
)
policy_app = typer.Typer(
    no_args_is_help=True, help="What the policy permits, and what it would answer to a plan."
)
app.add_typer(policy_app, name="policy")


@app.command()
def init(
    folder: Folder,
    name: Annotated[str | None, typer.Option(help="The agency's name in the federation.")] = None,
    kind: Annotated[str | None, typer.Option(help="Its kind, as the contract calls it.")] = None,
    public_size: Annotated[
        int | None, typer.Option(help="How many people it publicly says it serves.")
    ] = None,
    superlink: Annotated[str | None, typer.Option(help="HOST:PORT, as the coordinator said.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The coordinator's ca.crt; it is copied.")] = None,
    contract: Annotated[Path | None, typer.Option(help="The agreed contract; it is copied.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a node's folder: keys that never leave it, and a policy that permits nothing yet.

    Nothing that is there is changed: a second init makes what is missing and says what was there.

    Example: fedrisk-node init node --name police --kind police --superlink fedrisk.example.org:9092 --certificate ca.crt
    """
    from clients.desk import screen
    from clients.desk.setup import Wanted
    from clients.desk.setup import init as make

    wanted = Wanted(name, kind, public_size, superlink, certificate, contract)
    made = guarded(lambda: make(folder, wanted))
    if as_json:
        screen.show_json(made.to_dict())
    else:
        screen.show_made(made)


@app.command()
def doctor(
    folder: Folder = HERE,
    offline: Annotated[bool, typer.Option("--offline", help="Leave out the line to the SuperLink.")] = False,
    as_json: AsJson = False,
) -> None:
    """Is this node fit to work? A tick or what to do, line by line; exit code 1 where something must be mended.

    Example: fedrisk-node doctor /srv/fedrisk/node
    """
    from dataclasses import asdict

    from clients.desk import screen
    from clients.desk.doctor import examine

    found = guarded(lambda: examine(folder, offline=offline))
    if as_json:
        screen.show_json([asdict(each) for each in found])
    else:
        screen.show_findings(found)
    raise typer.Exit(int(any(each.state == "fail" for each in found)))


@app.command()
def start(folder: Folder = HERE) -> None:
    """Host the node: connect out to the SuperLink, answer orders, and keep on until it is told to stop.

    Runs in the foreground, as a service manager wants it (clients/deploy/ has a systemd unit and a Containerfile).
    SIGTERM and Ctrl-C let the order in hand finish.

    Example: fedrisk-node start /srv/fedrisk/node
    """
    from clients import service

    guarded(lambda: service.start(folder))


@app.command()
def stop(
    folder: Folder = HERE,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the order in hand.")] = False,
    leave: Annotated[
        bool, typer.Option("--leave", help="Leave the federation: say so to it, and answer no more orders.")
    ] = False,
    destroy_keys: Annotated[
        bool,
        typer.Option("--destroy-keys", help="Leave, and destroy the node's keys. Nothing brings them back."),
    ] = False,
    by: Annotated[str, typer.Option(help="Who decides to leave: the name of a person.")] = "",
    why: Annotated[str, typer.Option(help="The reason, for the record.")] = "",
    seconds: Annotated[float, typer.Option(help="How long to wait for the order in hand.")] = 120.0,
) -> None:
    """Stop the node that works in FOLDER; what it released stays released, and the ledger and the log stay here.

    Examples: fedrisk-node stop node     fedrisk-node stop node --leave --by "A. Khan" --why "project ended"
    """
    from clients.desk import leaving

    said = guarded(
        lambda: leaving.stop(
            folder, leaving.How(now=now, leave=leave, destroy_keys=destroy_keys, by=by, why=why), seconds
        )
    )
    print(said)


@app.command()
def ledger(folder: Folder = HERE, verify: Verify = False, as_json: AsJson = False) -> None:
    """What has left this agency, what it says about a person at most, and what is left of each limit.

    Example: fedrisk-node ledger node --verify
    """
    from clients.desk import screen
    from clients.desk.statement import of_folder

    found = guarded(lambda: of_folder(folder))
    if as_json:
        screen.show_json(found.to_dict())
    else:
        screen.show_statement(found, verified=verify)


@app.command()
def log(
    folder: Folder = HERE,
    since: Annotated[str, typer.Option(help="A day (2026-11-01), or how long ago (7d, 12h).")] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the hash chain, also against the ledger.")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV and nothing else.")] = False,
) -> None:
    """Every order, verdict, release, refusal, approval, start and stop, oldest first.

    Examples: fedrisk-node log node --since 7d     fedrisk-node log node --csv > log.csv     fedrisk-node log node --verify
    """
    from clients.desk import screen
    from clients.desk.journal_read import checked, lines_since

    records = guarded(lambda: lines_since(folder, since))
    said = guarded(lambda: checked(folder)) if verify else ""
    if as_json:
        screen.show_json(screen.json_of(records))
    elif as_csv:
        print(screen.csv_of(records), end="")
    else:
        screen.show_records(records)
        print(said, end="\n" if said else "")


@policy_app.command("show")
def policy_show(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """What the policy permits, key by key, in words.

    Example: fedrisk-node policy show node
    """
    from clients.desk import screen
    from clients.desk.decisions import policy_lines

    found = guarded(lambda: policy_lines(folder))
    if as_json:
        screen.show_json([line._asdict() for line in found])
    else:
        screen.show_policy(found)


@policy_app.command("check")
def policy_check(plan: PlanArgument, folder: InFolder = HERE, as_json: AsJson = False) -> None:
    """What the node would answer to a plan, and which line of the policy decides; exit code 1 unless it is permitted.

    Example: fedrisk-node policy check plan.json --folder node
    """
    from clients.desk import screen
    from clients.desk.decisions import check

    found = guarded(lambda: check(folder, plan))
    if as_json:
        screen.show_json(found.to_dict())
    else:
        screen.show_checked(found)
    raise typer.Exit(int(found.decides is not None))


@policy_app.command("asked")
def policy_asked(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """The plans that wait for a person's approval.

    Example: fedrisk-node policy asked node
    """
    from clients.desk import screen
    from clients.desk.decisions import waiting

    found = guarded(lambda: waiting(folder))
    if as_json:
        screen.show_json([each.to_dict() for each in found])
    else:
        screen.show_asked(found)


@app.command()
def approve(plan: PlanArgument, by: By, why: Why, folder: InFolder = HERE) -> None:
    """Approve a plan, where the policy says that a person must: who, when and why are recorded.

    Example: fedrisk-node approve 3f9a41c2 --by "R. Okafor" --why "within the agreement of March" --folder node
    """
    _decide(folder, plan, approve=True, who=by, why=why)


@app.command()
def withdraw(plan: PlanArgument, by: By, why: Why, folder: InFolder = HERE) -> None:
    """Withdraw from a plan, approved or not: no further order of it is answered. What has left stays out.

    Example: fedrisk-node withdraw 3f9a41c2 --by "R. Okafor" --why "the agreement ended" --folder node
    """
    _decide(folder, plan, approve=False, who=by, why=why)


def _decide(folder: Path, plan: str, *, approve: bool, who: str, why: str) -> None:
    from clients.desk.decisions import decide

    done = guarded(lambda: decide(folder, plan, approve=approve, who=who, why=why))
    print(f"{done.action}  plan {done.plan_sha256}, by {done.who}")


for command in (score, approval, review, access, papers, backup):  # they say their own sentences
    app.command()(command)


def guarded(act: Callable[[], Answer]) -> Answer:
    """Run `act`. A known problem is said in its sentences; of any other only its kind and place, never its text."""
    from clients.folder import NodeError
    from clients.journal import JournalError
    from clients.keys import KeyFileError
    from clients.ledger import LedgerError
    from clients.policy import PolicyError
    from clients.records.data import DataError
    from federation.plan import Refused

    try:
        return act()
    except (NodeError, PolicyError, KeyFileError, LedgerError, JournalError, DataError) as error:
        stop_with(str(error))
    except Refused as error:
        stop_with(error.sentence)
    except OSError as error:
        what = error.filename or "a file"
        stop_with(f"{what} cannot be used ({error.strerror}): see to its permissions, and to free space")
    except Exception as error:  # noqa: BLE001 - its text may quote a cell
        frame = traceback.extract_tb(error.__traceback__)[-1]
        stop_with(
            f"{type(error).__name__} in {Path(frame.filename).name} line {frame.lineno}: please report it"
        )


def stop_with(sentences: str) -> NoReturn:
    """Print each line of `sentences` to stderr and leave with exit code 1."""
    for sentence in sentences.splitlines():
        print(f"fedrisk-node: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def main() -> None:
    """The console entry point."""
    app()


if __name__ == "__main__":
    main()
