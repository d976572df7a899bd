"""What `doctor` checks of the line to the SuperLink: always as the node itself calls out, never the other way."""

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from cryptography import x509

from clients.desk.doctor_subject import Subject, Verdict
from clients.flower.link import Link, LinkError
from clients.folder import SuperLinkFile
from clients.keys import KeyFileError, node_key
from clients.service import at_work

FAST, SLOW = timedelta(seconds=5), timedelta(seconds=305)  # what a SuperLink of Flower 1.41 takes
SOON = timedelta(days=30)
BEFORE = "not tried: the line above must be mended first"


def proxy(subject: Subject) -> Verdict | None:
    """Which proxy the node's connection takes: httpx, under Flower, reads the environment."""
    if subject.superlink is None:
        return None
    host = subject.superlink.address.rpartition(":")[0].strip("[]")
    name = "http" if subject.superlink.insecure else "https"
    proxies = getproxies_environment()
    found = proxies.get(name) or proxies.get("all")
    if not found:
        return "ok", "none: the node calls out directly"
    shown = urlsplit(found if "//" in found else f"//{found}")
    where = (
        f"{shown.hostname}:{shown.port}" if shown.port else str(shown.hostname)
    )  # never its user and password
    if proxy_bypass(host):
        return "ok", f"NO_PROXY lists {host}: the node calls out directly, not through {where}"
    return (
        "warn",
        f"{where}, from {name.upper()}_PROXY: it must pass {subject.superlink.address} through unopened",
    )


def connection(subject: Subject) -> Verdict:
    """TCP, and TLS with the CA that node.toml names."""
    if subject.superlink is None:
        return "fail", "node.toml has no [superlink] that can be read: write its address and certificate"
    reached = subject.reached
    assert reached is not None  # noqa: S101 - there is a superlink
    if reached.trouble:
        return "fail", reached.trouble
    if subject.superlink.insecure:
        return (
            "warn",
            f"{subject.superlink.address} answers, without TLS: on this machine alone, and only to try things",
        )
    return "ok", f"{subject.superlink.address} answers over {reached.protocol}, its certificate checks"


def certificate(subject: Subject) -> Verdict | None:
    """How long the server's certificate and the CA's last."""
    if subject.superlink is None or subject.superlink.insecure:
        return None
    reached = subject.reached
    if reached is None or reached.expires is None:
        return "warn", BEFORE
    ends = {"the SuperLink's certificate": reached.expires} | _ca(subject, subject.superlink)
    what, first = min(ends.items(), key=lambda each: each[1])
    left = first - datetime.now(UTC)
    if left < SOON:
        return (
            "warn",
            f"{what} ends in {left.days} days, on {first:%Y-%m-%d}: ask the coordinator for a new one",
        )
    return "ok", f"{what} is the first to end: in {left.days} days, on {first:%Y-%m-%d}"


def _ca(subject: Subject, superlink: SuperLinkFile) -> dict[str, datetime]:
    if superlink.certificate is None:
        return {}
    found = x509.load_pem_x509_certificates((subject.folder / superlink.certificate).read_bytes())
    return {"the CA's certificate": min(each.not_valid_after_utc for each in found)}


def clock(subject: Subject) -> Verdict | None:
    """This machine's clock against the SuperLink's, which refuses a signature of another time."""
    if subject.superlink is None:
        return None
    reached = subject.reached
    if reached is None or reached.trouble:
        return "warn", BEFORE
    if reached.ahead is None:
        return "warn", "the SuperLink's answer has no date to compare with"
    seconds = reached.ahead.total_seconds()
    said = f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the SuperLink's"
    if reached.ahead > FAST or reached.ahead < -SLOW:
        return (
            "fail",
            f"this machine's clock is {said}, and signatures would be refused: set it (chrony, timedatectl)",
        )
    if reached.ahead < -FAST:
        return "warn", f"this machine's clock is {said}: beyond 305 s signatures are refused; set it"
    return "ok", f"within {FAST.seconds} s of the SuperLink's"


def enrolment(subject: Subject) -> Verdict | None:
    """Whether the SuperLink lets this node's key in."""
    if subject.superlink is None:
        return None
    if subject.reached is None or subject.reached.trouble:
        return "warn", BEFORE
    if at_work(subject.folder):
        return "ok", "a node is at work here, so the line is its own: log/node.log says how it fares"
    superlink = subject.superlink
    ca = None if superlink.certificate is None else subject.folder / superlink.certificate
    try:
        link = Link(superlink.address, node_key(subject.folder), certificate=ca, insecure=superlink.insecure)
    except (LinkError, KeyFileError) as error:
        return "fail", str(error)
    try:
        with link.connected():
            return "ok", "the SuperLink knows this node's key and let it in"
    except LinkError as error:
        return "fail", str(error)
    finally:
        link.close()
