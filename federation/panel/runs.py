"""A finished run's folder, as a decision binds it: the SHA-256 of its files (`FILES`), byte for byte."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError

from federation import installed
from federation.decision import DecisionError, Panel, Registration, Signed, Subject
from federation.panel.decisions import day, registration_of
from federation.panel.files import UNREADABLE, PanelError
from federation.panel.history import Entry
from federation.plan import sentences
from federation.scorecard import CARD, WEIGHTS, CardError, ScoreCard, read_card
from federation.server.gates import GateReport, GatesError, at_of, judge, read_gates

REPORT, RESULT, GATES, MODEL, APPROVAL = "report.html", "result.json", "gates.json", "model", "approval.json"
FILES: Mapping[str, str] = {  # what a `Subject` binds -> its file in the run's folder
    "report_sha256": REPORT,
    "result_sha256": RESULT,
    "card_sha256": f"{MODEL}/{CARD}",
    "weights_sha256": f"{MODEL}/{WEIGHTS}",
    "gates_sha256": GATES,
}


TERMS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # where a result shows a term, and the term
    "seed": (("seed",), ("seed",)),
    "strategy": (("strategy", "name"), ("strategy", "name")),
    "privacy mechanism": (("privacy", "mechanism"), ("privacy", "mechanism")),
    "delta": (("privacy", "delta"), ("privacy", "delta")),
    "number of rounds": (("rounds_planned",), ("rounds",)),
    "model": (("model", "name"), ("model", "name")),
    "hidden layers": (("model", "hidden"), ("model", "hidden")),
}


_GET_AGAIN = "it was changed, or is another run's; get the run's folder again"


def read_json(content: bytes) -> Any:
    """JSON as a run writes it: no NaN, and nothing that UTF-8 has not. One of `UNREADABLE` where it is none."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    found = json.loads(content, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()
    return found


@final
@dataclass(frozen=True)
class Run:
    """The files of a finished run, as they are now. `hashes`: field of `Subject` -> SHA-256, where the file is there."""

    folder: Path
    content: Mapping[str, bytes]

    @property
    def hashes(self) -> dict[str, str]:
        return {field: hashlib.sha256(content).hexdigest() for field, content in self.content.items()}

    @property
    def result(self) -> dict[str, Any]:
        """result.json; `PanelError` where it is none."""
        try:
            found = read_json(self._need("result_sha256"))
        except UNREADABLE:
            found = None
        if not isinstance(found, dict):
            raise PanelError(
                f"{self.folder / RESULT} is not JSON as a run writes it: get the run's folder again"
            )
        return found

    @property
    def card(self) -> ScoreCard:
        """model/card.json; `PanelError` where it is none."""
        try:
            return read_card(self._need("card_sha256").decode())
        except RecursionError:
            raise PanelError(
                f"{self.folder / FILES['card_sha256']} is nested too deeply: get it again"
            ) from None
        except (CardError, UnicodeDecodeError) as error:
            raise PanelError(f"{self.folder / FILES['card_sha256']}: {error}") from None

    @property
    def gates(self) -> GateReport:
        """gates.json, as `decide` wrote it; `PanelError` where it is none."""
        try:
            return GateReport.model_validate_json(self._need("gates_sha256"))
        except ValidationError as error:
            raise PanelError(f"{self.folder / GATES}: {sentences(error)[0]}") from None

    def _need(self, field: str) -> bytes:
        if field not in self.content:
            raise PanelError(f"{self.folder / FILES[field]} is missing: name the folder of a finished run")
        return self.content[field]

    def check_whole(self) -> None:
        """`PanelError` names each file that a decision binds and that is not there; gates.json is made by it."""
        gone = [name for field, name in FILES.items() if field not in self.content and name != GATES]
        if gone:
            raise PanelError(
                "\n".join(
                    f"{self.folder / name} is missing: name the folder of a finished run" for name in gone
                )
            )


def read_run(folder: Path) -> Run:
    """The files of the run in `folder`; those that are not there are left out."""
    if not folder.is_dir():
        raise PanelError(f"{folder} is no folder: name the folder of a finished run")
    paths = {field: folder / name for field, name in FILES.items()}
    return Run(folder, {field: path.read_bytes() for field, path in paths.items() if path.is_file()})


def check_run(run: Run, entries: Sequence[Entry], panel: Panel) -> Signed:
    """The registration of `run`; `PanelError` has every reason why it cannot be decided on."""
    run.check_whole()
    signed, entry = _registered(run.result, entries, panel)
    try:
        problems = [*_not_as_registered(run, signed, entry), *_not_one_model(run), *_other_papers(run)]
    except PanelError:
        raise
    except UNREADABLE:
        raise PanelError(
            f"{run.folder / RESULT} is not as a run writes it: get the run's folder again"
        ) from None
    if problems:
        raise PanelError("\n".join(problems))
    return signed


