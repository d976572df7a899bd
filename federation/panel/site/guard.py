"""Who may ask the site anything: the one browser that was given the address which `serve` printed.

Everybody on this machine can reach a port of the loopback, and so can each page that a browser shows. So each request
must name this machine in `Host` (else another site's name was made to point here) and bring the cookie that the printed
token was exchanged for, once. What changes something must come from a page of this site, and bring the session's form key.
Every answer forbids scripts, frames, other sites' resources, and being kept.
"""

import logging
import re
import secrets
import threading
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Final, final
from urllib.parse import parse_qs

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

LARGEST = 1_000_000  # bytes of a form: two texts of 20,000 letters, each of them nine bytes
FIELDS = 300
COOKIE: Final = "fedrisk_panel"
OPEN = {"/enter", "/style.css"}  # what is there for whoever has no cookie yet
HERE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
POLICY = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
SANDBOX = (  # of a report, which has its style in itself: whatever is written in it, it can do nothing
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Refuse = Callable[[int, list[str]], Response]
log = logging.getLogger(__name__)


@final
class Session:
    """One browser's. `form_key` stands in each form and nowhere else."""

    def __init__(self, token: str) -> None:
        self._token: str | None = token
        self._cookie: Final = secrets.token_urlsafe(32)
        self._lock: Final = threading.Lock()
        self.form_key: Final = secrets.token_urlsafe(32)

    def enter(self, token: str) -> str | None:
        """The cookie, for whoever brings the token first; None for everybody else."""
        with self._lock:
            if self._token is None or not _same(token, self._token):
                return None
            self._token = None
        return self._cookie

    def knows(self, cookie: str | None) -> bool:
        """Whether it is the browser that was let in."""
        return cookie is not None and _same(cookie, self._cookie)


def guard(app: FastAPI, session: Session, refuse: Refuse) -> None:
    """Let nobody in but the session's browser; what goes wrong inside is logged here and not told there."""

    @app.middleware("http")
    async def only_one_browser(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _why_not(request, session)
        try:
            response = await go_on(request) if refused is None else refuse(*refused)
        except Exception:
            log.exception("a page could not be made")
            response = refuse(
                500, ["this page could not be made: what went wrong stands where the site was started"]
            )
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response


def _why_not(request: Request, session: Session) -> tuple[int, list[str]] | None:
    host = request.headers.get("host", "")
    if HERE.fullmatch(host) is None:
        return 421, ["this site answers to the name of this machine alone: open the address that was printed"]
    if request.url.path not in OPEN and not session.knows(request.cookies.get(COOKIE)):
        return 403, [
            "this browser was not let in: open the address that fedrisk-panel serve printed, in one browser, once",
            "where it was opened before, stop the site and start it again: it prints a new one",
        ]
    if request.method in ("GET", "HEAD"):
        return None
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    hidden = {"null"} if site else set()  # what a browser says under no-referrer
    if site not in (None, "same-origin") or origin not in {None, f"http://{host}"} | hidden:
        return 403, ["a form of another site was sent here: nothing was done"]
    return None


async def read_form(request: Request, session: Session) -> dict[str, list[str]]:
    """The fields of a form of this site; `HTTPException` where it is too large, no form, or of another session."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "this is not a form of this site: nothing was done")
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > LARGEST:
            raise HTTPException(413, "this is more text than a decision has: nothing was done")
    try:
        fields = parse_qs(
            content.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS
        )
    except ValueError:
        raise HTTPException(400, "this form cannot be read: nothing was done") from None
    if not _same("".join(fields.pop("form_key", [])), session.form_key):
        raise HTTPException(
            403, "this form is of another session: go back to the run, and fill it in again; nothing was done"
        )
    return fields


def _same(one: str, other: str) -> bool:
    return compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())
