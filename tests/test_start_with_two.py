"""docs/start-with-two.md is followed to the letter by two agencies, from nothing to a map, an overlap and its signs.

The picture of the map goes to outputs/pictures, or where FEDRISK_SCREENSHOTS says.
"""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from federation_host import require_nginx
from playwright.sync_api import sync_playwright
from reader import Page, Reader, for_agency, reading, wait
from test_site_browser import find_browser

from clients.desk.ledger_copy import read_only
from clients.folder import read_node_file
from clients.policy import read_policy

PAGE = Page("start-with-two.md")
AGENCIES = ("police", "health")
OTHER = dict(zip(AGENCIES, AGENCIES[::-1], strict=True))
PICTURES = Path(__file__).resolve().parent.parent / os.environ.get("FEDRISK_SCREENSHOTS", "outputs/pictures")
ANSWER_SECONDS = 300
NUMBER = r"[\d,.]+%?"


def price(row: str) -> tuple[float, float]:
    """ε at each agency, and of a person whom both know, as the page's last table has it."""
    cells = re.search(rf"^\| {row}.*?\| ([\d.]+)\D*\| ([\d.]+)", PAGE.text, re.M)
    assert cells is not None, row
    return float(cells[1]), float(cells[2])


def test_the_page_is_read_in_ten_minutes() -> None:
    """At 230 words a minute."""
    assert len(re.sub(r"```.*?```", "", PAGE.text, flags=re.S).split()) < 2300


def test_what_is_spent_adds_up() -> None:
    """At one agency the sum of its releases bounds them; a person at both loses no more at both than twice that."""
    parts = [price("the map"), price("the overlap")]
    whole = price("all together")
    assert whole[0] == sum(one for one, _ in parts)
    assert whole[1] == 2 * whole[0]
    assert all(one <= both <= 2 * one for one, both in parts)


@pytest.mark.deployed
@pytest.mark.long
@pytest.mark.timeout(1200)  # of which a minute or two pass until each plan is asked about again
def test_the_page_is_true(tmp_path: Path) -> None:
    require_nginx()
    browser = find_browser()
    with reading(tmp_path) as reader:
        agree(reader)
        host(reader)
        folder = draw(reader)
        found = json.loads((folder / "map.json").read_text())
        every_number_has_an_interval_and_a_price((folder / "map.html").read_text(), found)
        look(browser, folder / "map.html")
        shared = overlap(reader)
        signs(reader, folder)
        ledgers_equal_what_left(reader, [found, shared])
        decide_and_leave(reader)


def typed(reader: Reader, name: str, *begins: str, **words: str) -> str:
    """The line of the page that begins so, as agency `name` types it."""
    return reader.type(for_agency(PAGE.line("fedrisk-node", *begins), name), name, words)


def agree(reader: Reader) -> None:
    reader.type(PAGE.line("fedrisk", "pilot-data"))
    said = reader.type(PAGE.line("fedrisk", "check"))
    assert all(f"{name}: fits the contract" in said for name in AGENCIES)
    planned = next(line for line in PAGE.lines if line.endswith("--plan"))
    said = reader.type(planned)
    one, both = price("the map")
    assert f"ε = {one:.2f} for one person at one agency, {both:.2f} if known to 2" in said
    assert "before anything is spent" in said
    assert not (reader.folder / "outputs").exists()


def host(reader: Reader) -> None:
    folder = reader.folder
    reader.type(PAGE.line("fedrisk", "coordinator", "init"))
    reader.type(PAGE.line("fedrisk", "coordinator", "start"), "hub")
    reader.until_ready()
    peers = {}
    for name in AGENCIES:
        said = reader.type(PAGE.line("fedrisk-node", "init", name), name)
        assert "SHA256:" in said
        (peers[name],) = re.findall(rf'^ *({name} = "\S{{44}}")$', said, re.M)
    reader.type(PAGE.line("fedrisk", "coordinator", "enrol"))
    for name in AGENCIES:
        node = folder / name / "node.toml"
        node.write_text(node.read_text().replace("[peers]\n", f"[peers]\n{peers[OTHER[name]]}\n"))
        data = PAGE.file("police/data.toml").replace("police.csv", f"{name}.csv")
        (folder / name / "data.toml").write_text(data)
        (contract,) = re.findall(r'"([0-9a-f]{64})"', typed(reader, name, "policy", "show"))
        policy = PAGE.file("police/policy.toml").replace('peers = ["health"]', f'peers = ["{OTHER[name]}"]')
        (folder / name / "policy.toml").write_text(policy.replace("CONTRACT", contract))
        said = typed(reader, name, "policy", "show")
        assert "A person approves each plan." in said
        assert "maps (counts of people by levels of permitted columns" in said
        assert "✗" not in typed(reader, name, "doctor")
        typed(reader, name, "start")
    reader.until_connected(AGENCIES)


def draw(reader: Reader) -> Path:
    """The map's folder."""
    said = reader.type(next(line for line in PAGE.lines if "--superlink hub" in line and " map " in line))
    result = re.search(r"result +(\S+)/map.json", said)
    assert result is not None
    approve(reader, 1, "counted by the columns age, area, date, ")
    folder = Path(result[1])
    assert folder.parent == reader.folder / "hub" / "outputs"
    wait((folder / "map.json").exists, ANSWER_SECONDS, "the map")
    return folder


