"""`fedrisk-panel`: the command of an ethics panel's members. They work in one folder, which they share.

Exit code 0: done. 1: something is wrong, missing or was refused, said in a sentence. 2: the command was typed wrongly.
Nothing is signed before it was shown in words. One function for each command, each of which calls a module and shows
what it found.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

Answer = TypeVar("Answer")
Folder = Annotated[Path, typer.Option("--folder", help="The panel's folder.")]
Keys = Annotated[
    list[str], typer.Option("--key", metavar="NAME=FILE", help="Sign with a member's key. Repeatable.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before signing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DecisionArgument = Annotated[
    str, typer.Argument(metavar="DECISION", help="The first 8 digits or more of its SHA-256.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The folder of a finished run.")]
HERE = Path("panel")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Decide, as an ethics panel, which model may be used: register a run before it, sign a decision after it.",
)


def now() -> datetime:
    """The clock; the tests' own where they need another."""
    return datetime.now(UTC)


@app.command()
def key(
    name: Annotated[
        str, typer.Argument(help="The member's name in the panel: small letters, digits, - and _.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The new key file. It never leaves you.")],
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase.")] = False,
) -> None:
    """Make a member's key, and print the public half, which goes into panel.toml and to every agency.

    Example: fedrisk-panel key alice --out alice.key --passphrase
    """
    from federation.panel.keys import make_key, public_text

    def make() -> str:
        word = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if passphrase else None
        return public_text(make_key(out, word))

    print(f'{name} = "{guarded(make)}"')
    print(
        f"{out} is yours alone: whoever has it signs as {name}; keep a copy where nobody else can",
        file=sys.stderr,
    )


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The new folder of the panel.")],
    name: Annotated[str, typer.Option("--name", help="The panel's name, as agencies pin it.")],
    member: Annotated[
        list[str], typer.Option("--member", metavar="NAME=KEY", help="A member's public key. Repeatable.")
    ],
    quorum: Annotated[int, typer.Option(help="How many members must sign a decision.")],
    status_quorum: Annotated[int, typer.Option(help="How many must sign the weekly status.")] = 1,
    longest_days: Annotated[int, typer.Option(help="No approval is for longer.")] = 90,
    as_json: AsJson = False,
) -> None:
    """Make a panel's folder, and print what each agency puts into its node.toml.

    Example: fedrisk-panel init panel --name "Ethics panel of the North" --quorum 2 --member alice=KEY --member bob=KEY
    """
    from federation.decision import Panel
    from federation.panel import screen
    from federation.panel.drafting import pairs
    from federation.panel.files import make_folder, node_section

    def make() -> Panel:
        values = {
            "name": name,
            "quorum": quorum,
            "status_quorum": status_quorum,
            "longest_days": longest_days,
        }
        panel = Panel.model_validate(values | {"members": pairs(member, "--member")})
        make_folder(folder, panel)
        return panel

    panel = guarded(make)
    if as_json:
        screen.show_json(
            {"fingerprint": panel.fingerprint, "node_toml": node_section(panel), **panel.model_dump()}
        )
    else:
        screen.show_panel(folder, panel)


@app.command()
def fingerprint(folder: Folder = HERE) -> None:
    """Print the panel's section for node.toml and the digits to read out, again.

    Example: fedrisk-panel fingerprint --folder panel
    """
    from federation.panel import screen
    from federation.panel.files import read_panel

    screen.show_panel(folder, guarded(lambda: read_panel(folder)))


