"""The panel's site as a browser without scripts sees it: who is let in, what a form makes, what a hostile file can do."""

import copy
import html
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_result import SECRET, fake_result
from hypothesis import given
from hypothesis import strategies as st
from sites import client, serving
from test_panel_cli import GATES, SAYS, Desk, flip, make_desk, panel, write_run
from test_report import contrast, leaked

from federation.panel import cli
from federation.panel.history import read
from federation.panel.papers import PAPERS
from federation.panel.signing import drafts
from federation.panel.site.comparing import MORE, NOISE, compare, difference, verdict
from federation.panel.site.guard import COOKIE, LARGEST
from federation.panel.svg import Mark

AT = datetime.now(UTC).replace(microsecond=0)
FORM = {
    "verdict": "approve_with_conditions",
    "rationale": "it finds people early",
    "dissent": "none",
    "owner": "head of safeguarding",
    "conditions": "training = every case worker is trained\r\n\r\ndpia=signed",
    "rereferral": "AUC below 0.70\r\na complaint is upheld",
    "days": "30",
    "capacity": "20",
    "agencies": ["northgate-police", "st-anne-health"],
    "local_recalibration": "yes",
    "audit": "",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return make_desk(tmp_path_factory.mktemp("made"))


@pytest.fixture
def desk(made: Desk, tmp_path: Path) -> Desk:
    return Desk(shutil.copytree(made.home, tmp_path / "desk"))


@pytest.fixture
def address(desk: Desk) -> Iterator[str]:
    """What `serve` prints. The runs are the folders beside the panel's."""
    with serving(desk.folder, desk.home, lambda: AT) as found:
        yield found


@pytest.fixture
def site(address: str) -> Iterator[httpx.Client]:
    """The browser that was let in."""
    with client(address) as found:
        assert found.get(address).status_code == 200
        yield found


def words(page: str) -> str:
    """A page's text."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def form_key(site: httpx.Client) -> str:
    found = re.search(r'name="form_key" value="([^"]+)"', site.get("/runs/early-help-1/decide").text)
    assert found is not None
    return found[1]


def send(site: httpx.Client, run: str = "early-help-1", **changes: Any) -> Any:
    filled = FORM | changes
    if "form_key" not in filled:
        filled["form_key"] = form_key(site)
    return site.post(f"/runs/{run}/decide", data={k: v for k, v in filled.items() if v is not None})


def untouched(desk: Desk) -> bool:
    return (
        not drafts(desk.folder)[0] and len(read(desk.folder)) == 1 and not (desk.run / "gates.json").exists()
    )


# --- who is let in --------------------------------------------------------------------------------------------

PAGES = (
    "/",
    "/runs/early-help-1",
    "/runs/early-help-1/report",
    "/runs/early-help-1/decide",
    "/compare",
    "/history",
)


def test_a_token_lets_one_browser_in_once(address: str) -> None:
    with client(address) as first, client(address) as second:
        assert second.get("/enter?token=another").status_code == 403
        entered = first.get(address, follow_redirects=False)
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert re.fullmatch(
            rf"{COOKIE}=[\w-]{{43}}; HttpOnly; Path=/; SameSite=strict", entered.headers["set-cookie"]
        )
        late = second.get(address)
        assert late.status_code == 403
        assert "used before" in late.text
        assert "set-cookie" not in late.headers
        assert first.get("/").status_code == 200
        assert first.get(address).status_code == 200, "the browser that is in comes home"
        assert second.get("/").status_code == 403


def test_nothing_is_shown_to_whoever_was_not_let_in(address: str) -> None:
    with client(address) as stranger:
        for path in (*PAGES, "/nowhere", "/drafts/12345678", "/decisions/12345678", "/history/1"):
            for cookie in (None, "", "guess", "é"):
                headers = {} if cookie is None else {"cookie": f"{COOKIE}={cookie}".encode()}
                found = stranger.get(path, headers=headers)
                assert found.status_code == 403
                assert "was not let in" in found.text
                assert "Panel of the North" not in found.text
                assert stranger.post(path, data=FORM, headers=headers).status_code == 403


def test_a_name_that_was_made_to_point_here_gets_nothing(site: httpx.Client) -> None:
    for host in (
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "10.0.0.7:8765",
        "",
    ):
        found = site.get("/", headers={"host": host})
        assert found.status_code == 421
        assert "Panel of the North" not in found.text
    for own in ("localhost:1", "[::1]:8765", "127.0.0.1"):
        assert site.get("/", headers={"host": own}).status_code == 200


def test_every_answer_forbids_scripts_frames_and_copies(site: httpx.Client) -> None:
    paths = [*PAGES, "/style.css", "/nowhere", "/runs/none", "/history/99", "/enter?token=x"]
    for path in paths:
        headers = site.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith(("default-src 'none'", "sandbox; default-src 'none'"))
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
    assert site.get("/runs/early-help-1/report").headers["content-security-policy"].startswith("sandbox;")


def test_pages_hold_no_script_and_nothing_from_elsewhere(desk: Desk, site: httpx.Client) -> None:
    desk.decide(*("--verdict", "reject", "--rationale", "r", "--dissent", "none", "--owner", "o"))
    send(site)
    (waiting,) = drafts(desk.folder)[0]
    decision = read(desk.folder)[-1].entry.digest
    more = (f"/drafts/{waiting[1].digest[:12]}", f"/decisions/{decision}", "/history/1", "/runs/none")
    compared = "/compare?first=early-help-1&second=early-help-1"
    for path in (*[path for path in PAGES if not path.endswith("report")], *more, compared):
        page = site.get(path).text
        assert not re.search(r"<script|<img|<iframe|<object|javascript:|style=|\son\w+=", page), path
        assert set(re.findall(r'(?:href|src|action)="([^"/#][^"]*)"', page)) == set(), path
        assert page.count("<h1>") == 1, path
        ids = re.findall(r'\sid="([^"]*)"', page)
        assert len(ids) == len(set(ids)), path
        levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in pairwise(levels)), f"{path}: a heading level is skipped"
        for target in re.findall(r'(?:for|href)="#?([^"/]*)"', page):
            assert not target or target in ids, f"{path}: {target}"
        for described in re.findall(r'aria-describedby="([^"]*)"', page):
            assert set(described.split()) <= set(ids), path
        fields = re.findall(r'<(?:input|textarea|select)\b(?![^>]*hidden)[^>]*\sid="([^"]*)"', page)
        assert set(fields) <= set(re.findall(r'<label for="([^"]*)"', page)), path
        assert len(fields) == len(re.findall(r"<(?:input|textarea|select)\b(?![^>]*hidden)", page))


# --- a form ---------------------------------------------------------------------------------------------------


def test_a_form_makes_exactly_what_decide_makes(
    desk: Desk, site: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = send(site)
    assert sent.status_code == 200
    ((path, signed),) = drafts(desk.folder)[0]
    assert not signed.signatures
    gates = (desk.run / "gates.json").read_bytes()
    path.unlink()

    monkeypatch.setattr(cli, "now", lambda: AT)
    says = [
        "--verdict",
        "approve_with_conditions",
        "--rationale",
        "it finds people early",
        "--dissent",
        "none",
    ]
    says += [
        "--owner",
        "head of safeguarding",
        "--expires",
        "30",
        "--limit-capacity",
        "20",
        "--local-recalibration",
    ]
    for option, values in {
        "--condition": ["training=every case worker is trained", "dpia=signed"],
        "--rereferral": ["AUC below 0.70", "a complaint is upheld"],
        "--limit-agency": FORM["agencies"],
    }.items():
        says += [word for value in values for word in (option, value)]
    desk.must("decide", desk.run, *says, *desk.key("alice"), "--yes")
    ((_, typed),) = drafts(desk.folder)[0]
    assert signed.statement == typed.statement
    assert (desk.run / "gates.json").read_bytes() == gates


def test_a_draft_is_signed_by_the_commands_that_its_page_shows(desk: Desk, site: httpx.Client) -> None:
    page = send(site).text
    assert "0 of 2 have signed" in words(page)
    shown = [
        html.unescape(each) for each in re.findall(r'<pre class="command" tabindex="0">(.*?)</pre>', page)
    ]
    assert len(shown) == 3
    for line in shown[:2]:
        _, command, digits, _, run, _, key, _, folder = line.split()
        done = panel(
            command,
            digits,
            "--run",
            run,
            "--key",
            key.replace("=", f"={desk.home}/"),
            "--folder",
            folder,
            "--yes",
        )
        assert done.code == 0, done.err
    assert len(read(desk.folder)) == 2
    (decision,) = [entry.entry for entry in read(desk.folder) if entry.entry.kind == "decision"]
    home = words(site.get("/").text)
    assert "approved with conditions" in home
    assert "sign that the condition training is met, once it is: every case worker is trained" in home
    assert "sign that it is in force: without that no agency uses it" in home
    after = site.get(f"/drafts/{decision.digest[:12]}")
    assert after.url.path == f"/decisions/{decision.digest[:12]}"
    text = words(after.text)
    assert "Waits for training, dpia" in text
    assert f"fedrisk-panel met {decision.digest[:12]} training --evidence TEXT --key NAME=FILE" in text


REFUSED = [
    ({"verdict": None}, "verdict", "verdict must not be empty"),
    ({"verdict": "maybe"}, "verdict", "verdict should be"),
    ({"rationale": " \r\n "}, "rationale", "rationale must not be empty"),
    ({"rationale": "x" * 20_001}, "rationale", "at most 20000 characters"),
    ({"owner": ""}, "owner", "owner must not be empty"),
    ({"dissent": ""}, "dissent", "dissent must not be empty"),
    ({"conditions": ""}, "conditions", "conditions belong to approve_with_conditions"),
    ({"conditions": "trained"}, "conditions", "must be NAME=VALUE, got 'trained'"),
    ({"conditions": "a=b\na=c"}, "conditions", "the same name is there twice (a)"),
    ({"conditions": "Not A Slug = x"}, "conditions", "must be small letters"),
    ({"rereferral": "\r\n"}, "rereferral", "what brings the model back"),
    ({"days": "91"}, "days", "must be from 1 to the 90 days of panel.toml, got 91"),
    ({"days": "0"}, "days", "must be from 1 to the 90 days"),
    ({"days": "-5"}, "days", "must be a whole number"),
    ({"capacity": "many"}, "capacity", "must be a whole number"),
    ({"capacity": "0"}, "capacity", "greater than or equal to 1"),
    ({"agencies": ["../etc"]}, "agencies", "limits.agencies.0"),
    ({"audit": "../../alice.key"}, "audit", "is not in"),
]


def test_a_refusal_is_said_at_its_field_and_what_was_typed_stays(desk: Desk, site: httpx.Client) -> None:
    key = form_key(site)
    for changes, field, says in REFUSED:
        done = send(site, form_key=key, **changes)
        assert done.status_code == 400
        error = re.search(rf'<p class="error" id="{field}-error">(.*?)</p>', done.text, re.DOTALL)
        assert error is not None, words(done.text)[:600]
        assert says in html.unescape(error[1])
        assert re.search(rf'aria-invalid="true" aria-describedby="[^"]*{field}-error"', done.text)
        kept = FORM | changes
        for name in ("rationale", "dissent", "owner", "days", "capacity"):
            assert html.escape(str(kept[name]).replace("\r\n", "\n").strip(), quote=True) in done.text
        assert "<title>Not drafted" in done.text
        assert untouched(desk)


def test_a_form_of_another_session_or_site_does_nothing(desk: Desk, site: httpx.Client) -> None:
    key = form_key(site)
    for other_key in (None, "", key[:-1], [key, key], "é"):
        assert send(site, form_key=other_key).status_code == 403
    post = "/runs/early-help-1/decide"
    data = FORM | {"form_key": key}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert site.post(post, data=data, headers=headers).status_code == 403
    with serving(desk.folder, desk.home, lambda: AT) as another, client(another) as other:
        other.get(another)
        assert other.post(post, data=data).status_code == 403, "its form key is another"
    assert untouched(desk)
    hidden = {"origin": "null", "sec-fetch-site": "same-origin"}  # as browsers say it under no-referrer
    assert site.post(post, data=data, headers=hidden).status_code == 200
    for path, _ in drafts(desk.folder)[0]:
        path.unlink()
    own = {"origin": str(site.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    assert site.post(post, data=data, headers=own).status_code == 200


def test_what_is_no_form_is_refused_unread(desk: Desk, site: httpx.Client) -> None:
    key, post = form_key(site), "/runs/early-help-1/decide"
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert site.post(post, json=FORM).status_code == 415
    assert site.post(post, files={"rationale": b"x"}).status_code == 415
    assert site.post(post, content=b"x" * (LARGEST + 1), headers=kind).status_code == 413
    assert site.post(post, content=b"&".join([b"a=1"] * 400), headers=kind).status_code == 400
    assert (
        site.post(post, content=f"form_key={key}&rationale=%FF%FE".encode(), headers=kind).status_code == 400
    )
    assert site.post(post, content=b"form_key=\xff", headers=kind).status_code == 400
    assert site.post("/", data=FORM).status_code == 404
    assert untouched(desk)


def test_a_model_that_failed_a_gate_can_be_rejected_and_not_approved(desk: Desk, site: httpx.Client) -> None:
    write_run(desk.home / "b", desk.register("strict", gates=GATES | {"auc": 0.99}))
    assert "It cannot be approved as it is" in words(site.get("/runs/b/decide").text)
    done = send(site, "b", verdict="approve", conditions="")
    assert done.status_code == 400
    assert "a model that failed a gate cannot be approved" in words(done.text)
    assert not drafts(desk.folder)[0]
    assert send(site, "b", verdict="reject", conditions="", days="").status_code == 200
    assert drafts(desk.folder)[0][0][0].name.startswith("decision-")


def test_a_draft_leaves_gates_that_a_decision_binds_as_they_are(desk: Desk, site: httpx.Client) -> None:
    audit = desk.run / "audit.json"
    audit.write_text(json.dumps({"schema": 1, "ok": True, "attacks": []}))
    reject = ("--verdict", "reject", "--rationale", "r", "--dissent", "none", "--owner", "o")
    desk.must("decide", desk.run, *reject, "--audit", audit, *desk.both)
    before = (desk.run / "gates.json").read_bytes()
    done = send(site, verdict="reject", conditions="", days="")
    assert done.status_code == 400
    assert "this draft would change it" in words(done.text)
    assert (desk.run / "gates.json").read_bytes() == before
    assert send(site, verdict="reject", conditions="", days="", audit="audit.json").status_code == 200
    assert (desk.run / "gates.json").read_bytes() == before


def test_an_unregistered_run_has_no_form(desk: Desk, site: httpx.Client) -> None:
    write_run(desk.home / "research", None)
    assert "/runs/research/decide" not in site.get("/runs/research").text
    for done in (site.get("/runs/research/decide"), send(site, "research")):
        assert done.status_code >= 400
        assert "without a registration: it is for research only" in words(done.text)


# --- files that are hostile or damaged --------------------------------------------------------------------------

ORDINARY = (
    "a b body br button caption code dd div dl dt fieldset footer form h1 h2 h3 head header html input label legend li "
    "link main meta nav ol option p pre select span strong table tbody td textarea th thead title tr ul"
)
HARMLESS = (
    "action aria-current aria-describedby aria-invalid aria-label autocomplete autofocus charset checked class colspan "
    "content for href id inputmode lang method name rel role rows scope selected tabindex type value"
)
PROBE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Tags(HTMLParser):
    """Which tags and attributes a browser would see, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(value: Any) -> Any:
    """Every text, the names of things included, is an attack."""
    if isinstance(value, dict):
        return {PROBE if key in ("sex", "age band") else key: hostile(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return PROBE if isinstance(value, str) else value


def test_a_hostile_result_is_inert(desk: Desk, site: httpx.Client) -> None:
    result = json.loads((desk.run / "result.json").read_text())
    kept = {name: result[name] for name in ("registration", "final")}
    for name in (f"{PROBE[:20].replace('/', '')}", "b"):
        run = write_run(desk.home / name, None)
        changed = hostile({k: v for k, v in result.items() if k not in kept})
        changed["agencies"] = {PROBE: next(iter(result["agencies"].values()))}
        (run / "result.json").write_text(json.dumps(changed | {"final": hostile(result["final"])}))
    for path in (
        "/",
        "/runs/b",
        "/compare?first=early-help-1&second=b",
        "/compare?first=b&second=%3Cscript%3E",
    ):
        page = Tags(site.get(path).text)
        assert page.tags <= set(ORDINARY.split()), path
        assert page.attributes <= set(HARMLESS.split()), path
        if not path.endswith("script%3E"):
            assert "<script>alert(1)</script>" in page.text, path
            assert "{{ 7 * 7 }}" in page.text, path


def test_a_hostile_report_can_do_nothing_from_its_sandbox(desk: Desk, site: httpx.Client) -> None:
    (desk.run / "report.html").write_text(f"<h1>{PROBE}</h1><form action='http://evil.example'>")
    found = site.get("/runs/early-help-1/report")
    assert found.content == (desk.run / "report.html").read_bytes(), "what a decision binds is what is read"
    policy = dict(
        each.strip().partition(" ")[::2] for each in found.headers["content-security-policy"].split(";")
    )
    assert policy == {
        "sandbox": "",
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    assert "report.html is not the report of result.json" in words(site.get("/runs/early-help-1").text)


def test_the_papers_of_a_run_are_shown_as_text_and_no_other_file_is(desk: Desk, site: httpx.Client) -> None:
    (desk.run / "atrs.json").write_text(json.dumps({"tier_1": PROBE}))
    (desk.run / "notes.txt").write_text("not for this site")
    page = site.get("/runs/early-help-1").text
    names = ["result.json", *(name for name in PAPERS if name != "report.html")]
    assert re.findall(r"papers/([a-z.-]+)", page) == names
    (desk.run / "evidence.json").unlink()
    (desk.run / "model-card.json").unlink()
    page = site.get("/runs/early-help-1").text
    assert re.findall(r"papers/([a-z.-]+)", page) == ["result.json", "atrs.json"]
    found = site.get("/runs/early-help-1/papers/atrs.json")
    assert found.content == (desk.run / "atrs.json").read_bytes()
    assert found.headers["content-type"].startswith("text/plain")
    assert found.headers["content-security-policy"].startswith("sandbox;")
    for name in (
        "notes.txt",
        "evidence.json",
        "gates.json",
        "model%2Fcard.json",
        "..%2Falice.key",
        "%2Fetc%2Fpasswd",
    ):
        assert site.get(f"/runs/early-help-1/papers/{name}").status_code == 404, name


def test_only_folders_directly_under_the_runs_are_runs(
    desk: Desk, site: httpx.Client, tmp_path_factory: Any
) -> None:
    outside = write_run(tmp_path_factory.mktemp("outside") / "secret-run", None)
    (desk.home / "link").symlink_to(outside, target_is_directory=True)
    write_run(desk.home / "group" / "inner", None)
    up = f"..%2F{outside.parent.name}%2Fsecret-run"
    names = [
        "link",
        "group",
        "group%2Finner",
        up,
        "..",
        "%2e%2e",
        "%2e%2e%2f%2e%2e",
        "panel",
        "none",
        "%00",
        "a%0Ab",
        ".",
    ]
    where = str(site.base_url).rstrip("/").removeprefix("http://")
    for name in names:
        for page in ("", "/report", "/decide"):  # as it is written: httpx would take the dots away
            line = HTTPConnection(where, timeout=20)
            line.request("GET", f"/runs/{name}{page}", headers={"Cookie": f"{COOKIE}={site.cookies[COOKIE]}"})
            found = line.getresponse()
            assert found.status == 404, (name, page)
            assert b"early-help" not in found.read()
            line.close()
    assert site.get(f"/compare?first=early-help-1&second={up}").status_code == 404
    listed = re.findall(r'href="/runs/([^"/]+)"', site.get("/").text)
    assert listed == ["early-help-1"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "null", '{"a": NaN}', '{"agencies": 3, "privacy": []}', "[" * 10**5]
)
def test_a_damaged_result_is_a_sentence(desk: Desk, site: httpx.Client, content: str) -> None:
    (desk.run / "result.json").write_text(content)
    write_run(desk.home / "whole", None)
    home = site.get("/")
    assert home.status_code == 200
    assert "for research: not registered" in words(home.text), "the other run is listed all the same"
    for path in (
        "/runs/early-help-1",
        "/runs/early-help-1/decide",
        "/compare?first=whole&second=early-help-1",
    ):
        found = site.get(path)
        assert found.status_code in (200, 409), path
        assert "Traceback" not in found.text
    assert site.get("/runs/early-help-1/decide").status_code == 409


def test_a_damaged_history_is_a_sentence_and_nothing_is_built_on_it(desk: Desk, site: httpx.Client) -> None:
    desk.approved()
    assert "in force" in words(site.get("/").text)
    flip(desk.folder / "history.jsonl")
    home = site.get("/")
    assert home.status_code == 200
    assert "is not as it was written" in words(home.text)
    assert "in force" not in words(home.text).replace("Files in", "")
    for path in (
        "/history",
        "/history/1",
        "/runs/early-help-1",
        "/runs/early-help-1/decide",
        "/drafts/12345678",
    ):
        found = site.get(path)
        assert found.status_code in (404, 409)
        assert "is not as it was written" in words(found.text), path


def test_what_verify_finds_stands_at_home(desk: Desk, site: httpx.Client) -> None:
    desk.approved()
    assert "each run that was decided on is what was decided on" in words(site.get("/").text)
    flip(desk.run / "report.html")
    said = words(site.get("/").text)
    assert "report.html is not what decision" in said
    assert "each run that was decided on is what was decided on" not in said
    (desk.folder / "panel.toml").write_text("name = [")
    assert site.get("/").status_code == 409
    assert "panel.toml is not TOML" in words(site.get("/").text)


def test_an_error_that_nobody_foresaw_is_not_told(
    site: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr("federation.panel.site.pages.home", broken)
    found = site.get("/")
    assert found.status_code == 500
    assert "secret" not in found.text
    assert "Traceback" not in found.text
    assert found.headers["content-security-policy"].startswith("default-src 'none'")
    assert "a secret path" in caplog.text


def test_pages_are_read_afresh(desk: Desk, site: httpx.Client) -> None:
    assert "The panel has decided nothing yet" in words(site.get("/").text)
    decision = desk.approved()
    assert "in force" in words(site.get("/").text)
    desk.must("suspend", decision, "--reason", "drift", *desk.key("alice"), "--yes")
    page = words(site.get(f"/decisions/{decision}").text)
    assert "Suspended" in page
    assert "drift" in page
    assert "fedrisk-panel status" not in page, "no word brings it back"
    assert "fedrisk-panel deliver" in page
    assert "decision: the panel approved it" not in words(site.get("/history").text)
    assert len(re.findall(r'href="/history/\d+"', site.get("/history").text)) == 4


def test_how_long_a_thing_stands_is_by_the_clock_that_was_given(desk: Desk) -> None:
    desk.approved()
    at = AT
    with serving(desk.folder, desk.home, lambda: at) as address, client(address) as site:
        site.get(address)
        for days, stands, waits in [
            (1, "in force", "What waits for signatures Nothing."),
            (6, "in force", "sign again that it is in force: the last word ends on"),
            (8, "its status has ended", "sign again that it is in force: the last word ended on"),
            (91, "expired", "What waits for signatures Nothing."),
        ]:
            at = AT + timedelta(days=days)
            page = words(site.get("/").text)
            assert f"approved {stands}" in page
            assert waits in page


# --- two runs side by side ------------------------------------------------------------------------------------


ENDS = st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))


@given(ENDS, ENDS)
def test_a_difference_turned_round_is_its_negative_and_none_is_noise(one: Any, other: Any) -> None:
    first, second = (Mark(value, value - below, value + above) for value, below, above in (one, other))
    there, back = difference(first, second), difference(second, first)
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))  # type: ignore[operator]
    assert verdict(first, second) == verdict(second, first)
    assert verdict(first, first) == NOISE
    assert "cannot be said" in verdict(first, None)
    assert "cannot be said" in verdict(Mark(0.1), second)
    widths = [mark.high - mark.low for mark in (first, second, there)]  # type: ignore[operator]
    assert max(widths[:2]) - 1e-9 <= widths[2] <= sum(widths[:2]) + 1e-9


