"""`fedrisk-node score`, `approval`, `review` and `access`: the functions behind the commands. Bad input is one sentence, exit 1."""

import csv
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from clients.scoring.access import ACCESS, REVIEWS, AccessError, AccessLog, Review, who

if TYPE_CHECKING:  # what scores takes seconds to import, and --help does not need it
    from clients.scoring.pages import Run
    from clients.scoring.run import Asked, Recalibrate
    from clients.scoring.score import Scores

Folder = Annotated[Path, typer.Option("--folder", help="The node's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


class AskedWrongly(ValueError):
    """An option that cannot be: one sentence."""


def score(
    input: Annotated[Path, typer.Argument(help="People to score: .csv or .parquet, the contract's columns.")],
    output: Annotated[Path, typer.Argument(help="A new folder, which you alone can read.")],
    model: Annotated[Path, typer.Option("--model", help="The model/ folder that a run wrote.")],
    purpose: Annotated[str, typer.Option("--purpose", help="Why you look: a purpose of policy.toml.")],
    capacity: Annotated[int, typer.Option("--capacity", min=1, help="How many people can be looked at.")],
    folder: Folder = Path("."),
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal", help="Try a model that no panel approved; act on nothing of it.")
    ] = False,
    as_of: Annotated[str, typer.Option("--as-of", help="The day of scoring, 2026-03-31; today.")] = "",
    reference: Annotated[
        str, typer.Option("--reference", help="The column of references, where the contract has no person.")
    ] = "",
    contest: Annotated[
        str, typer.Option("--contest", help="Whom a person asks who disagrees, printed on each case.")
    ] = "",
    recalibrate: Annotated[
        str,
        typer.Option(
            "--recalibrate",
            help="local: on this agency's own records; or federation. Left out: local in a rehearsal, else federation.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Score people on this machine: a table, a short list and a page for each case. Scores never leave.

    The panel that node.toml pins must have approved the model (approval.json beside it), unless this is a rehearsal.

    Example: fedrisk-node score people.csv scores-march --model model/ --purpose early-warning --capacity 20
    """
    with _sentences():
        how = _recalibrate(recalibrate)
        day = _day(as_of, "--as-of") if as_of else datetime.now(UTC).date()
        from clients.scoring.run import Asked, score_into

        asked = Asked(
            input=input,
            output=output,
            model=model,
            purpose=purpose,
            capacity=capacity,
            folder=folder,
            as_of=day,
            reference=reference or None,
            contest=contest,
            recalibrate=how,
            rehearsal=rehearsal,
        )
        found, run = score_into(asked)
        _say_scored(found, run, asked, as_json=as_json)


def approval(
    model: Annotated[Path, typer.Argument(help="The model/ folder, with approval.json beside card.json.")],
    folder: Folder = Path("."),
    as_json: AsJson = False,
) -> None:
    """What the ethics panel allows with a model at this agency, until when; or why it may not be used (exit code 1).

    Example: fedrisk-node approval model/ --folder node
    """
    with _sentences():
        from clients.scoring.run import open_approved

        found, approved = open_approved(folder, model, datetime.now(UTC))
        if as_json:
            typer.echo(
                json.dumps({"model": found.card.version, "purpose": found.card.purpose} | approved.to_dict())
            )
            return
        limits = approved.permission.limits
        lines = [
            ("model", f"{found.card.version}, for {found.card.purpose}"),
            ("panel", approved.panel),
            ("verdict", approved.state),
            ("until", approved.until),
            ("owner", approved.permission.owner),
            *(("condition", condition.text) for condition in approved.permission.conditions),
            (
                "capacity",
                "no limit" if limits.capacity is None else f"{limits.capacity} people listed by one run",
            ),
            ("agencies", "no limit" if limits.agencies is None else ", ".join(limits.agencies)),
            ("own map", "--recalibrate local is allowed" if limits.local_recalibration else "not allowed"),
            ("decision", approved.permission.decision_sha256),
        ]
        for name, said in lines:
            typer.echo(f"{name:<11}{said}")


def review(
    reference: Annotated[str, typer.Argument(help="The case, as it is on its page.")],
    action: Annotated[str, typer.Option("--action", help="agree, override or defer.")],
    reason: Annotated[
        str, typer.Option("--reason", help="Why; needed to override or defer. Name nobody in it.")
    ] = "",
    folder: Folder = Path("."),
    as_json: AsJson = False,
) -> None:
    """Record what you decided about a case: agree with the score, override it, or defer.

    Example: fedrisk-node review P-1041 --action override --reason "the arrears were paid in January"
    """
    with _sentences():
        taken = next((known for known in REVIEWS if known == action), None)
        if taken is None:
            raise AccessError(f"--action must be {', '.join(REVIEWS[:-1])} or {REVIEWS[-1]}, got {action!r}")
        typed: Review = taken
        with AccessLog(folder / ACCESS, make=False) as log:
            row = log.reviewed(user=who(), reference=reference, action=typed, reason=reason)
        said = f"recorded as row {row.seq} of the access log, by {row.user}: {row.action}"
        typer.echo(json.dumps(row.to_dict()) if as_json else said)


def access(
    since: Annotated[str, typer.Option("--since", help="From this day on, 2026-03-01 (UTC).")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash chain, print no rows.")] = False,
    head: Annotated[
        str,
        typer.Option("--head", help="With --verify: a row as a page names it, 12:ab34cd56, must be there."),
    ] = "",
    folder: Folder = Path("."),
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV and nothing else.")] = False,
) -> None:
    """Who consulted which case, when, for what purpose, and what they decided.

    Example: fedrisk-node access --since 2026-03-01 --csv > consulted.csv
    """
    with _sentences(), AccessLog(folder / ACCESS, make=False) as log:
        if head and not verify:
            raise AccessError("--head is for --verify")
        start = _day(since, "--since").isoformat() if since else ""
        if verify:
            rows = log.verify(_head(head) if head else None)
            said = f"{rows} rows, each chained to the one before: the access log is whole"
            typer.echo(json.dumps({"rows": rows, "whole": True}) if as_json else said)
        else:
            _print_rows([row.to_dict() for row in log.rows(since=start)], as_json=as_json, as_csv=as_csv)


def _day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise AskedWrongly(f"{option} must be a day such as 2026-03-31, got {text!r}") from None


def _recalibrate(text: str) -> "Recalibrate":
    match text:
        case "":
            return "auto"
        case "local" | "federation":
            return text
        case _:
            raise AskedWrongly(f"--recalibrate must be local or federation, got {text!r}")


def _head(text: str) -> tuple[int, str]:
    seq, colon, chain = text.partition(":")
    if not (seq.isdigit() and int(seq) > 0 and colon and len(chain) >= 8):
        raise AccessError(f"--head must be a row as a page names it, 12:ab34cd56ef78, got {text!r}")
    return int(seq), chain


def _say_scored(found: "Scores", run: "Run", asked: "Asked", *, as_json: bool) -> None:
    approved = run.approved
    if as_json:
        facts = {
            "output": str(asked.output),
            "scored": len(found.people.references),
            "listed": len(found.listed),
            "out_of_scope": sum(bool(why) for why in found.scope),
            "calibration": found.calibration.source,
            "model": found.model.card.version,
            "approval": run.approval,
            "decision": None if approved is None else approved.to_dict(),
            "access_row": run.entry,
        }
        typer.echo(json.dumps(facts))
        return
    typer.echo(run.banner if approved is None else approved.sentence)
    typer.echo(f"scored  {len(found.people.references)} people, {len(found.listed)} on the list")
    typer.echo(f"open    {asked.output / 'list.html'}")
    typer.echo(f"logged  access log row {run.entry}")


def _print_rows(rows: list[dict[str, str | int]], *, as_json: bool, as_csv: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif as_csv:
        names = ["seq", "at", "user", "action", "run", "purpose", "model", "reference", "note", "hash"]
        writer = csv.DictWriter(sys.stdout, names)
        writer.writeheader()
        writer.writerows(rows)
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("when (UTC)", "who", "what", "reference", "purpose", "note", box=None)
        for row in rows:
            cells = (str(row["at"])[:19], row["user"], row["action"], row["reference"], row["purpose"])
            table.add_row(*(Text(str(cell)) for cell in (*cells, row["note"])))
        Console().print(table)


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors as sentences on stderr, exit code 1. What was not foreseen is told by kind and place, never by its text."""
    try:
        yield
    except (AskedWrongly, AccessError) as error:
        _fail(str(error))
    except (typer.Exit, typer.Abort, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - its text may quote a cell
        from clients.scoring.run import SENTENCES

        if isinstance(error, SENTENCES):
            _fail(str(error))
        frame = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            f"nothing was shown: {type(error).__name__} in {Path(frame.filename).name} line {frame.lineno}; report it"
        )


def _fail(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(1) from None
