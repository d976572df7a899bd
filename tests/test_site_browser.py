"""The panel's site in a real browser without a mouse: from the printed address to a decision that was signed.

FEDRISK_SCREENSHOTS=docs/images python -m pytest tests/test_site_browser.py   writes the pictures of docs/for-panels.md.
"""

import html
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_result import fake_result, whole_result
from playwright.sync_api import Browser, Page, sync_playwright
from sites import serving
from test_panel_cli import APPROVE, MEMBERS, Desk, panel, write_run

from federation import installed
from federation.panel import cli
from federation.panel.report import render_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MISSING = "no Chromium on PATH: make servers, or apt-get install chromium"
PICTURES = os.environ.get("FEDRISK_SCREENSHOTS")
AT = datetime(2031, 3, 4, 10, 0, tzinfo=UTC)
WIDE, NARROW = {"width": 1000, "height": 720}, {"width": 320, "height": 640}


def find_browser() -> str:
    """A browser of the system. Where there is none the test is skipped, or fails with FEDRISK_REQUIRE_SERVERS=1."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("FEDRISK_REQUIRE_SERVERS") == "1":
        pytest.fail(MISSING, pytrace=False)
    return found or pytest.skip(MISSING)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = find_browser()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_a_browser_that_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FEDRISK_REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        find_browser()
    monkeypatch.setenv("FEDRISK_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception) as failed:
        find_browser()
    assert str(failed.value) == MISSING


class Clock:
    """One time for the site, the command and every file, so that pictures do not change from day to day."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def clock(patch: pytest.MonkeyPatch) -> Clock:
    found = Clock(AT)
    patch.setattr(cli, "now", found)
    patch.setattr(installed, "code_sha256", lambda: "5e" * 32)
    seeds = iter(range(1, 100))
    same = Ed25519PrivateKey.from_private_bytes
    patch.setattr(Ed25519PrivateKey, "generate", lambda: same(bytes([next(seeds)] * 32)))
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, clock: Clock, patch: pytest.MonkeyPatch) -> Desk:
    """Two runs of which one was approved a week ago; the commands are typed beside the panel's folder."""
    patch.chdir(tmp_path_factory.mktemp("desk"))
    found = Desk(Path("."))
    members: list[str] = []
    for name in MEMBERS:
        members += [
            "--member",
            panel("key", name, "--out", f"{name}.key").out.strip().replace(" = ", "=").replace('"', ""),
        ]
    panel("init", "panel", "--name", "Ethics panel of the North", "--quorum", "2", *members)
    outputs = Path("outputs")
    other = fake_result()["model"] | {"features": 30, "parameters": 31}  # else both had the same weights
    for name, days, changes in (
        ("early-help-winter", 9, {}),
        ("early-help-spring", 2, {"seed": 8, "model": other}),
    ):
        clock.at = AT - timedelta(days=days)
        registration = found.register(name)
        write_run(
            outputs / name, registration, created=(clock.at + timedelta(hours=5)).isoformat(), **changes
        )
    clock.at = AT - timedelta(days=8)
    found.must("decide", outputs / "early-help-winter", *APPROVE, *found.both)
    decision = found.must("list", "--json").json["decisions"][-1]["decision_sha256"]
    clock.at = AT - timedelta(days=3)
    found.must("status", decision, *found.key("alice"), "--yes")
    clock.at = AT
    return found


def picture(page: Page, name: str) -> None:
    """Where pictures are asked for: what a window shows, at the top."""
    if PICTURES:
        path = Path(__file__).resolve().parent.parent / PICTURES / f"panel-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path)


def tab_to(page: Page, text: str, most: int = 80) -> None:
    """Press Tab until what has the focus says `text`; it must show that it has it."""
    for _ in range(most):
        page.keyboard.press("Tab")
        said = page.evaluate(
            "() => { const e = document.activeElement; const l = e.labels && e.labels[0];"
            " return [l ? l.innerText : e.innerText, getComputedStyle(e).outlineStyle, e.getBoundingClientRect().width] }"
        )
        if said[0].strip().startswith(text):
            assert said[1] == "solid", f"{text}: the focus cannot be seen"
            assert said[2] > 0
            return
    raise AssertionError(f"no Tab leads to {text!r} on {page.url}")


def follow(page: Page, text: str) -> None:
    tab_to(page, text)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def fits(page: Page) -> None:
    """At 320 pixels nothing but a table scrolls sideways, and each page has one heading and a language."""
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], page.url
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    page.set_viewport_size(WIDE)