def _registered(result: Mapping[str, Any], entries: Sequence[Entry], panel: Panel) -> tuple[Signed, Entry]:
    found = result.get("registration")
    if found is None:
        raise PanelError(
            "the model was trained without a registration: it is for research only, and no panel can approve it. Register the "
            "run first (fedrisk draft, fedrisk-panel register), then train it"
        )
    try:
        signed = Signed.model_validate(found["signed"])
    except UNREADABLE:
        raise PanelError(
            f"{RESULT}: the registration in it cannot be read: get the run's folder again"
        ) from None
    entry = registration_of(entries, signed.digest)
    try:
        signed.verify(Registration, panel)
    except DecisionError as error:
        raise PanelError(f"{RESULT}: {error}") from None
    if signed.digest != found.get("sha256"):
        raise PanelError(
            f"{RESULT}: the registration in it has another SHA-256 than it names: get the folder again"
        )
    return signed, entry


def _not_as_registered(run: Run, signed: Signed, entry: Entry) -> Iterator[str]:
    result, registration = run.result, signed.read(Registration)
    created = _time(result.get("created"))
    if created is None or registration.registered >= created:
        when = "has no date" if created is None else f"is of {day(created)}"
        yield (
            f"the registration is of {day(registration.registered)}, and the result {when}: only a run that was registered "
            "before it began can be decided on"
        )
    elif entry.time >= created:
        yield (
            f"the quorum had signed the registration on {day(entry.time)} (entry {entry.seq}), and the result is of "
            f"{day(created)}: only a run that was registered before it began can be decided on"
        )
    told = {
        "experiment": (result.get("experiment"), registration.experiment),
        "purpose": (result.get("purpose"), registration.purpose),
        "contract": (at_of(result, "contract", "sha256"), registration.contract_sha256),
        "agencies": (sorted(result["agencies"]), sorted(registration.agencies)),
    }
    groups = at_of(result, "final", "metrics", "groups")
    if isinstance(groups, Mapping):
        told["groups"] = sorted(groups), sorted(registration.groups)
    for what, (shown, agreed) in TERMS.items():
        term = at_of(registration.terms, *agreed)
        if term is not None:  # what is not in the terms, the experiment has refused or not asked
            told[what] = at_of(result, *shown), term
    for what, (found, asked) in told.items():
        if found != asked:
            yield f"the {what} of the result is {found!r}, and {asked!r} was registered: it is another run"


def _not_one_model(run: Run) -> Iterator[str]:
    """Where result, card and weights are not of one run."""
    card, result = run.card, run.result
    contract = at_of(result, "contract", "sha256")
    if (card.run_id, card.purpose, card.contract_sha256) != (
        result.get("run_id"),
        result.get("purpose"),
        contract,
    ):
        yield f"{FILES['card_sha256']} is about another run, purpose or contract than {RESULT}: get both from the same run"
    if card.weights_sha256 != run.hashes["weights_sha256"]:
        yield f"{FILES['weights_sha256']} is not the file that {CARD} is about: get both from the same run"


def _other_papers(run: Run) -> Iterator[str]:
    """Where a paper, which people read, is not what this code makes of result.json. Other code's is not judged."""
    if other_code(run) is None:
        from federation.panel.papers import PAPERS

        result = run.result
        if PAPERS[REPORT](result) != run.content["report_sha256"]:
            yield f"{REPORT} is not the report of {RESULT}: {_GET_AGAIN}"
        for name, make in PAPERS.items():
            path = run.folder / name
            if name != REPORT and path.is_file() and path.read_bytes() != make(result):
                yield f"{path} is not what {RESULT} says: {_GET_AGAIN}"


def other_code(run: Run) -> str | None:
    """A sentence where another release made the run, so that nothing here can say whether its report is its result's."""
    made = run.result.get("code_sha256")
    if made == installed.code_sha256():
        return None
    return (
        f"{run.folder} was made by another release of fedrisk (code {str(made)[:12]}) than this one: whether {REPORT} "
        f"and the papers beside it show what {RESULT} says was not checked"
    )


def check_code(run: Run) -> None:
    """`PanelError` where another release made the run: no approval then."""
    other = other_code(run)
    if other is not None:
        raise PanelError(f"{other}; to approve it, decide with the release that made the run")


def judged(signed: Signed, result: Mapping[str, Any], audit: Mapping[str, Any] | None) -> GateReport:
    """What the registered gates say of the result."""
    try:
        return judge(read_gates(signed.read(Registration).gates), result, audit=audit)
    except GatesError as error:
        raise PanelError(
            "\n".join(f"the registered gates: {line}" for line in str(error).splitlines())
        ) from None
    except UNREADABLE:
        raise PanelError(
            f"{RESULT}, or the audit, is not as it is written by a run: the registered gates cannot be held against it"
        ) from None


def subject_of(run: Run, signed: Signed, report: GateReport) -> Subject:
    """What a decision on `run` is about."""
    hashes = run.hashes | {"gates_sha256": report.sha256}
    facts = {"run_id": run.card.run_id, "purpose": run.card.purpose, "registration_sha256": signed.digest}
    try:
        return Subject.model_validate(facts | hashes)
    except ValidationError as error:
        raise PanelError("\n".join(sentences(error))) from None


def _time(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None and 1 < found.year < 9999 else None
