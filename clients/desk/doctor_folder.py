"""What `doctor` checks on this machine: the installed software, the folder's files, and what the node wrote."""

import os
import shutil
import stat
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from clients import journal as journals
from clients.approvals import Approvals, asked
from clients.desk.doctor_subject import Subject, Verdict
from clients.desk.ledger_copy import read_only
from clients.desk.release import ReleaseError, check_installed
from clients.folder import NodeError, NodeFile
from clients.journal import JournalError
from clients.keys import KeyFileError, node_key
from clients.ledger import LedgerError
from clients.policy import Policy
from clients.service import ENVIRONMENT, LOCK, at_work
from federation import installed

SHOWN = ("flwr", "torch", "opacus")
SECRETS = ("node.key", "split.key", "signing.key")
LEAST_MB, LITTLE_MB = 100, 1000
NOT_YET = "not looked at: {} must be mended first"


def versions(subject: Subject) -> Verdict:
    """What is installed, against what this release of fedrisk was made for."""
    try:
        needs = [Requirement(line) for line in requires("fedrisk") or []]
    except PackageNotFoundError:
        return "fail", "fedrisk is not installed as a package: pip install the wheel of the agreed release"
    wrong = []
    for need in needs:
        if need.marker is not None and not need.marker.evaluate({"extra": "node"}):
            continue
        try:
            here = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is not installed")
            continue
        if not need.specifier.contains(here, prereleases=True):
            wrong.append(f"{need.name} is {here}, not {need.specifier}")
    if wrong:
        return "fail", f"{'; '.join(wrong)}: install the agreed release again, with its requirements.txt"
    shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    return "ok", f"fedrisk {installed.version()}, {shown}, Python {sys.version.split()[0]}"


def release(subject: Subject) -> Verdict | None:
    """The installed code against the signed release that was agreed on."""
    if not isinstance(subject.facts, NodeFile):
        return None
    if subject.facts.release is None:
        return "warn", "node.toml has no [release]: the installed code was compared with nothing"
    try:
        manifest = check_installed(subject.folder, subject.facts.release)
    except ReleaseError as error:
        return "fail", str(error)
    return (
        "ok",
        f"release {manifest.version} of {manifest.created:%Y-%m-%d}, signed; the installed code is that",
    )


def node_file(subject: Subject) -> Verdict:
    """node.toml can be read."""
    if not isinstance(subject.facts, NodeFile):
        return "fail", str(subject.facts).replace("\n", "; ")
    facts = subject.facts
    return (
        "ok",
        f"{facts.name}{f', of kind {facts.kind}' if facts.kind else ''}, serves {facts.public_size:,} people",
    )


def permissions(subject: Subject) -> Verdict:
    """The folder and its secrets are for this user alone."""
    wrong = []
    for path in (subject.folder, *(subject.folder / name for name in SECRETS)):
        if not path.exists():
            continue
        status = path.stat()
        if status.st_uid != os.geteuid():
            wrong.append(f"chown {os.geteuid()} {path}")
        most = 0o700 if path.is_dir() else 0o600
        if stat.S_IMODE(status.st_mode) & ~most:
            wrong.append(f"chmod {most:o} {path}")
    if wrong:
        return "fail", f"others may read what is this node's alone: {'; '.join(wrong)}"
    return "ok", "the folder and its keys are for this user alone"


def key_files(subject: Subject) -> Verdict:
    """The keys are there and whole."""
    missing = [name for name in SECRETS if not (subject.folder / name).exists()]
    if missing:
        return (
            "fail",
            f"{', '.join(missing)} missing: `fedrisk-node init {subject.folder}` makes what is not there",
        )
    try:
        node_key(subject.folder)
    except KeyFileError as error:
        return "fail", str(error)
    for name in SECRETS[1:]:
        if (subject.folder / name).stat().st_size != 32:
            return "fail", f"{name} must hold 32 bytes: put the node's own key back from its copy"
    return "ok", "node.key, split.key and signing.key are whole"


def contract(subject: Subject) -> Verdict | None:
    """The contract can be read, and knows this agency's kind."""
    import yaml

    from models.contract import Contract, ContractError

    if not isinstance(subject.facts, NodeFile):
        return None
    path = subject.folder / subject.facts.contract
    try:
        found = Contract.from_dict(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError):
        return (
            "fail",
            f"{path} is missing or cannot be read: the contract that all agencies agreed to belongs there",
        )
    except (ContractError, yaml.YAMLError) as error:
        return "fail", f"{path.name} is not usable: {str(error).replace(chr(10), '; ')}"
    if (found.kinds and subject.facts.kind not in found.kinds) or (not found.kinds and subject.facts.kind):
        known = ", ".join(found.kinds) or "none"
        return "fail", f"node.toml says kind {subject.facts.kind!r}, the contract's kinds are {known}"
    return "ok", f"{found.name}, version {found.version}, SHA-256 {found.sha256[:16]}…"


def policy(subject: Subject) -> Verdict:
    """policy.toml can be read; what it permits."""
    rules = subject.policy
    if not isinstance(rules, Policy):
        return "fail", str(rules).replace("\n", "; ")
    if rules.simulation:
        return (
            "warn",
            "simulation = true: plans without any privacy are permitted, so no real record may be here",
        )
    lacks = [name for name in ("purposes", "models", "budget") if not getattr(rules, name)]
    if lacks:
        return "warn", f"it can be read and permits nothing yet: {', '.join(lacks)} not written"
    return "ok", f"it permits {', '.join(map(str, rules.models))} (`fedrisk-node policy show` says all)"


