"""What `score` writes: scores.csv, list.html and one page for each listed person. Local files, mode 0600.

The pages need nothing from elsewhere: no script, no font, no address. The words are in templates/, and here values
become texts.
"""

import csv
import datetime
import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, final

from clients.scoring.approval import Approved
from clients.scoring.model_file import ScoringError
from clients.scoring.score import Case, Scores, base, ends, frequency, told

NOT_APPROVED = "not approved"
BANNER = "NOT APPROVED — rehearsal. Do not act on this."
COLUMNS = (
    "reference",
    "probability",
    "probability_low",
    "probability_high",
    "horizon",
    "band",
    "band_rate",
    "band_low",
    "band_high",
    "band_in_words",
    "reasons",
    "missing",
    "newest_row",
    "scored_as_of",
    "out_of_scope",
    "why_out_of_scope",
    "listed",
    "model",
    "approval",
)
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
SOURCES = {
    "local": "corrected on this agency's own records, which were set aside from training and stayed here",
    "federation": "corrected on all agencies' counts together, which carry privacy noise",
    "none": "not corrected: the evidence is too thin to check the figure itself, so read the band",
}


@final
@dataclass(frozen=True)
class Run:
    """What every page says of the run of the command. `approved`: None in a rehearsal."""

    purpose: str
    user: str
    entry: str
    capacity: int
    contest: str
    node: str
    approved: Approved | None

    @property
    def banner(self) -> str:
        """What stands above everything."""
        if self.approved is None:
            return BANNER
        state = self.approved.state
        return f"{state[0].upper()}{state[1:]} by the panel {self.approved.panel}"

    @property
    def approval(self) -> str:
        """Whether anybody may act on it, in a word or three."""
        return NOT_APPROVED if self.approved is None else self.approved.state


def write_output(folder: Path, scores: Scores, run: Run) -> None:
    """Fill `folder`, which `make_output` made."""
    facts = _facts(scores, run)
    listed = [scores.case(i) for i in scores.listed]
    try:
        _write_csv(folder / "scores.csv", scores, run)
        (folder / "cases").mkdir(mode=0o700)
        for case in listed:
            page = _template("case.html.j2").render(**facts, **_case(case, scores))
            _write(folder / "cases" / file_name(case.reference), [page])
        _write(
            folder / "list.html",
            [_template("list.html.j2").render(**facts, **_list(listed, scores, run))],
        )
    except OSError as error:
        raise ScoringError(
            f"{folder} cannot be written ({error.strerror}): remove what is there and score again"
        ) from None


def make_output(folder: Path) -> None:
    """A new folder that its owner alone can enter (0700); `ScoringError` where there is something already."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ScoringError(f"{folder} is not empty: name a new folder, so that no older page is mixed in")
        folder.chmod(0o700)
    except OSError as error:
        raise ScoringError(f"{folder} cannot be made ({error.strerror}): name another folder") from None


def file_name(reference: str) -> str:
    """REFERENCE.html, or a hash's name where the reference is no safe file name."""
    if _SAFE_NAME.fullmatch(reference):
        return f"{reference}.html"
    return f"case-{hashlib.sha256(reference.encode()).hexdigest()[:16]}.html"


def _write(path: Path, pieces: Iterable[str]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)


def _write_csv(path: Path, scores: Scores, run: Run) -> None:
    class Echo:
        def write(self, text: str) -> str:
            return text

    writer: Any = csv.writer(Echo())
    approval = NOT_APPROVED if run.approved is None else run.approved.brief
    rows = (writer.writerow([*_row(case, scores), approval]) for case in scores.cases())
    _write(path, _after(writer.writerow(COLUMNS), rows))