@app.command()
def register(
    registration: Annotated[
        Path, typer.Argument(help="The draft that `fedrisk draft` wrote: YAML, JSON or TOML.")
    ],
    keys: Keys,
    folder: Folder = HERE,
    out: Annotated[
        Path | None, typer.Option(help="Where the signed registration goes, once it is complete.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Register a run before it is trained: what, on whom, for what, and by what it will be judged.

    Once a quorum has signed, the run is started with registration=FILE, and nothing of it can be changed.

    Example: fedrisk-panel register registration.yaml --key alice=alice.key --out registration.json
    """
    from federation.panel.drafting import read_registration

    panel = _panel(folder)
    statement = guarded(lambda: read_registration(registration, panel, now()))
    _sign(folder, statement, keys, yes, out)


@app.command()
def sign(
    draft: Annotated[
        str, typer.Argument(metavar="DRAFT", help="Its file in drafts/, or the first 8 digits or more.")
    ],
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="NAME=FILE", help="Sign with a member's key. Repeatable."),
    ] = None,
    folder: Folder = HERE,
    run: Annotated[
        Path | None,
        typer.Option(help="Of a decision, always: the run's folder, which is judged again before you sign."),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="The audit that `decide` was given, where it was given one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of a registration: a copy for the run, once it is complete.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Sign what another member drafted. Read what is shown first; the report too, where it is a decision.

    Of a registration that is complete already, this writes its file again, with --out a copy too.

    Example: fedrisk-panel sign 3f9a41c2 --key bob=bob.key --run outputs/early-help-20310304
    """
    from federation.panel.signing import drafts, find_draft, find_registered

    _panel(folder)
    complete = guarded(lambda: find_registered(_entries(folder), draft))
    if complete is not None:
        guarded(lambda: _check_out(out))
        guarded(lambda: _write_registration(folder, complete, out))
        return
    if not keys:
        raise typer.BadParameter("say with --key NAME=FILE who signs")
    warn(guarded(lambda: drafts(folder)[1]))
    signed = guarded(lambda: find_draft(folder, draft))
    if signed.kind == "decision":
        if run is None:
            stop_with("name the run's folder with --run, so that what you sign is compared with it")
        place = run
        guarded(lambda: _is_about(folder, place, signed, audit))
    _sign(folder, signed, keys, yes, out, run=run)


@app.command()
def decide(
    run: RunFolder,
    keys: Keys,
    verdict: Annotated[
        str, typer.Option(help="approve, approve_with_conditions, more_information, reject or suspend.")
    ],
    rationale: Annotated[str, typer.Option(metavar="TEXT|@FILE", help="Why.")],
    dissent: Annotated[
        str, typer.Option(metavar="TEXT|@FILE", help="Who disagreed and why; none if nobody did.")
    ],
    owner: Annotated[str, typer.Option(help="Who answers for the model's use.")],
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=TEXT", help="What must hold before it is used. Repeatable."),
    ] = None,
    limit_capacity: Annotated[
        int | None, typer.Option(help="The most people that one list may have.")
    ] = None,
    limit_agency: Annotated[
        list[str] | None, typer.Option(help="Who may use it; default: all. Repeatable.")
    ] = None,
    local_recalibration: Annotated[
        bool, typer.Option("--local-recalibration", help="Allow scores corrected on an agency's own records.")
    ] = False,
    rereferral: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What brings it back to the panel; fedrisk retest measures what it can, as AUC below 0.70, tpr of "
            "sex=female below 0.5, gap equalized_odds of race above 0.15. Repeatable.",
        ),
    ] = None,
    expires: Annotated[
        int | None, typer.Option(metavar="DAYS", help="Default of an approval: longest_days.")
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="What `fedrisk audit` wrote, where a gate asks for one that was not registered."),
    ] = None,
    folder: Folder = HERE,
    yes: Yes = False,
) -> None:
    """Decide on a finished run. Its report, result, card, weights and gates are bound byte for byte.

    The gates that were registered are held against the result; a model that failed one cannot be approved.

    Example: fedrisk-panel decide outputs/early-help-20310304 --verdict approve --rationale @minutes.txt --dissent none --owner "head of safeguarding" --rereferral "AUC below 0.70" --key alice=alice.key
    """
    from federation.panel import screen
    from federation.panel.drafting import (
        Wanted,
        draft_decision,
        keep_gates,
        other_releases,
        pairs,
        unmeasured,
    )

    panel = _panel(folder)
    wanted = guarded(
        lambda: Wanted(
            verdict=verdict,
            rationale=text_of(rationale),
            dissent=text_of(dissent),
            owner=owner,
            conditions=pairs(condition or [], "--condition"),
            capacity=limit_capacity,
            agencies=limit_agency or None,
            local_recalibration=local_recalibration,
            rereferral=rereferral or [],
            days=expires,
        )
    )
    report, make = guarded(lambda: draft_decision(run, _entries(folder), panel, wanted, audit, now()))
    guarded(lambda: screen.show_gates(report))
    statement = guarded(make)
    warn(guarded(lambda: [*other_releases(run), *unmeasured(run, rereferral or [])]))
    _sign(folder, statement, keys, yes, None, before=lambda: keep_gates(run, report), run=run)