def data(subject: Subject) -> Verdict | None:
    """The source fits the contract; how many people it has only as a band."""
    from clients.records.datacheck import check_source

    if not isinstance(subject.facts, NodeFile):
        return None
    found = check_source(subject.folder)
    if found.problems:
        return "fail", "; ".join(found.problems)
    return "ok", "; ".join(found.facts)


def ledger(subject: Subject) -> Verdict:
    """The ledger's chain holds. (It is read from a copy: nothing is made or changed.)"""
    if not isinstance(subject.facts, NodeFile) or not isinstance(subject.policy, Policy):
        return "warn", NOT_YET.format("node.toml or policy.toml")
    if not (subject.folder / "ledger.db").exists():
        return "ok", "there is none yet: the first order makes it"
    try:
        with read_only(subject.folder, subject.facts, subject.policy) as found:
            found.verify()
            seq, chain = found.head
    except LedgerError as error:
        return "fail", str(error)
    return "ok", f"{seq:,} entries, the hash chain holds; its head is {seq} {chain[:16]}…"


def journal(subject: Subject) -> Verdict:
    """The journal's chain holds, and it tells what the ledger tells."""
    try:
        found = journals.verify(subject.folder)
        older = _with_the_ledger(subject)
    except (JournalError, LedgerError) as error:
        return "fail", str(error)
    if not found.lines:
        return "ok", "nothing has happened yet"
    said = f"{found.lines:,} lines, the hash chain holds"
    if older:
        return (
            "warn",
            f"{said}, but it begins after {older} charges of the ledger: is an older file kept elsewhere?",
        )
    return "ok", said + (", and it agrees with the ledger" if older is not None else "")


def _with_the_ledger(subject: Subject) -> int | None:
    """How many charges are older than the journal; None where the ledger cannot be looked at."""
    if not isinstance(subject.facts, NodeFile) or not isinstance(subject.policy, Policy):
        return None
    with read_only(subject.folder, subject.facts, subject.policy) as found:
        charged = [(entry.order_id, entry.at) for entry in found.entries() if entry.action == "charge"]
        return journals.against_ledger(journals.read(subject.folder), charged, found.holds)


def approvals(subject: Subject) -> Verdict | None:
    """The record of who approved what is whole, and agrees with the journal."""
    try:
        decisions = Approvals(subject.folder).verify()
        waiting = asked(subject.folder)
    except NodeError as error:
        return "fail", str(error)
    if waiting:
        return "warn", f"{len(waiting)} plans wait for a person: `fedrisk-node policy asked` lists them"
    return (
        ("ok", f"{decisions} decision{'' if decisions == 1 else 's'}, the hash chain holds")
        if decisions
        else None
    )


def panel(subject: Subject) -> Verdict | None:
    """The ethics panel whose signatures count here, and what was heard last from it."""
    from clients.scoring.approval import check_seen

    if not isinstance(subject.facts, NodeFile):
        return None
    pinned = subject.facts.panel
    if pinned is None:
        return (
            "warn",
            "node.toml pins no ethics panel: no approval can be verified, and `score` only rehearses",
        )
    try:
        check_seen(subject.folder)
    except NodeError as error:
        return "fail", str(error)
    return (
        "ok",
        f"{pinned.name}: {pinned.quorum} of {len(pinned.members)} members decide; read out to them: {pinned.fingerprint}",
    )


def disk(subject: Subject) -> Verdict:
    """There is room to write what must be written before anything may leave."""
    free = shutil.disk_usage(subject.folder).free // 10**6
    if free < LEAST_MB:
        return "fail", f"{free:,} MB are free: the node stops answering when it cannot write; make room"
    return ("warn" if free < LITTLE_MB else "ok"), f"{free:,} MB are free"


def telemetry(subject: Subject) -> Verdict:
    """Flower tells nobody that it runs."""
    on = [
        name
        for name, off in ENVIRONMENT.items()
        if name.startswith("FLWR_") and os.environ.get(name, off) != off
    ]
    if on:
        said = " and ".join(f"{name}={os.environ[name]}" for name in on)
        return (
            "warn",
            f"{said} here: `fedrisk-node start` switches it off for itself, other programs of Flower do not",
        )
    return "ok", "off: no telemetry, no look for updates"


def ports(subject: Subject) -> Verdict | None:
    """A node at work listens on no port."""
    if not at_work(subject.folder):
        return None
    try:
        process = int((subject.folder / LOCK).read_text())
        found = _listening(process)
    except (OSError, ValueError):
        return "warn", "the node's process cannot be looked at: run doctor as the node's user"
    if found:
        return (
            "fail",
            f"the node's process {process} listens on port {', '.join(map(str, found))}: stop it, and report it",
        )
    return "ok", "the node at work listens on no port: it only calls out"


def _listening(process: int) -> list[int]:
    """The TCP ports that a process of this machine listens on."""
    sockets = set()
    for handle in Path(f"/proc/{process}/fd").iterdir():
        try:
            sockets.add(os.readlink(handle))
        except OSError:  # closed meanwhile
            continue
    ports = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{process}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                ports.add(int(local.rpartition(":")[2], 16))
    return sorted(ports)