def _after(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _row(case: Case, scores: Scores) -> list[str]:
    card, observed = scores.model.card, case.band.observed
    reasons = case.reasons or ()
    said = [
        "; ".join([f"{r.direction} {r.strength}: {r.label}", *(f"[{mark}]" for mark in r.marks)])
        for r in reasons
    ]
    return [
        case.reference,
        f"{case.probability:.4f}",
        "" if case.low is None else f"{case.low:.4f}",
        "" if case.high is None else f"{case.high:.4f}",
        card.horizon,
        case.band.name,
        f"{observed.value:.4f}",
        f"{observed.low:.4f}",
        f"{observed.high:.4f}",
        frequency(observed),
        " | ".join(said) if case.reasons is not None else "none: the model is not additive",
        " | ".join(case.missing),
        "" if case.newest is None else case.newest.isoformat(),
        scores.as_of.isoformat(),
        "yes" if case.out_of_scope else "no",
        " | ".join(case.out_of_scope),
        "yes" if case.listed else "no",
        card.version,
    ]


# ---- what the templates need ----


def _facts(scores: Scores, run: Run) -> dict[str, Any]:
    card = scores.model.card
    return {
        "banner": run.banner,
        "approval": run.approval,
        "approved": run.approved,
        "version": card.version,
        "model": card.model.name,
        "simulation": card.simulation,
        "outcome": card.outcome.rstrip("."),
        "horizon": card.horizon,
        "agencies": card.agencies,
        "as_of": _day(scores.as_of),
        "source": SOURCES[scores.calibration.source],
        "why_source": scores.calibration.why,
        "run": run,
        "auc": card.performance.get("auc"),
        "bands": [
            {"name": band.name, "words": frequency(band.observed), "share": _share(band.share)}
            for band in reversed(card.bands)
        ],
    }


def _case(case: Case, scores: Scores) -> dict[str, Any]:
    most = max((abs(r.contribution) for r in case.reasons or ()), default=1.0)
    observed = case.band.observed
    return {
        "case": case,
        "quoted": shlex.quote(case.reference),
        "probability": told(case.probability),
        "ends_here": _ends(case),
        "hits": told(observed.value),
        "ends": ends(observed.value, observed.low, observed.high),
        "others": told(1 - observed.value, base(observed.value)),
        "dots": [i < round(100 * observed.value) for i in range(100)],
        "reasons": None
        if case.reasons is None
        else [(r, round(100 * abs(r.contribution) / most)) for r in case.reasons],
        "newest": None if case.newest is None else _day(case.newest),
        "age": None if case.newest is None else _age(scores.as_of - case.newest),
        "columns": len(scores.people.columns),
    }


def _list(listed: Sequence[Case], scores: Scores, run: Run) -> dict[str, Any]:
    """Cases by band, highest first; within a band the higher probability first, but no rank is written."""
    by_band = [
        {
            "name": name,
            "words": frequency(members[0].band.observed),
            "rows": [
                {
                    "case": case,
                    "href": f"cases/{file_name(case.reference)}",
                    "probability": told(case.probability),
                    "ends": _ends(case) or "not checked",
                    "reason": case.reasons[0] if case.reasons else None,
                    "newest": None if case.newest is None else _day(case.newest),
                }
                for case in members
            ],
        }
        for name, group in groupby(listed, key=lambda case: case.band.name)
        if (members := list(group))
    ]
    return {
        "groups": by_band,
        "people": len(scores.people.references),
        "listed": len(listed),
        "left": scores.as_high_but_unlisted(),
        "out_of_scope": sum(bool(why) for why in scores.scope),
        "additive": scores.parts is not None,
    }


def _ends(case: Case) -> str:
    """The interval of the score by itself, in the same count as the score; what stands there where it has none."""
    if case.low is None or case.high is None:
        return ""
    return ends(case.probability, case.low, case.high)


def _share(share: float) -> str:
    of_hundred = round(100 * share)
    return f"about {of_hundred} in 100" if of_hundred >= 1 else "fewer than 1 in 100"


def _day(date: datetime.date) -> str:
    return f"{date.day} {date:%b %Y}"


def _age(age: datetime.timedelta) -> str:
    days = age.days
    if days < 0:
        return "after the day of scoring"
    return f"{days} day{'s' if days != 1 else ''} old" if days < 60 else f"{days / 30.4375:.0f} months old"


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).resolve().parent / "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)