@app.command()
def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where it is written; default: the run's folder.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    folder: Folder = HERE,
) -> None:
    """Write a run's report.html again, from its result.json. One that a decision binds is never changed.

    Example: fedrisk-panel report outputs/early-help-20310304 --out copies --open
    """
    import webbrowser

    from federation.panel.files import PANEL
    from federation.panel.rewriting import rewrite

    entries = guarded(
        lambda: _entries(folder) if (folder / PANEL).exists() else ()
    )  # a data scientist has no panel's folder
    written = guarded(lambda: rewrite(run, run if out is None else out, entries))
    for path in written:
        print(f"wrote   {path}")
    if open_:
        webbrowser.open(written[0].resolve().as_uri())


@app.command()
def met(
    decision: DecisionArgument,
    condition: Annotated[str, typer.Argument(metavar="CONDITION", help="Its id in the decision.")],
    evidence: Annotated[str, typer.Option(metavar="TEXT|@FILE", help="What shows it.")],
    keys: Keys,
    folder: Folder = HERE,
    yes: Yes = False,
) -> None:
    """Say that a condition of a decision holds now, and what shows it.

    Example: fedrisk-panel met 3f9a41c2 training --evidence "list of 4 March" --key alice=alice.key --key bob=bob.key
    """
    from federation.decision import ConditionMet
    from federation.panel.decisions import find_decision, made

    panel = _panel(folder)

    def draft() -> ConditionMet:
        digest = find_decision(_entries(folder), decision).sha256
        facts = {"panel": panel.name, "decision_sha256": digest, "condition": condition, "met": now()}
        return made(ConditionMet, facts | {"evidence": text_of(evidence)})

    _sign(folder, guarded(draft), keys, yes, None)


@app.command()
def status(decision: DecisionArgument, keys: Keys, folder: Folder = HERE, yes: Yes = False) -> None:
    """Say that a decision is in force, for the next 7 days. Without that no node uses the model.

    Example: fedrisk-panel status 3f9a41c2 --key alice=alice.key
    """
    _say(folder, decision, {"state": "in_force"}, keys, yes)


@app.command()
def suspend(
    decision: DecisionArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT|@FILE", help="Why.")],
    keys: Keys,
    folder: Folder = HERE,
    yes: Yes = False,
) -> None:
    """Suspend a decision: then only a new decision allows the model again. Deliver it to the agencies at once.

    Example: fedrisk-panel suspend 3f9a41c2 --reason "drift at the council" --key alice=alice.key
    """
    _say(folder, decision, {"state": "suspended", "reason": guarded(lambda: text_of(reason))}, keys, yes)


@app.command()
def deliver(decision: DecisionArgument, run: RunFolder, folder: Folder = HERE) -> None:
    """Write model/approval.json into a run's folder: what agencies need, a suspension too.

    Example: fedrisk-panel deliver 3f9a41c2 outputs/early-help-20310304
    """
    from federation.panel.delivery import deliver as write

    panel = _panel(folder)
    print(shown(guarded(lambda: write(_entries(folder), decision, run, panel, now()))))


