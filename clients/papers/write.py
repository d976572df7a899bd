"""Papers from facts: two texts in Markdown, a drawing, and a table. The words are in templates/.

Values from files are escaped for where they stand; a blank is text of the templates alone, so a value cannot fake one
and cannot hide one.
"""

import csv
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from clients.folder import NodeError
from clients.papers import ropa
from clients.papers.facts import Facts, gather
from clients.papers.risks import risks

BLANK = "TO BE FILLED BY"
NOT_COMPETENT = (
    "part3.md was not written: the agency's kind is {kind}, which is not taken for a competent authority (Data Protection Act "
    "2018, section 30 and Schedule 7). Where it is one, --part3 writes it"
)
GENERIC = {
    "agency": "An agency",
    "source": "file or database",
    "address": "HOST:PORT",
    "leaves": "what its policy permits",
}
_SPECIAL = re.compile(r"([\\`*\[\]<>|#~&])|(?<!\w)(_)|(_)(?!\w)")


@dataclass(frozen=True)
class Written:
    """What was written: by file, how many blanks are left in it; and what else the person should know."""

    folder: str
    blanks: dict[str, int]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class Raw(str):
    """Text that stands as it is."""


def write(folder: Path, out: Path, today: date, *, competent: bool | None = None) -> Written:
    """Write the papers of the node in `folder` into `out`. Nothing that is there is overwritten: people fill papers in."""
    facts = gather(folder, today, competent=competent)
    texts = {"dpia.md": text("dpia.md.j2", facts), "data-flow.svg": drawing(facts), "ropa.csv": table(facts)}
    if facts.competent:
        texts["part3.md"] = text("part3.md.j2", facts)
    taken = sorted(name for name in texts if (out / name).exists())
    if taken:
        raise NodeError(
            f"{out / taken[0]} is there already, and somebody may have filled it in: name another folder"
        )
    with _folder(out):
        for name, content in texts.items():
            with open(
                os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline=""
            ) as file:
                file.write(content)
    note = "" if facts.competent else NOT_COMPETENT.format(kind=facts.node.kind or "not written in node.toml")
    return Written(str(out), {name: content.count(BLANK) for name, content in sorted(texts.items())}, note)


def text(template: str, facts: Facts) -> str:
    """A paper in Markdown."""
    return str(_markdown().get_template(template).render(f=facts, risks=risks(facts)))


def drawing(facts: Facts) -> str:
    """The data flow of one agency, SVG."""
    return str(_xml().get_template("data-flow.svg.j2").render(words_of(labels(facts))))


def labels(facts: Facts) -> dict[str, str]:
    """What the drawing says of one agency; `GENERIC` says it of any."""
    line = facts.node.superlink
    return {
        "agency": _short(f"{facts.node.name}{f' ({facts.node.kind})' if facts.node.kind else ''}", 30),
        "source": facts.source_short,
        "address": "no address yet" if line is None else _short(line.address, 28),
        "leaves": _short(", ".join(facts.releases) or "nothing: the policy permits none", 70),
    }


def words_of(named: Mapping[str, str]) -> dict[str, Any]:
    """The drawing's words, the arrows' among them."""
    said = (
        (1, "Rows of the contract's columns, read only. Nothing is written back."),
        (2, "Whom this agency scores, and its own records to correct the figures by. Scores stay here."),
        (3, "A pipe between two processes: the bytes of one order, the bytes of one reply."),
        (4, "HTTPS, called out alone: TLS 1.2 or newer, each request signed with the node's key."),
        (0, f"Out, with noise: {named['leaves']}; or a refusal. In: plans and model weights."),
        (5, "The same messages, on the coordinator's loopback by TLS. All other paths end at the proxy."),
        (6, "The same messages, on the loopback."),
        (7, "The combined model, noised figures, ε to each viewer, who took part and who refused."),
        (8, "A report in one file, with what is not known and what must not be concluded."),
    )
    return {
        **named,
        "arrows": [(550 + 23 * place, number, text) for place, (number, text) in enumerate(said)],
    }


def _short(said: str, most: int) -> str:
    return said if len(said) <= most else f"{said[: most - 1]}…"


def table(facts: Facts) -> str:
    """The record of processing, CSV: no cell of it is a formula to a spreadsheet."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ropa.HEADINGS, lineterminator="\r\n")
    writer.writeheader()
    for row in ropa.rows(facts, BLANK):
        writer.writerow(
            {key: f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell for key, cell in row.items()}
        )
    return file.getvalue()


def escaped(value: object) -> str:
    """`value` as one line of Markdown that means its letters."""
    if isinstance(value, Raw):
        return value
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", re.sub(r"\s+", " ", str(value)))


def code(value: object) -> Raw:
    """`value` in code's letters, where it has none that would end them."""
    said = str(value)
    return Raw(escaped(said) if re.search(r"[`|\s\\]", said) else f"`{said}`")


def blank(who: str, what: str = "") -> Raw:
    """A place that a person must fill."""
    return Raw(f"**[{BLANK}: {who}{f' - {what}' if what else ''}]**")


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make `out` (mode 0700) if it is not there; gone again if what follows fails."""
    made = not out.exists()
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            shutil.rmtree(out, ignore_errors=True)
        raise


@cache
def _markdown() -> Any:
    environment = _environment(autoescape=False, finalize=escaped)
    environment.globals |= {"blank": blank, "code": code}
    return environment


@cache
def _xml() -> Any:
    return _environment(autoescape=True)


def _environment(**options: Any) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).resolve().parent / "templates")
    return Environment(  # noqa: S701 - Markdown is escaped by `finalize`
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