def test_the_interval_of_a_difference_covers_it() -> None:
    """Of two shares with Wilson's intervals, which are not symmetric: 95% of the time, in 4,000 draws each."""
    rng, z = np.random.default_rng(5), 1.959964
    for n, p, m, q in ((60, 0.05, 80, 0.2), (400, 0.5, 300, 0.55), (50, 0.9, 50, 0.9)):
        inside = 0
        for a, b in zip(rng.binomial(n, p, 4000), rng.binomial(m, q, 4000), strict=True):
            marks = []
            for hits, size in ((a, n), (b, m)):
                share, weight = hits / size, z * z / size
                middle = (share + weight / 2) / (1 + weight)
                half = z / (1 + weight) * np.sqrt(share * (1 - share) / size + weight / (4 * size))
                marks.append(Mark(share, middle - half, middle + half))
            found = difference(*marks)
            inside += found.low <= q - p <= found.high  # type: ignore[operator]
        assert inside / 4000 > 0.94


def test_two_runs_differ_in_what_was_set_otherwise_and_in_nothing_else() -> None:
    result = fake_result()
    assert compare(result, result)["settings"] == []
    assert {row[-1] for row in compare(result, result)["measures"]} == {NOISE}
    other = result | {"seed": 8, "strategy": result["strategy"] | {"momentum": 0.5}}
    other["privacy"] = result["privacy"] | {"epsilon_busiest": 9.0, "noise_multiplier": 1.0}
    found = compare(result, other)
    assert {(name, one, two) for name, one, two in found["settings"]} == {
        ("seed", "7", "8"),
        ("strategy.momentum", "0.9", "0.5"),
        ("privacy.noise_multiplier", "1.9", "1.0"),
    }
    assert found["costs"][0] == (
        "the agency that gave most",
        ["3.00 (95.3 in 100)", "9.00 (more than 99.9 in 100)"],
    )
    worse = copy.deepcopy(result)
    auc = worse["final"]["metrics"]["overall"]["auc"]
    auc |= {name: auc[name] - 0.2 for name in ("value", "low", "high")}
    (row,) = [row for row in compare(result, worse)["measures"] if row[-1] == MORE]
    assert row[0] == "Ranking"
    assert row[4].text == "-0.200"
    assert compare(result, fake_result() | {"purpose": "another"})["cautions"] == [
        "The two runs have different purposes."
    ]