def approve(reader: Reader, number: int, says: str) -> None:
    """Both agencies read what plan `number` of the page asks, and say yes."""
    for name in AGENCIES:
        asked = reader.folder / name / "asked"
        wait(lambda asked=asked: len([*asked.glob("*.json")]) == number, ANSWER_SECONDS, f"{name} is asked")  # type: ignore[misc]
        said = typed(reader, name, "policy", "asked")
        assert says in said
        (waits,) = re.findall(r"^([0-9a-f]{64})  pilot for service-planning", said, re.M)
        assert waits in typed(reader, name, "approve", PLAN=waits)


def every_number_has_an_interval_and_a_price(page: str, found: dict[str, Any]) -> None:
    cells = [cell for query in found["queries"] for cell in query["together"]["cells"]]
    cells += [cell for query in found["queries"] for own in query["agencies"].values() for cell in own]
    told = [cell for cell in cells if cell["publishable"]]
    assert len(told) > 300
    assert all(cell["low"] <= cell["value"] <= cell["high"] for cell in told)
    assert all(cell["value"] is None for cell in cells if not cell["publishable"])
    heat = re.findall(r'<td class="h\d[^"]*">(.*?)</td>', page)
    assert len(heat) > 60
    assert all(re.fullmatch(rf"{NUMBER}<small>{NUMBER} to {NUMBER}</small>", cell) for cell in heat)
    intervals = rf'{NUMBER}<span class="interval">{NUMBER} to {NUMBER}</span>'
    assert len(re.findall(intervals, page)) > 60
    assert not re.search(r"<td class=\"h\d[^\"]*\">[\d,.]+%?</td>", page)
    one, both = price("the map")
    assert found["privacy"]["epsilon"] == pytest.approx(one, abs=0.005)
    assert found["privacy"]["epsilon_at_several_agencies"]["2"] == pytest.approx(both, abs=0.01)
    assert f"<b>ε {one:.2f}</b> is the price in privacy" in page
    assert "A simulation." not in page


def look(browser: str, page: Path) -> None:
    """A picture of the whole page, and of one heat map. No column of any is beyond the edge."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        window = chromium.new_page(viewport={"width": 1000, "height": 720})
        window.goto(page.as_uri())
        assert window.locator("h1").inner_text() == "pilot"
        hidden = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)"
        assert window.evaluate(hidden) == []
        heat = window.locator(
            ".wide", has=window.locator("caption", has_text="substance use by area, agency")
        )
        heat.screenshot(path=PICTURES / "start-with-two.png")
        window.screenshot(path=PICTURES / "start-with-two-whole.png", full_page=True)
        chromium.close()


def overlap(reader: Reader) -> dict[str, Any]:
    """cohort.json: the number of people whom both know, within its interval, and its price."""
    said = reader.type(PAGE.line("fedrisk", "cohort"))
    one, both = price("the overlap")
    assert f"ε = {one:g} at each agency" in said
    assert f"= {both:g}" in said
    approve(reader, 2, " both know")
    result = re.search(r"result +(\S+)/cohort.json", said)
    assert result is not None
    folder = Path(result[1])
    wait((folder / "cohort.json").exists, ANSWER_SECONDS, "the cohort")
    found: dict[str, Any] = json.loads((folder / "cohort.json").read_text())
    assert (folder / "cohort.html").exists()
    (pair,) = found["pairs"]
    assert pair["shared"]["publishable"]
    assert pair["shared"]["low"] <= pair["shared"]["value"] <= pair["shared"]["high"]
    assert found["privacy"]["epsilon"] == one
    return found


def signs(reader: Reader, folder: Path) -> None:
    reader.type(PAGE.line("fedrisk", "signs"), words={"MAP": folder.name})
    found = json.loads((folder / "signs.json").read_text())
    assert found["privacy"]["costs"] == "nothing further"
    assert found["conclusion"]
    assert (folder / "signs.html").exists()


def ledgers_equal_what_left(reader: Reader, results: list[dict[str, Any]]) -> None:
    """Each agency's own account has the releases that the results say it made, and no other."""
    most, _ = price("all together")
    for name in AGENCIES:
        said = typed(reader, name, "ledger")
        assert "1 noisy map and 1 noisy cohort" in said
        statement = json.loads(reader.type(f"fedrisk-node ledger {name} --json", name))
        assert statement["left"]["orders"] == len(results)
        folder = reader.folder / name
        files = read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")
        with read_only(folder, *files) as ledger:
            charged = [event.to_dict() | {"split_id": ""} for event in ledger.releases()]
        assert charged == [event for found in results for event in found["agencies"][name]["releases"]]
        assert max(statement["epsilon"].values()) <= most
        assert "released" in typed(reader, name, "log")


def decide_and_leave(reader: Reader) -> None:
    said = reader.type(PAGE.line("fedrisk", "plan"))
    one, both = price("a training")
    assert re.search(rf"anyone: .* {one:.2f} │ +{both:.2f} │", said)
    reader.type(PAGE.line("fedrisk", "draft"))
    assert (reader.folder / "registration.yaml").exists()
    assert "has left the federation" in typed(reader, "police", "stop")
    assert (reader.folder / "police" / "left.json").exists()


def test_each_line_of_the_page_is_typed() -> None:
    """A line that nobody types is a line that nobody has tried."""
    source = Path(__file__).read_text()
    for line in PAGE.lines:
        program, command = shlex.split(line)[:2]
        assert f'"{command}"' in source or f" {command} " in source, f"{program} {command}"
