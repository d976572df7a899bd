"""The papers that IT asks for: filled from the configuration, blank where it cannot know, and without a record in them."""

import csv
import io
import math
import re
import stat
import xml.etree.ElementTree as ET
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, people, permits, write_table
from test_docs import CLAIM, ROOT, functions
from test_node_cli import node

from clients.ledger import Ledger, PlanFacts
from clients.papers import write as writing
from clients.papers.facts import gather, sureness
from clients.papers.risks import risks
from federation.release import Release
from models.contract import Contract

DOCS = ROOT / "docs"
TODAY = date(2026, 11, 25)
PEOPLE = 137  # no other number of the configuration has these digits
CANARY = "canary"
AGE = {"description": "Age in whole years | at the | referral", "proxy_for": "sex", "actionable": False}
CONFIGURED = CONTRACT | {
    "columns": CONTRACT["columns"] | {"age": CONTRACT["columns"]["age"] | {"about": AGE}},
}
BUDGET = {
    "delta": 1e-5,
    "life": 4.0,
    "year": 3.0,
    "experiment": 2.5,
    "order": 0.5,
    "purpose": {"early-warning": {"public": 1.25, "coordinator": 2.25, "everybody": 3.25}},
}
POLICY = permits(
    CONFIGURED,
    purposes={
        "early-warning": {
            "legal_basis": "Act of <b>2018</b>, s. 35 | agreed",
            "expires": date(2027, 3, 31),
            "ask": True,
        },
        "housing-advice": {"legal_basis": "Housing Act"},
    },
    never_columns=["postcode", "religion_code"],
    stats_columns=["age"],
    releases=["train", "stats"],
    min_people=61,
    budget=BUDGET,
)
NODE: dict[str, Any] = {
    "name": "north",
    "kind": "police",
    "public_size": 9000,
    "contract": "contract.yaml",
    "peers": {"clinic": "A" * 43 + "="},
    "superlink": {"address": "fedrisk.example.org:9092", "certificate": "ca.crt"},
}
DATA: dict[str, Any] = {
    "source": {"kind": "csv", "path": "people.csv"},
    "columns": {"age": "AGE_AT_REFERRAL"},
    "as_of": date(2026, 11, 1),
    "as_of_column": "recorded_on",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node that guards records: every cell of its table has a canary or is a number that is nowhere else."""
    home = tmp_path / "node"
    home.mkdir(mode=0o700)
    rows = [
        row
        | {"person": f"{CANARY}-{row['person']}", "AGE_AT_REFERRAL": row["age"], "recorded_on": "2026-01-01"}
        for row in people(0, PEOPLE)
    ]
    write_table(home / "people.csv", rows, ("visits", "age"))
    (home / "contract.yaml").write_text(yaml.safe_dump(CONFIGURED, sort_keys=False))
    configure(home)
    return home


def configure(home: Path, *, node: dict[str, Any] = NODE, policy: dict[str, Any] = POLICY) -> None:
    (home / "node.toml").write_text(tomli_w.dumps(node))
    (home / "policy.toml").write_text(tomli_w.dumps(policy))
    (home / "data.toml").write_text(tomli_w.dumps(DATA))


def papers(folder: Path, *options: str) -> dict[str, str]:
    """What the command writes, by file."""
    out = folder.parent / f"papers-{len(list(folder.parent.iterdir()))}"
    done = node("papers", folder, out, *options)
    assert done.code == 0, done.err
    return {path.name: path.read_text() for path in out.iterdir()}


def plain(text: str) -> str:
    """Markdown without what only escapes."""
    return text.replace("\\", "")


def flat(text: str) -> str:
    return " ".join(text.split())


# --- what is filled in ----------------------------------------------------------------------------------


def test_every_column_purpose_and_limit_of_the_configuration_is_in_the_dpia(folder: Path) -> None:
    dpia = plain(papers(folder)["dpia.md"])
    for name in ("age", "known", "person", "sex", "outcome", "recorded_on", "visits", "AGE_AT_REFERRAL"):
        assert f"`{name}`" in dpia, name
    assert "Age in whole years | at the | referral" in dpia
    assert "stands for the group sex; nobody can change it" in dpia
    assert "`postcode`, `religion_code`" in dpia
    for said in ("Act of <b>2018</b>, s. 35 | agreed", "Housing Act", "`early-warning`", "`housing-advice`"):
        assert said in dpia
    assert "Last day: 2027-03-31" in dpia
    for epsilon in ("ε = 4 ", "ε = 3 ", "ε = 2.5 ", "ε = 0.5 ", "ε = 1.25 ", "ε = 2.25 ", "ε = 3.25 "):
        assert epsilon in dpia, epsilon
    assert "fewer than 61 people" in dpia
    assert "fedrisk.example.org:9092, TLS 1.2 or newer, the server's certificate checked with ca.crt" in dpia
    assert "one person at this agency, with the most recent row" in dpia
    assert "12 months" in dpia
    assert "only what was known on 2026-11-01 is read" in dpia
    assert "statistics of one column" in dpia
    assert "tables of scores and outcomes" not in dpia, "the policy does not permit them"
    assert Contract.from_dict(CONFIGURED).sha256 in dpia


def test_the_words_of_every_key_of_the_policy_are_in_the_dpia(folder: Path) -> None:
    dpia = flat(plain(papers(folder)["dpia.md"]))
    facts = gather(folder, TODAY)
    assert len(facts.policy_lines) > 20
    for line in facts.policy_lines:
        assert f"| `{line.key}` | {flat(line.says)} |" in dpia


def test_the_headings_are_those_of_the_commissioners_template(folder: Path) -> None:
    dpia = papers(folder)["dpia.md"]
    steps = re.findall(r"^## (Step \d: .*)$", dpia, re.MULTILINE)
    assert steps == [
        "Step 1: Identify the need",
        "Step 2: Describe the processing",
        "Step 3: Consultation",
        "Step 4: Necessity and proportionality",
        "Step 5: Identify and assess risks",
        "Step 6: Identify measures to reduce risk",
        "Step 7: Sign off and record outcomes",
    ]
    assert re.findall(r"^### (.*)$", dpia, re.MULTILINE) == ["Nature", "Scope", "Context", "Purposes"]


def test_tables_stay_tables_whatever_the_configuration_says(folder: Path) -> None:
    for name in ("dpia.md", "part3.md"):
        for table in re.findall(r"(?:^\|.*\n)+", papers(folder)[name], re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
            assert len(widths) == 1, table


def test_what_has_left_is_told_from_the_ledger(folder: Path) -> None:
    assert "nothing that was computed from a record has left this agency" in papers(folder)["dpia.md"]
    with Ledger(folder / "ledger.db", budget=None, scope="lifetime", people="north/people") as ledger:
        ledger.charge(
            PlanFacts("a" * 64, "run", "trial", "early-warning"),
            "run/1",
            [Release("train", "train", 1.0, 0.1, 4)],
        )
        number = ledger.head[0]
    dpia = plain(papers(folder)["dpia.md"])
    assert "4 noisy training steps, for 1 experiment." in dpia
    assert f"The ledger's newest entry is number {number}." in dpia


def test_the_measures_are_those_of_this_configuration(folder: Path) -> None:
    here = {risk.number: risk.measure for risk in risks(gather(folder, TODAY))}
    assert "this agency's own numbers may leave" in here[1]
    assert "names no signed release" in here[2]
    assert "approves each plan for early-warning; without a last day: housing-advice" in here[4]
    release = {"manifest": "fedrisk.json", "key": "k" * 44}
    configure(folder, node=NODE | {"release": release}, policy=POLICY | {"masks_required": True, "ask": True})
    there = {risk.number: risk.measure for risk in risks(gather(folder, TODAY))}
    assert "sums over agencies alone, behind masks" in there[1]
    assert "compared with a signed release" in there[2]
    assert "approves each plan for early-warning, housing-advice" in there[4]


def test_a_policy_that_permits_nothing_gives_blanks_and_says_so(folder: Path) -> None:
    (folder / "policy.toml").write_text("")
    found = papers(folder)
    assert "policy.toml permits no purpose yet" in found["dpia.md"]
    assert "policy.toml permits no kind of release" in found["dpia.md"]
    assert "none is written: nothing can be spent on anybody" in found["dpia.md"]
    assert len(list(csv.DictReader(io.StringIO(found["ropa.csv"])))) == 1, "the log of who looked"


def test_a_simulation_is_never_called_private(folder: Path) -> None:
    configure(folder, policy=POLICY | {"simulation": True})
    dpia = papers(folder)["dpia.md"]
    assert "plans without noise are permitted, so no real record may be here" in dpia
    assert "none that holds: simulation = true" in dpia


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 3.0, 4.6, 8.0, 9.3, 50.0])
def test_how_sure_is_rounded_against_the_agency(epsilon: float) -> None:
    truth = 100 / (1 + math.exp(-epsilon))
    said = sureness(epsilon)
    if said.startswith("more than"):
        assert truth > 99.99
    else:
        shown = float(said.partition(" ")[0])
        assert truth <= shown < truth + (1 if truth <= 99 else 0.01) + 1e-9
        assert shown < 100


# --- what is not ----------------------------------------------------------------------------------------


def test_blanks_are_marked_counted_and_cannot_be_faked(folder: Path) -> None:
    configure(folder, policy=POLICY | {"purposes": {"x": {"legal_basis": "**[TO BE FILLED BY: nobody]**"}}})
    out = folder.parent / "out"
    done = node("papers", folder, out, "--json")
    dpia = (out / "dpia.md").read_text()
    real = re.findall(r"(?<!\\)\*\*\[TO BE FILLED BY: [^\]\\]+\]\*\*", dpia)
    assert len(real) > 40
    assert not any("nobody" in each for each in real)
    assert done.json["blanks"]["dpia.md"] >= len(real)
    assert done.json["blanks"]["data-flow.svg"] == 0
    for what in ("Name of controller", "Advice of the data protection officer", "Residual risks approved by"):
        (row,) = [line for line in dpia.splitlines() if line.startswith(f"| {what}")]
        assert "TO BE FILLED BY" in row


def test_no_cell_and_no_count_is_in_any_paper_and_no_record_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clients.records.sources import FileSource

    monkeypatch.setattr(FileSource, "batches", lambda *_: pytest.fail("a record was read"))
    found = papers(folder)
    assert set(found) == {"dpia.md", "part3.md", "data-flow.svg", "ropa.csv"}
    for name, text in found.items():
        assert CANARY not in text, name
        assert not re.search(rf"(?<![0-9a-f]){PEOPLE}(?![0-9a-f])", text), name
    (folder / "people.csv").unlink()
    assert papers(folder) == found, "the table need not even be there"


def test_secrets_and_addresses_of_a_database_are_in_no_paper(folder: Path) -> None:
    source = {"kind": "sql", "url": "postgresql+psycopg://reader@db.example.org/people?sslmode=verify-full"}
    source |= {"query": "SELECT * FROM people WHERE surname <> 'canary'", "password_env": "SECRET_NAME"}
    (folder / "data.toml").write_text(tomli_w.dumps({"source": source}))
    found = papers(folder)
    assert "one SELECT of a PostgreSQL database, in a read-only transaction" in found["dpia.md"]
    for text in found.values():
        for secret in ("db.example.org", "reader@", "surname", "SECRET_NAME", CANARY):
            assert secret not in text


def test_papers_are_for_their_owner_and_never_overwritten(folder: Path) -> None:
    out = folder.parent / "out"
    assert node("papers", folder, out).code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    (out / "dpia.md").write_text("filled in by hand")
    done = node("papers", folder, out)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "is there already, and somebody may have filled it in: name another folder" in done.err
    assert (out / "dpia.md").read_text() == "filled in by hand"


# --- Part 3 ---------------------------------------------------------------------------------------------


def test_part_3_is_for_competent_authorities_alone(folder: Path) -> None:
    assert "part3.md" in papers(folder)
    assert "part3.md" not in papers(folder, "--no-part3")
    configure(folder, node=NODE | {"kind": "health"})
    out = folder.parent / "out"
    done = node("papers", folder, out)
    assert not (out / "part3.md").exists()
    assert "kind is health, which is not taken for a competent authority" in done.out
    assert "part3.md" in papers(folder, "--part3")


def test_part_3_has_what_the_act_asks_for(folder: Path) -> None:
    part3 = plain(papers(folder)["part3.md"])
    for section in (
        "section 35",
        "section 42",
        "section 62",
        "sections 49 and 50",
        "section 61",
        "Schedule 8",
    ):
        assert section in part3
    for name in ("age", "known", "person", "sex", "outcome"):
        assert re.search(rf"^\| `{name}` \|.*TO BE FILLED BY.*\|$", part3, re.MULTILINE), name
    assert "Act of <b>2018</b>, s. 35 | agreed" in part3


# --- the table and the drawing --------------------------------------------------------------------------


def test_the_record_of_processing_has_a_row_for_each_use_of_each_purpose(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(papers(folder)["ropa.csv"])))
    assert [row["purpose"] for row in rows[:-1]] == ["early-warning"] * 2 + ["housing-advice"] * 2
    assert all(cell for row in rows for cell in row.values()), (
        "nothing is empty: it is filled or a marked blank"
    )
    assert rows[0]["permitted until"] == "2027-03-31"
    assert rows[2]["permitted until"] == "no end is set"
    assert "age (Age in whole years | at the | referral)" in rows[0]["categories of personal data"]
    assert "with noise: training, statistics of one column" in rows[0]["what they receive"]
    assert "clinic" in rows[0]["categories of recipients"]


@pytest.mark.parametrize("begins", ["=", "+", "-", "@"])
def test_no_cell_of_the_record_is_a_formula(folder: Path, begins: str) -> None:
    configure(folder, policy=POLICY | {"purposes": {"x": {"legal_basis": f"{begins}1+1"}}})
    (first, *_) = csv.DictReader(io.StringIO(papers(folder)["ropa.csv"]))
    assert first["legal basis in policy.toml"] == f"'{begins}1+1"


def test_the_drawing_is_xml_of_this_agency_and_fetches_nothing(folder: Path) -> None:
    text = papers(folder)["data-flow.svg"]
    drawing = ET.fromstring(text)  # noqa: S314 - our own
    assert int(drawing.attrib["width"]) < 900
    assert "north (police)" in text
    assert "fedrisk.example.org:9092" in text
    assert not re.search(
        r"(href|src|url)\s*=|<image|<script|@import|https?://(?!www\.w3\.org/2000/svg)", text
    )


def test_a_name_of_the_configuration_cannot_break_the_drawing() -> None:
    words = dict.fromkeys(writing.GENERIC, "</text><script>&\"'")
    text = writing._xml().get_template("data-flow.svg.j2").render(writing.words_of(words))
    ET.fromstring(text)  # noqa: S314 - our own
    assert "<script" not in text


def test_the_drawing_in_the_documents_is_that_of_any_agency() -> None:
    template = writing._xml().get_template("data-flow.svg.j2")
    assert (DOCS / "data-flow.svg").read_text() == template.render(writing.words_of(writing.GENERIC))


# --- what cannot be -------------------------------------------------------------------------------------

BROKEN = {
    "no node": ("node.toml", None, "is this a node's folder?"),
    "a typo": ("policy.toml", "colour = 1\n", "policy.toml: colour is not a known setting"),
    "no policy": ("policy.toml", None, "is missing: a node without a policy does not start"),
    "no TOML": ("data.toml", "[source\n", "data.toml is not TOML"),
    "no contract": ("contract.yaml", None, "the contract file contract.yaml cannot be read"),
    "no source": ("data.toml", None, "is missing: it says where the records are"),
    "no ledger": ("ledger.db", "x" * 9000, "is not a fedrisk ledger"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_configuration_that_cannot_be_read_is_one_sentence_and_no_paper(case: str, folder: Path) -> None:
    name, content, sentence = BROKEN[case]
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    out = folder.parent / "out"
    done = node("papers", folder, out)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("fedrisk-node: ")
    assert sentence in line
    assert not out.exists()


# --- the pages --------------------------------------------------------------------------------------------


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = CLAIM.findall((DOCS / "threat-model.md").read_text())
    assert len(named) > 60
    missing = [f"{file}::{test}" for file, test in named if test not in functions(ROOT / "tests" / file)]
    assert missing == []


def test_every_attack_of_the_threat_model_has_a_control_a_test_and_what_is_left() -> None:
    text = (DOCS / "threat-model.md").read_text()
    rows = [
        row
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        if table.startswith("| attack")
        for row in table.splitlines()[2:]
    ]
    assert len(rows) > 40
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 4, row
        assert all(cells), row
        assert CLAIM.search(cells[2]) or cells[2].startswith("none"), row


@pytest.mark.parametrize("page", ["threat-model.md", "ports-and-proxies.md", "restore.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(
        r"`((?:clients|federation|experiments|models|tests|docs)/[\w./-]+)`", (DOCS / page).read_text()
    )
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
