"""`fedrisk coordinator`: hosts a federation. Bad input is one clear sentence and exit code 1."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from experiments.coordinator.folder import (
    NOT_INSECURE,
    CoordinatorError,
    CoordinatorFile,
    Folder,
    is_loopback,
    write_whole,
)

Answer = TypeVar("Answer")
Where = Annotated[Path, typer.Argument(help="The coordinator's folder.", envvar="FEDRISK_COORDINATOR")]
Of = Annotated[
    Path, typer.Option("--folder", "-f", help="The coordinator's folder.", envvar="FEDRISK_COORDINATOR")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
HERE = Path(".")
app = typer.Typer(
    no_args_is_help=True,
    help="Host a federation: a SuperLink that strangers cannot reach, and who may connect to it.",
)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder to make, or an empty one.")],
    host: Annotated[str, typer.Option(help="The name or address that agencies connect to.")],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 9092,
    certificate: Annotated[
        Path | None, typer.Option(help="The organisation's own, PEM, the server's first.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM, without a passphrase.")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="What agencies check it with; none: their system's.")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Everything in the clear, on the loopback alone.")] = False,
) -> None:
    """Make a coordinator's folder: settings, and a CA with a server's certificate (or the organisation's own).

    Example: fedrisk coordinator init federation --host federation.example.org
    """
    guarded(lambda: _init(Folder(folder), host, port, (certificate, key, ca), insecure=insecure))


@app.command()
def start(folder: Where = HERE) -> None:
    """Run the coordinator in the foreground until SIGTERM or Ctrl-C.

    Example: fedrisk coordinator start federation
    """
    from experiments.coordinator import service

    guarded(lambda: service.start(Folder(folder), _say))


@app.command()
def stop(folder: Where = HERE) -> None:
    """End a running coordinator; runs that it hosts end too, and can be resumed: fedrisk coordinator stop federation"""
    from experiments.coordinator import service

    if not guarded(lambda: service.stop(Folder(folder))):
        typer.echo("nothing runs here")


@app.command()
def enrol(
    keys: Annotated[list[str], typer.Argument(help="KEY.pub with --agency NAME, or NAME=KEY.pub, several.")],
    agency: Annotated[str | None, typer.Option(help="Whose key it is: its name in agencies.yaml.")] = None,
    folder: Of = HERE,
) -> None:
    """Let agencies connect. Compare each fingerprint with what the agency reads out, by telephone.

    Example: fedrisk coordinator enrol police=police.pub health=health.pub --folder federation
    """
    from experiments.coordinator import registry

    for added in guarded(lambda: registry.enrol(Folder(folder), _named(keys, agency))):
        typer.echo(f"enrolled {added.name}  {added.fingerprint}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The agency.")],
    folder: Of = HERE,
    statement: Annotated[
        Path | None,
        typer.Option(help="The agency's left.json, checked against its key and kept as evidence."),
    ] = None,
) -> None:
    """Refuse an agency from now on. Its key can never come back: fedrisk coordinator revoke police -f federation"""
    from experiments.coordinator import registry, statements

    if statement is not None:
        agency = guarded(lambda: registry.enrolled(Folder(folder), name))
        said = guarded(lambda: statements.read(statement, agency))
        typer.echo(f"kept {statements.keep(Folder(folder), agency, said)}")
    gone = guarded(lambda: registry.revoke(Folder(folder), name))
    typer.echo(f"revoked {gone.name}  {gone.fingerprint}; what it released stays released")


@app.command()
def agencies(folder: Where = HERE, as_json: AsJson = False) -> None:
    """Who is enrolled, and who is there: fedrisk coordinator agencies federation"""
    from experiments.coordinator import registry

    found = guarded(lambda: registry.seen(_checked(Folder(folder))))
    rows = [
        {
            **seen.agency.model_dump(),
            "node_id": str(seen.agency.node_id),
            "status": seen.status,
            "last_seen": None if seen.last_seen is None else seen.last_seen.isoformat(timespec="seconds"),
        }
        for seen in found
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    _table([[str(row[key] or "") for key in ("name", "status", "last_seen", "fingerprint")] for row in rows])


@app.command()
def doctor(folder: Where = HERE, as_json: AsJson = False) -> None:
    """Look at everything that hosting needs; exit code 1 where something is to be done.

    Example: fedrisk coordinator doctor federation
    """
    from experiments.coordinator.doctor import examine

    found = guarded(lambda: examine(Folder(folder)))
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in found], indent=1))
    else:
        marks = {True: "✓", False: "✗", None: "–"}
        for finding in found:
            typer.echo(f"{marks[finding.well]} {finding.what}: {finding.sentence}")
    raise typer.Exit(int(any(finding.well is False for finding in found)))


def _init(folder: Folder, host: str, port: int, given: Sequence[Path | None], *, insecure: bool) -> None:
    import secrets

    from experiments.coordinator import proxy, tls

    own = _own_certificate(host, given)
    if insecure and (own or not is_loopback(host)):
        raise CoordinatorError(NOT_INSECURE)
    if not host or any(letter in host for letter in " /\"'") or len(host) > 253:
        raise CoordinatorError(f"--host {host!r} must be a name or an address, without a scheme or a port")
    proxy.usable(folder.path)
    if folder.path.exists() and any(folder.path.iterdir()):
        raise CoordinatorError(f"{folder.path} is not empty: choose another folder")
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.path.chmod(0o700)
    for name in ("tls", "log", "outputs", "flower"):
        folder.at(name).mkdir(mode=0o700)
    settings = {"host": host, "port": port, **own}
    settings |= {"listen": "127.0.0.1"} if is_loopback(host) else {}
    settings |= {"insecure": True} if insecure else {}
    if not insecure:
        tls.make_all(folder, host, server=not own)
    write_whole(folder.at("superexec.secret"), secrets.token_bytes(32), mode=0o600)
    write_whole(folder.at("coordinator.toml"), _toml(CoordinatorFile.model_validate(settings)), mode=0o600)
    for line in _what_next(folder, folder.settings()):
        typer.echo(line)


def _own_certificate(host: str, given: Sequence[Path | None]) -> dict[str, str]:
    """The settings for the organisation's own certificate; empty where it has given none."""
    from experiments.coordinator import tls

    certificate, key, ca = given
    if certificate is None and key is None and ca is None:
        return {}
    if certificate is None or key is None:
        raise CoordinatorError(
            "--certificate and --key go together: give both, or neither for a CA of the folder's own"
        )
    wrong = tls.problems(certificate, key, ca, host)
    if wrong:
        raise CoordinatorError("\n".join(wrong))
    return {
        "certificate": str(certificate.absolute()),
        "key": str(key.absolute()),
        "ca": "" if ca is None else str(ca.absolute()),
    }


def _toml(settings: CoordinatorFile) -> bytes:
    import tomli_w

    return tomli_w.dumps(settings.model_dump(exclude_none=True)).encode()


def _what_next(folder: Folder, settings: CoordinatorFile) -> list[str]:
    from experiments.coordinator import tls

    lines = [f"made {folder.path}", "", "Send to each agency:"]
    lines += [f"  the address       {settings.address}"]
    if settings.insecure:
        lines[-1:] = [f"  the address       {settings.address}, in the clear (insecure = true)"]
    elif settings.ca:
        ca = folder.at(settings.ca)
        lines += [
            f"  the certificate   {ca}",
            f"  its fingerprint   {tls.fingerprint(tls.read(ca)[0])} (by telephone)",
        ]
    else:
        lines += ["  no certificate: their systems trust the one that you gave"]
    lines += ["", "Next:", f"  fedrisk coordinator start {folder.path}"]
    return [*lines, f"  fedrisk coordinator enrol NAME=NAME.pub ... --folder {folder.path}     once it runs"]


def _named(keys: Sequence[str], agency: str | None) -> list[tuple[str, Path]]:
    """(name, file) of each key."""
    if agency is not None:
        if len(keys) != 1 or "=" in keys[0]:
            raise CoordinatorError(
                "--agency NAME goes with one KEY.pub; give several as NAME=KEY.pub, without --agency"
            )
        return [(agency, Path(keys[0]))]
    pairs = [key.partition("=") for key in keys]
    if not all(separator and name and path for name, separator, path in pairs):
        raise CoordinatorError("whose key is it? enrol KEY.pub --agency NAME, or enrol NAME=KEY.pub")
    return [(name, Path(path)) for name, _, path in pairs]


def _table(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("agency", "status", "last seen", "fingerprint", box=None)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True).print(table)


def _checked(folder: Folder) -> Folder:
    folder.settings()
    return folder


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def guarded(act: Callable[[], Answer]) -> Answer:
    """Run `act`; a known problem is printed as its sentences, with exit code 1."""
    try:
        return act()
    except CoordinatorError as error:
        problem = str(error)
    except OSError as error:
        what = error.filename or "a file"
        problem = f"{what} cannot be used ({error.strerror or type(error).__name__}): see to its permissions and free space"
    for sentence in problem.splitlines():
        print(f"fedrisk: {sentence}", file=sys.stderr)
    raise SystemExit(1)
