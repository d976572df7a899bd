"""The panel's site: `make_app` puts pages.py, forms.py and the templates together. No script, and no resource from elsewhere."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from federation.panel.binding import sound_history
from federation.panel.files import read_panel
from federation.panel.refusals import REFUSALS, sentences_of
from federation.panel.site import pages
from federation.panel.site.forms import Typed, by_field, leave_draft, typed
from federation.panel.site.guard import COOKIE, SANDBOX, Session, guard, read_form
from federation.panel.site.pages import Desk, NotThere

ROOM = Path(__file__).resolve().parent
TOO_LATE = (
    "this address was used before, or is not the one that fedrisk-panel serve printed: stop the site and start it again; "
    "if it was not you who used it, find out who did"
)


def make_app(
    folder: Path, runs: Path, token: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> FastAPI:
    """The site of the panel in `folder`, over the runs directly in `runs`. `token` lets one browser in, once."""
    desk, session = Desk(folder, runs, now), Session(token)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    environment = Environment(
        loader=FileSystemLoader(ROOM / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def render(page: str, status: int = 200, **context: Any) -> HTMLResponse:
        return HTMLResponse(environment.get_template(f"{page}.html.j2").render(**context), status)

    def refuse(status: int, sentences: list[str]) -> HTMLResponse:
        return render("refused", status, sentences=sentences, known=status not in (403, 421))

    def show(page: str, make: Callable[[], dict[str, Any]], status: int = 200) -> Response:
        """A page; what is not there, or cannot be read, is said in its sentences."""
        try:
            context = make()
        except REFUSALS as error:
            return refuse(404 if isinstance(error, NotThere) else 409, sentences_of(error))
        return render(page, status, **context)

    guard(app, session, refuse)

    async def fields(request: Request) -> dict[str, list[str]]:
        return await read_form(request, session)

    Fields = Annotated[dict[str, list[str]], Depends(fields)]

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> Response:
        return refuse(error.status_code, [str(error.detail)])

    @app.exception_handler(404)
    @app.exception_handler(405)
    def nowhere(_: Request, __: Exception) -> Response:
        return refuse(404, ["there is no such page"])

    @app.get("/style.css")
    def style() -> Response:
        return Response((ROOM / "style.css").read_bytes(), media_type="text/css")

    @app.get("/enter")
    def enter(request: Request, token: str = "") -> Response:
        cookie = session.enter(token)
        if cookie is None and not session.knows(request.cookies.get(COOKIE)):
            return refuse(403, [TOO_LATE])
        response = RedirectResponse("/", 303)
        if cookie is not None:
            response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", path="/")
        return response

    @app.get("/")
    def home() -> Response:
        return show("home", lambda: pages.home(desk))

    @app.get("/runs/{name}")
    def run(name: str) -> Response:
        return show("run", lambda: pages.run(desk, name))

    def as_it_is(make: Callable[[], bytes], kind: str) -> Response:
        """A file of a run, which can do nothing whatever is written in it."""
        try:
            return Response(make(), media_type=kind, headers={"Content-Security-Policy": SANDBOX})
        except REFUSALS as error:
            return refuse(404, sentences_of(error))

    @app.get("/runs/{name}/report")
    def report(name: str) -> Response:
        return as_it_is(lambda: pages.report(desk, name), "text/html")

    @app.get("/runs/{name}/papers/{file}")
    def paper(name: str, file: str) -> Response:
        return as_it_is(lambda: pages.paper(desk, name, file), "text/plain")

    def show_form(name: str, filled: Typed, errors: dict[str, list[str]]) -> Response:
        rest = {"typed": filled, "errors": errors, "form_key": session.form_key}
        return show("decide", lambda: pages.form(desk, name) | rest, 400 if errors else 200)

    @app.get("/runs/{name}/decide")
    def form(name: str) -> Response:
        return show_form(name, Typed(), {})

    @app.post("/runs/{name}/decide")
    def decide(name: str, sent: Fields) -> Response:
        filled = typed(sent)
        try:
            place, entries = desk.place(name), sound_history(folder)
            signed = leave_draft(folder, place, entries, read_panel(folder), filled, now())
        except NotThere as error:
            return refuse(404, sentences_of(error))
        except REFUSALS as error:
            return show_form(name, filled, by_field(sentences_of(error)))
        return RedirectResponse(f"/drafts/{signed.digest[:12]}", 303)

    @app.get("/drafts/{begins}")
    def draft(begins: str) -> Response:
        try:
            found = pages.draft(desk, begins)
        except REFUSALS as error:
            return refuse(404 if isinstance(error, NotThere) else 409, sentences_of(error))
        complete = found["complete"]
        if complete is None:
            return render("draft", **found)
        decided = complete.entry.kind == "decision"
        return RedirectResponse(
            f"/decisions/{complete.entry.digest[:12]}" if decided else f"/history/{complete.seq}", 303
        )

    @app.get("/compare")
    def compare(first: str = "", second: str = "") -> Response:
        return show("compare", lambda: pages.both(desk, first, second))

    @app.get("/history")
    def history() -> Response:
        return show("history", lambda: pages.history(desk))

    @app.get("/history/{number}")
    def entry(number: str) -> Response:
        return show("entry", lambda: pages.entry(desk, number))

    @app.get("/decisions/{begins}")
    def decision(begins: str) -> Response:
        return show("decision", lambda: pages.decision(desk, begins))

    return app