@pytest.mark.long
def test_a_decision_without_a_mouse(browser: Browser, desk: Desk, clock: Clock) -> None:
    with serving(desk.folder, Path("outputs"), clock) as address:
        context = browser.new_context(
            viewport=WIDE, java_script_enabled=True
        )  # only the test itself runs any
        page = context.new_page()
        complaints: list[str] = []
        elsewhere: list[str] = []
        own = address.partition("/enter")[0]
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: elsewhere.append(request.url) if not request.url.startswith(own) else None,
        )
        page.goto(address)
        assert page.url == f"{own}/"
        assert page.title().startswith("Ethics panel of the North")
        assert "approved" in page.inner_text("main")
        fits(page)
        picture(page, "home")

        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Skip to the page"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        follow(page, "early-help-spring")
        fits(page)
        follow(page, "Read the report")
        assert page.locator("h1").inner_text() == "early-help"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("window.origin") == "null", "the report is in its sandbox"
        picture(page, "report")
        page.go_back()
        follow(page, "Compare it with")
        assert "registered terms" not in page.inner_text("main")
        assert page.locator("td", has_text="cannot be told from noise").count() > 3
        fits(page)
        follow(page, "Home")
        follow(page, "early-help-spring")
        follow(page, "Draft a decision")
        fits(page)

        tab_to(page, "Rationale")
        page.keyboard.type("It finds people two months earlier than we do today.")
        follow(
            page, "Make the draft"
        )  # too early: what is missing is said, and what was typed is still there
        problems = page.locator("#problems")
        page.locator("#problems:focus").wait_for(timeout=3000)
        assert "owner must not be empty" in problems.inner_text()
        assert page.locator("#rationale").input_value().startswith("It finds")
        fits(page)
        tab_to(page, "owner must not")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "owner"
        page.goto(f"{own}/runs/early-help-spring/decide")

        page.keyboard.press("Tab")
        tab_to(page, "Approve: it may be used")
        page.keyboard.press("Space")
        page.keyboard.press("ArrowDown")
        for label, text in {
            "Rationale": "It finds people two months earlier than we do today, and nobody is scored who is not known already.",
            "Dissent": "Chris would have waited for the second retest.",
            "Owner": "Head of safeguarding",
            "Conditions": "training = every case worker is trained",
            "What brings it back": "AUC below 0.70",
            "Days until": "60",
            "The most people": "20",
        }.items():
            tab_to(page, label)
            page.keyboard.type(text)
        tab_to(page, "northgate-police")
        page.keyboard.press("Space")
        page.evaluate("window.scrollTo(0, 0)")
        picture(page, "draft")
        follow(page, "Make the draft")
        assert "/drafts/" in page.url
        assert "0 of 2 have signed" in page.inner_text("main")
        fits(page)
        commands = [html.unescape(each) for each in page.locator("pre.command").all_inner_texts()]
        follow(page, "Home")
        assert "nobody" in page.locator("table", has_text="Drafts").inner_text()

        for line in commands[:2]:
            assert re.fullmatch(
                r"fedrisk-panel sign [0-9a-f]{12} --run outputs/early-help-spring --key \w+=\w+\.key --folder panel",
                line,
            )
            done = panel(*line.split()[1:], "--yes")
            assert done.code == 0, done.err
        page.reload()
        standing = page.locator("table", has_text="The newest decision on each run").inner_text()
        assert "early-help-spring\tapproved with conditions\twaits for training" in standing
        assert page.locator("table", has_text="Drafts").count() == 0
        follow(page, "approved with conditions")
        assert "Chris would have waited" in page.inner_text("main")
        fits(page)
        follow(page, "History")
        assert page.locator("tbody tr").count() == 5
        fits(page)
        assert ["400" in each for each in complaints] == [True]  # the form that was sent too early
        assert elsewhere == []
        assert [cookie["httpOnly"] and cookie["sameSite"] for cookie in context.cookies()] == ["Strict"]
        late = browser.new_context().new_page()
        assert late.goto(address).status == 403  # type: ignore[union-attr]
        assert "used before" in late.inner_text("main")


@pytest.mark.long
def test_a_hostile_report_runs_nothing(browser: Browser, desk: Desk, clock: Clock) -> None:
    """What the headers forbid, a browser does not do."""
    attack = (
        "<h1>report</h1><script>document.title='owned'</script><img src='/runs/x' onerror=\"document.title='owned'\">"
        f"<style>body{{background:url({'/secret'})}}</style><meta http-equiv=refresh content='0;url=javascript:1'>"
        "<form action='/runs/early-help-spring/decide' method=post><button id=b>send</button></form>"
    )
    (Path("outputs") / "early-help-spring" / "report.html").write_text(attack)
    with serving(desk.folder, Path("outputs"), clock) as address:
        page = browser.new_context(viewport=WIDE).new_page()
        page.goto(address)
        asked: list[str] = []
        page.on("response", lambda response: asked.append(response.url))  # what was blocked has none
        page.goto(f"{address.partition('/enter')[0]}/runs/early-help-spring/report")
        page.locator("#b").focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(150)
        assert page.title() != "owned"
        assert len(asked) == 1, asked


def test_no_column_of_the_report_is_out_of_sight(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(whole_result()).replace("<details>", "<details open>"))
    page = browser.new_page(viewport=WIDE)
    page.goto(file.as_uri())
    cut = "tables => tables.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.ariaLabel)"
    assert page.locator(".wide").count() > 20
    assert page.locator(".wide").evaluate_all(cut) == []
    page.close()