def test_what_may_not_be_shown_is_not_shown_beside_another(desk: Desk, site: httpx.Client) -> None:
    result = json.loads((desk.run / "result.json").read_text())
    for estimate in result["final"]["metrics"]["overall"].values():
        estimate |= {"value": SECRET[0], "low": SECRET[1], "high": SECRET[2], "publishable": False}
    write_run(desk.home / "b", None, final=result["final"])
    page = site.get("/compare?first=early-help-1&second=b").text
    assert leaked(page) == []
    assert "cannot be said: one of them is not shown" in page
    assert leaked(site.get("/runs/b").text) == []


def test_the_site_looks_like_the_report_and_has_its_contrast() -> None:
    room = Path(cli.__file__).parent
    style, report = (
        (room / "site" / "style.css").read_text(),
        (room / "templates" / "style.css.j2").read_text(),
    )
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", style))
    assert colours.items() <= dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", report)).items()
    for family in re.findall(r"(?:font|font-family): ([^;]*serif);", style):
        assert family in report
    written = set(re.findall(r"(?<![-a-z])color: var\(--([a-z]+)\)", style))
    grounds = set(re.findall(r"background: var\(--([a-z]+)\)", style))
    assert (written, grounds) == (
        {"ink", "soft", "accent", "alarm", "paper"},
        {"paper", "card", "note", "warn", "accent"},
    )
    for text, ground in itertools.product(written - {"paper"}, grounds - {"accent"}):
        assert contrast(colours[text], colours[ground]) >= 4.5, f"{text} on {ground}"
    assert contrast(colours["paper"], colours["accent"]) >= 4.5
    assert all(contrast(colours[line], colours["paper"]) >= 3 for line in ("soft", "mid", "accent", "alarm"))
    assert not re.findall(r"(?:color|fill|stroke|background): ?#|url\(|@import", style)


