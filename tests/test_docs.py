"""What the documents promise is there: the tests that docs/privacy.md names, and the files that pages link to."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CLAIM = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def functions(path: Path) -> set[str]:
    """The tests that a file defines."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_claim_about_privacy_names_a_test_that_exists() -> None:
    named = CLAIM.findall((ROOT / "docs" / "privacy.md").read_text())
    assert len(named) > 40
    missing = [f"{file}::{test}" for file, test in named if test not in functions(ROOT / "tests" / file)]
    assert missing == []


def test_every_row_of_a_table_of_claims_has_its_test() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text()
    rows = [
        row
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        if "test |" in table.splitlines()[0]
        for row in table.splitlines()[2:]
    ]
    assert len(rows) > 40
    assert [row for row in rows if not CLAIM.search(row)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_each_picture_is_small_said_in_words_and_shown_by_a_page() -> None:
    named = {}
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            named[(page.parent / target).resolve()] = words
    assert all(path.exists() and len(words) > 20 for path, words in named.items())
    pictures = set((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert pictures <= set(named)
    assert all(path.stat().st_size < 150_000 for path in pictures)
