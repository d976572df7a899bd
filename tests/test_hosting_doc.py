"""docs/hosting-a-node.md is followed to the letter by a coordinator and two agencies, until one leaves."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import CONTRACT, people, write_table
from federation_host import require_nginx
from reader import Page, Reader, for_agency, reading, wait

PAGE = Page("hosting-a-node.md")
FILES = {name: PAGE.file(f"police/{name}") for name in ("data.toml", "policy.toml")}
AGENCIES = ("police", "health")


def test_the_page_needs_no_more_commands_than_were_promised() -> None:
    """To the first finished round: at most 6 for each agency, 3 for the coordinator."""
    before = PAGE.lines[: PAGE.lines.index(PAGE.line("fedrisk", "submit"))]
    words = [shlex.split(line) for line in before]
    assert 1 <= len([each for each in words if each[:2] == ["fedrisk", "coordinator"]]) <= 3
    assert 1 <= len([each for each in words if each[0] == "fedrisk-node"]) <= 6


@pytest.mark.deployed
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_page_is_true(tmp_path: Path) -> None:
    require_nginx()
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    listing = [{"name": name, "kind": name, "public_size": 300} for name in AGENCIES]
    (tmp_path / "agencies.yaml").write_text(
        yaml.safe_dump({"contract": "contract.yaml", "agencies": listing})
    )
    with reading(tmp_path) as reader:
        follow(reader)


def follow(reader: Reader) -> None:
    folder = reader.folder

    def typed(name: str, *begins: str) -> str:
        return reader.type(for_agency(PAGE.line("fedrisk-node", *begins), name), name)

    reader.type(PAGE.line("fedrisk", "coordinator", "init"))
    reader.type(PAGE.line("fedrisk", "coordinator", "start"), "hub")
    reader.until_ready()
    for seed, name in enumerate(AGENCIES):
        assert "SHA256:" in typed(name, "init")
        write_table(folder / name / "people.csv", people(seed), () if name == "health" else ("visits",))
    reader.type(PAGE.line("fedrisk", "coordinator", "enrol"))
    for name in AGENCIES:
        (contract,) = re.findall(r'"([0-9a-f]{64})"', typed(name, "policy", "show"))
        for file, text in FILES.items():
            (folder / name / file).write_text(text.replace("CONTRACT", contract))
        assert "early-warning" in typed(name, "policy", "show")
        assert "✗" not in typed(name, "doctor")
        typed(name, "start")
    reader.until_connected(AGENCIES)
    said = reader.type(PAGE.line("fedrisk", "submit"))
    result = Path(re.search(r"result +(\S+result.json)", said)[1])  # type: ignore[index]
    wait(result.exists, 240, "the first run")
    for name in AGENCIES:
        assert "3 " in typed(name, "ledger")
        assert "released" in typed(name, "log")
    assert "has left the federation" in typed("police", "stop")
    assert (folder / "police" / "left.json").exists()