# --- the commands ---------------------------------------------------------------------------------------------


def test_serve_prints_an_address_and_stops_when_it_is_told_to(desk: Desk) -> None:
    command = [sys.executable, "-m", "federation.panel.cli", "serve", "--port", "0"]
    command += ["--folder", str(desk.folder), "--runs", str(desk.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            word, address = server.stdout.readline().split()
            assert word == "open"
            assert "Ctrl-C stops it" in server.stdout.readline()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/enter\?token=[\w-]{43}", address)
            with client(address) as site:
                assert "Panel of the North" in site.get(address).text
                assert site.get("/history").status_code == 200
        finally:
            server.send_signal(signal.SIGINT)
            _, err = server.communicate(timeout=30)
    assert server.returncode == 0, err
    assert err == "", "no log has the address in it"


def test_serve_says_what_is_wrong(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words_, says in [
            (("--host", "192.0.2.1"), "--host must be 127.0.0.1, localhost or ::1"),
            (("--host", "panel.example.org"), "ssh -L 8765:127.0.0.1:8765"),
            (("--port", str(taken.getsockname()[1])), "cannot be had"),
            (("--port", "0", "--runs", str(desk.home / "none")), "is no folder"),
        ]:
            done = desk.does("serve", *words_)
            assert done.code == 1
            assert says in done.err
    done = panel("serve", "--port", "0", "--folder", desk.home, "--runs", desk.home)
    assert "fedrisk-panel init" in done.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = desk.does("serve")
    assert done.code == 1
    assert "pip install 'fedrisk[panel]'" in done.err


def test_report_writes_a_runs_report_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    report = desk.run / "report.html"
    before = report.read_bytes()
    report.unlink()
    done = desk.must("report", desk.run, "--open")
    assert done.out.splitlines() == [f"wrote   {desk.run / name}" for name in PAPERS]
    assert report.read_bytes() == before
    assert opened == [report.as_uri()]
    desk.must("report", desk.run, "--out", desk.home / "copies" / "new")
    assert (desk.home / "copies" / "new" / "report.html").read_bytes() == before
    flip(report)
    assert panel("report", desk.run, "--folder", desk.home / "no-panel").code == 0, (
        "a data scientist has none"
    )
    assert report.read_bytes() == before
    (desk.run / "result.json").write_text('{"agencies": 3}')
    for place in (desk.run, desk.home):
        done = desk.does("report", place, "--out", desk.home / "more")
        assert done.code == 1
        assert "result.json" in done.err
    assert not (desk.home / "more").exists()


def test_a_report_that_a_decision_binds_is_not_changed(desk: Desk) -> None:
    desk.must("decide", desk.run, "--verdict", "reject", *SAYS, *desk.key("alice"), "--yes")
    report = desk.run / "report.html"
    desk.must("report", desk.run)  # the same again
    flip(report)
    kept = report.read_bytes()
    for folder in (
        desk.folder,
        desk.home / "no-panel",
    ):  # a draft binds it too, and so it does where nobody's history is
        done = panel("report", desk.run, "--folder", folder)
        assert done.code == 1
        assert "stays as it is: a decision is about it byte for byte" in done.err
    assert report.read_bytes() == kept
    desk.must("report", desk.run, "--out", desk.home / "copy")
    (draft,) = (desk.folder / "drafts").iterdir()
    flip(report)
    desk.must("sign", draft, *desk.key("bob"), "--run", desk.run, "--yes")
    (desk.run / "gates.json").unlink()
    flip(report)
    assert "byte for byte" in desk.does("report", desk.run).err