@app.command()
def promote(
    run: RunFolder,
    uri: Annotated[str, typer.Option("--uri", help="MLflow's address, as in tracking.uri.")],
    name: Annotated[str, typer.Option("--name", help="The registered model's name in MLflow.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Register a run's model in MLflow as `champion`, only if the panel's approval covers exactly these files now.

    Otherwise the exit code is 1, and all that is missing is listed. Nodes do not ask MLflow: its alias decides nothing.

    Example: fedrisk-panel promote outputs/early-help-20310304 --uri sqlite:///outputs/mlflow.db --name early-help
    """
    from dataclasses import asdict

    from federation.panel import screen
    from federation.panel.delivery import promote as move

    panel = _panel(folder)
    found = guarded(lambda: move(folder, run, panel, uri, name, now()))
    if as_json:
        screen.show_json(asdict(found))
    else:
        before = "nothing" if found.before is None else f"version {found.before}"
        print(f"promoted  {found.name} version {found.version} is the {found.alias}; before it: {before}")


@app.command()
def mirror(
    run: RunFolder,
    uri: Annotated[str, typer.Option("--uri", help="MLflow's address, as in tracking.uri.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Say in MLflow what was decided on a run and how that stands now, a rejection or a suspension too, as tags.

    They are for who reads MLflow; nodes never ask it.

    Example: fedrisk-panel mirror outputs/early-help-20310304 --uri sqlite:///outputs/mlflow.db
    """
    from federation.panel import screen
    from federation.panel.delivery import mirror as write

    panel = _panel(folder)
    tags = guarded(lambda: write(folder, run, panel, uri, now()))
    if as_json:
        screen.show_json(tags)
    else:
        print(
            f"mirrored  decision {tags['panel.decision_sha256'][:12]}, {tags['panel.verdict']}: {tags['panel.state']}"
        )


@app.command()
def serve(
    folder: Folder = HERE,
    runs: Annotated[Path, typer.Option(help="The folder that has the runs' folders in it.")] = Path(
        "outputs"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    host: Annotated[str, typer.Option(help="An address of this machine alone.")] = "127.0.0.1",
) -> None:
    """Show the panel's desk in a browser on this machine: what stands, runs and their reports, drafting a decision.

    It prints an address that lets one browser in, once. No key goes through it: a draft is signed with `sign`.

    Example: fedrisk-panel serve --folder panel --runs outputs
    """
    import contextlib
    from importlib.util import find_spec

    if not (find_spec("fastapi") and find_spec("uvicorn")):
        stop_with(
            "fedrisk-panel serve needs FastAPI and uvicorn: install them with pip install 'fedrisk[panel]'"
        )
    from federation.panel.site.server import listen, prepare

    with guarded(lambda: listen(host, port)) as door:
        address, server = guarded(lambda: prepare(folder, runs, door, now))
        print(f"open    {address}\nonce, in one browser; Ctrl-C stops it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[door])


@app.command("list")
def list_(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """The runs that were decided on: verdict, how it stands, until when; and what waits for signatures.

    Example: fedrisk-panel list --folder panel
    """
    from federation.panel import screen
    from federation.panel.delivery import listed
    from federation.panel.signing import drafts

    _panel(folder)
    rows, (found, passed_over) = guarded(lambda: (listed(_entries(folder), now()), drafts(folder)))
    waiting = [path for path, _ in found]
    warn(passed_over)
    if as_json:
        screen.show_json({"decisions": rows, "waiting": [str(path) for path in waiting]})
    else:
        screen.show_list(rows, waiting)


@app.command()
def history(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Everything that the panel said, oldest first.

    Example: fedrisk-panel history --folder panel
    """
    import json

    from federation.panel import screen
    from federation.panel.words import in_a_line

    panel = _panel(folder)
    entries = guarded(lambda: _entries(folder))
    if as_json:
        facts = [
            {"seq": e.seq, "at": e.at, "kind": e.entry.kind, "hash": e.hash, "sha256": e.entry.digest}
            for e in entries
        ]
        said = [json.loads(e.entry.statement) for e in entries]
        screen.show_json([a | {"statement": b} for a, b in zip(facts, said, strict=True)])
    else:
        screen.show_history(guarded(lambda: [(entry, in_a_line(entry, panel)) for entry in entries]))


@app.command()
def verify(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN_FOLDER]...", help="Folders of runs.")
    ] = None,
    head: Annotated[str | None, typer.Option(metavar="SEQ:HASH", help="A head from the minutes.")] = None,
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Check the history's chain, every signature and quorum; and of runs each file that a decision binds.

    Example: fedrisk-panel verify outputs/early-help-20310304 --head 12:ab12cd34ef56
    """
    from federation.panel import screen
    from federation.panel.delivery import verified

    panel = _panel(folder)
    found = guarded(lambda: verified(folder, panel, runs or [], head))
    if as_json:
        screen.show_json(found.to_dict())
    else:
        for place, decided in found.matching:
            screen.show_matches(place, decided)
    if found.problems:
        stop_with("\n".join(found.problems))
    if not as_json:
        print(f"ok  history: {len(found.entries)} entries, the chain and every quorum hold")
        for entry in found.entries[-1:]:
            screen.show_head(entry)


@app.command()
def mend(
    head: Annotated[str, typer.Option(metavar="SEQ:HASH", help="The newest head in the minutes.")],
    folder: Folder = HERE,
) -> None:
    """Remove half a line that a cut-off write left at the end of the history, if nothing before it is missing.

    Example: fedrisk-panel mend --head 12:ab12cd34ef56
    """
    from federation.panel.history import mend as remove

    _panel(folder)
    print(
        f"mended  {guarded(lambda: remove(folder, head))} bytes after entry {head.partition(':')[0]} were removed"
    )


# --- what the commands share ------------------------------------------------------------------------------


def _panel(folder: Path) -> Any:
    from federation.panel.files import read_panel

    return guarded(lambda: read_panel(folder))


def _entries(folder: Path) -> Sequence[Any]:
    from federation.panel.binding import sound_history

    return sound_history(folder)


def _say(folder: Path, decision: str, said: Mapping[str, Any], keys: Sequence[str], yes: bool) -> None:
    """Sign a status of a decision that holds from now."""
    from federation.decision import Status
    from federation.panel.decisions import find_decision, made, status_until

    panel = _panel(folder)

    def draft() -> Status:
        issued, digest = now(), find_decision(_entries(folder), decision).sha256
        facts = {
            "panel": panel.name,
            "decision_sha256": digest,
            "issued": issued,
            "expires": status_until(issued),
        }
        return made(Status, {**facts, **said})

    _sign(folder, guarded(draft), keys, yes, None)


def _is_about(folder: Path, run: Path, signed: Any, audit: Path | None) -> None:
    """`PanelError` unless the drafted decision is what `decide` would draft of the files in `run`."""
    from federation.decision import Decision
    from federation.panel import screen
    from federation.panel.binding import check_draft
    from federation.panel.drafting import other_releases, read_audit
    from federation.panel.files import read_panel
    from federation.panel.runs import check_code, read_run

    found, given = read_run(run), None if audit is None else read_audit(audit)
    report = check_draft(found, signed, _entries(folder), read_panel(folder), given)
    if signed.read(Decision).approves:
        check_code(found)
    warn(other_releases(run))
    print(f"ok  {run}: every file is what is being signed, and the gates were judged again\n")
    screen.show_gates(report)


def _check_out(out: Path | None) -> None:
    """`PanelError` where a registration cannot be copied there; found out before anything is signed."""
    from federation.panel.files import PanelError

    if out is None:
        return
    if not out.parent.is_dir():
        raise PanelError(f"{out.parent} is no folder: name another file with --out, or make the folder first")
    if out.exists() or out.is_symlink():
        raise PanelError(f"{out} exists and stays as it is: name another file with --out")


def _write_registration(folder: Path, signed: Any, out: Path | None) -> None:
    """The file of a complete registration, in the panel's folder always, and a copy where one is wanted."""
    from federation.durable import write_whole
    from federation.panel.files import write_new
    from federation.panel.signing import registration_path

    content = signed.canonical.encode()
    write_whole(registration_path(folder, signed), content, mode=0o644)
    if out is not None:
        write_new(out, content)
    print(f"start   the run with registration={out or registration_path(folder, signed)}")


def _sign(
    folder: Path,
    said: Any,
    keys: Sequence[str],
    yes: bool,
    out: Path | None,
    before: Callable[[], None] = lambda: None,
    run: Path | None = None,
) -> None:
    """Show a statement, or one that others have signed; ask, sign it; write a registration that is complete."""
    from federation.decision import Signed
    from federation.panel import screen
    from federation.panel.decisions import check_follows
    from federation.panel.drafting import pairs
    from federation.panel.keys import members_keys
    from federation.panel.signing import add_signatures, unsigned

    panel = _panel(folder)
    signed = said if isinstance(said, Signed) else guarded(lambda: unsigned(said))
    guarded(lambda: check_follows(_entries(folder), signed, panel, now(), signing=True))
    files = guarded(lambda: {name: Path(file) for name, file in pairs(keys, "--key").items()})
    held = guarded(lambda: members_keys(files, panel, _ask))
    if signed.kind == "registration":
        guarded(lambda: _check_out(out))
    guarded(lambda: screen.show_signing(signed, now()))
    if not yes and not typer.confirm(f"Sign this as {' and '.join(held)}?"):
        stop_with("nothing was signed")
    guarded(before)
    found = guarded(lambda: add_signatures(folder, panel, signed, held, now()))
    screen.show_progress(found)
    if found.entry is not None and found.signed.kind == "registration":
        guarded(lambda: _write_registration(folder, found.signed, out))
    if found.entry is not None and found.signed.kind == "decision":
        for line in guarded(lambda: _to_withdraw(folder, found.signed, run)):
            print(f"next    {line}")


def _to_withdraw(folder: Path, signed: Any, run: Path | None) -> list[str]:
    """After a decision that approves nothing: how the approvals before it are taken back from the agencies."""
    from federation.decision import Decision
    from federation.panel.binding import withdrawals
    from federation.panel.decisions import living

    decision = signed.read(Decision)
    if decision.approves:
        return []
    return withdrawals(living(_entries(folder), decision.subject.run_id), run or "RUN_FOLDER")


def _ask(question: str) -> str:
    return str(typer.prompt(question, hide_input=True))


def text_of(text: str) -> str:
    """`text`, or what is in FILE of `@FILE`."""
    from federation.panel.files import PanelError

    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise PanelError(f"{text[1:]} cannot be read: name a text file after @") from None


def guarded(act: Callable[[], Answer]) -> Answer:
    """Run `act`; a known problem is said in its sentences."""
    from federation.panel.refusals import REFUSALS, sentences_of

    try:
        return act()
    except REFUSALS as error:
        stop_with("\n".join(sentences_of(error)))


def stop_with(text: str) -> NoReturn:
    """Print each line of `text` to stderr and leave with exit code 1."""
    warn(text.rstrip("\n").split("\n"))
    raise typer.Exit(1)


def warn(sentences: Sequence[str]) -> None:
    """Print each to stderr, and go on."""
    for sentence in sentences:
        print(f"fedrisk-panel: {shown(sentence)}", file=sys.stderr)


def shown(text: str) -> str:
    """`text` as it may stand on a terminal: nothing in it moves or hides what is beside it."""
    from federation.panel.words import visible

    return visible(text)


def main() -> None:
    """The console entry point."""
    app()


if __name__ == "__main__":
    main()
