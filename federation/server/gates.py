"""Promotion gates: what a model must show to be approved, agreed before the run and held against its result.

Every number is judged at the unfavourable end of its interval, so what may be noise does not pass; what was asked and
is missing, or may not be published, fails. Fairness alone is not enough: a model that says the same of everybody has
no gap at all, and `net_benefit_gain` refuses it. `judge` looks at `result.json` and an audit's JSON and nothing else.
Signatures are not verified here: `federation.decision` does that against pinned keys.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from federation.decision import Audited, Registration, Signed
from federation.plan import Agreed, Sha256, sentences

Json = Mapping[str, Any]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None
Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=1)] | None
Unit = Literal["decimal", "percent", "points", "count"]

PLACES = 3  # after the point that a number has at least; an ε has 2, a count 0
LARGEST = sys.float_info.max
MISSING, HIDDEN = "is not in the result", "cannot be told from noise"


class GatesError(ValueError):
    """Gates that cannot be: a line for each problem, with the key, the rule and what was found."""


# --- what is asked ----------------------------------------------------------------------------------------


class WorstGroup(Agreed):
    """Of the published group that is worst off, of any attribute: floors of tpr and ppv, ceilings of fpr and fnr."""

    tpr: Share = None
    ppv: Share = None
    fpr: Share = None
    fnr: Share = None


class Gaps(Agreed):
    """Ceilings of the gaps between an attribute's groups, for each attribute. In [0, 1]."""

    demographic_parity: Share = None
    equal_opportunity: Share = None
    equalized_odds: Share = None
    predictive_parity: Share = None


class EpsilonTo(Agreed):
    """Ceilings of ε to each viewer (`federation.release.Viewer`), at the δ of the run."""

    public: Epsilon = None
    coordinator: Epsilon = None
    everybody: Epsilon = None


class Gates(Agreed):
    """What is asked of a model; None or False: not asked.

    auc, accuracy: floors.  net_benefit_gain: what the gain over flagging everybody or nobody must be above.
    observed_expected: the ends within which the whole interval lies.  ece, brier: ceilings.
    agency_gaps: ceilings of the gaps within each agency, where each agency's tables are known.
    intersections: combinations of the attributes' levels are groups too, for all that is asked of groups but the gaps.
    min_people: in each published group.  every_group_published: no group may be too small or too noisy to show.
    min_agencies: that trained.  simulation_allowed: False fails a model whose agencies one computer played.
    """

    auc: Share = None
    accuracy: Share = None
    net_benefit_gain: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = 0.0
    observed_expected: tuple[Finite, Finite] | None = None
    ece: Share = None
    brier: Share = None
    worst_group: WorstGroup = WorstGroup()
    gaps: Gaps = Gaps()
    agency_gaps: Gaps = Gaps()
    intersections: bool = False
    epsilon: EpsilonTo = EpsilonTo()
    audit_required: bool = False
    min_people: Count = None
    every_group_published: bool = False
    min_agencies: Count = None
    registered: bool = True
    agencies_as_registered: bool = True
    simulation_allowed: bool = False

    @model_validator(mode="after")
    def has_ends(self) -> Self:
        if (
            self.observed_expected is not None
            and not 0 <= self.observed_expected[0] < self.observed_expected[1]
        ):
            raise ValueError(
                f"observed_expected must be two numbers from 0, the smaller first, got {list(self.observed_expected)}"
            )
        return self


def read_gates(values: Mapping[str, Any]) -> Gates:
    """The gates that `values` (YAML or JSON, read) describe; `GatesError` has every problem."""
    try:
        return Gates.model_validate(values)
    except ValidationError as error:
        raise GatesError("\n".join(sentences(error))) from None


# --- what was found ---------------------------------------------------------------------------------------


class Gate(Agreed):
    """One gate. `asked` and `found` in words; numbers are None where there are none that may be shown.

    bound: what `value`, or an end of its interval, was held against; two for a range.
    """

    name: str
    asked: str
    found: str
    value: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None
    bound: Finite | tuple[Finite, Finite] | None = None
    passed: bool
    sentence: str


class GateReport(Agreed):
    """What the gates said of one run: all that was asked, and what was found.

    audit_sha256: of the audit's JSON, where one was given beside the result; the registered one is in the result.
    """

    format: Literal[1] = 1
    run_id: str | None
    asked: Gates
    audit_sha256: Sha256 | None = None
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]

    @property
    def passed(self) -> bool:
        """Whether every gate is passed."""
        return all(gate.passed for gate in self.gates)


def judge(gates: Gates, result: Json, *, audit: Json | None = None) -> GateReport:
    """Hold `gates` against a result (schema 1 of result.json), and against what `fedrisk audit` wrote.

    Rates are those of the final test. An audit that is given is judged whether or not one is required; where none is,
    that which was registered before the run, and beside a given one if it fails. Where nothing is asked nothing is passed: one gate says so and fails.
    """
    metrics = at_of(result, "final", "metrics")
    found = [
        *_overall(gates, metrics),
        *_groups(gates, metrics),
        *_gaps("gaps", gates.gaps, dict(_items(at_of(metrics, "gaps")))),
        *_gaps("agency_gaps", gates.agency_gaps, _of_agencies(metrics)),
        *_epsilon(gates.epsilon, at_of(result, "privacy")),
        *_audit(gates.audit_required, result, audit),
        *_run(gates, result),
    ]
    run_id = result.get("run_id")
    return GateReport(
        run_id=run_id if isinstance(run_id, str) else None,
        asked=gates,
        audit_sha256=None if audit is None else _sha256(audit),
        gates=tuple(found) or (_nothing(),),
    )


def _sha256(audit: Json | None) -> str:
    return hashlib.sha256(json.dumps(audit, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _nothing() -> Gate:
    return Gate(
        name="anything",
        asked="something",
        found="nothing",
        passed=False,
        sentence="Nothing is asked of this model, so nothing is passed: it is for research: failed.",
    )


# --- a number against its bound ---------------------------------------------------------------------------


class Interval(NamedTuple):
    """A number that may be shown, with its ends: the same where it is exact."""

    value: float
    low: float
    high: float


def _exact(number: float) -> Interval:
    return Interval(float(number), float(number), float(number))


@dataclass(frozen=True)
class Limit:
    """A floor, a ceiling or both, in `unit`. strict: the floor itself does not pass. places: see `PLACES`."""

    least: float | None = None
    most: float | None = None
    unit: Unit = "decimal"
    strict: bool = False
    places: int = PLACES

    def holds(self, low: float, high: float) -> bool:
        """Whether all from `low` to `high` is within it."""
        if self.least is not None and not (low > self.least if self.strict else low >= self.least):
            return False
        return self.most is None or high <= self.most

    @property
    def bound(self) -> float | tuple[float, float] | None:
        if self.least is not None and self.most is not None:
            return self.least, self.most
        return self.most if self.least is None else self.least

    @property
    def asked(self) -> str:
        least, most = (None if end is None else self._as_given(end) for end in (self.least, self.most))
        if least is not None and most is not None:
            return f"from {least} to {most}"
        if least is None:
            return f"at most {most}"
        return f"above {least}" if self.strict else f"at least {least}"

    @property
    def end(self) -> str:
        """Which end of an interval it is held against, in words."""
        if self.least is not None and self.most is not None:
            return "from end to end"
        return "even at the high end" if self.least is None else "even at the low end"

    def says(self, found: Interval) -> str:
        """A number with its interval: with so many places that none reads as if the verdict were another."""
        verdict = self.holds(found.low, found.high)
        places = next(
            (
                d
                for d in range(self.places, 12)
                if self.holds(round(found.low, d), round(found.high, d)) == verdict
            ),
            12,
        )
        value, low, high = (self._number(number, places) for number in found)
        ends = "" if found.low == found.high else f" ({low} to {high})"
        return f"{value}{self._suffix}{ends}"

    @property
    def _suffix(self) -> str:
        return {"percent": "%", "points": " points"}.get(self.unit, "")

    @property
    def _factor(self) -> int:
        return 100 if self._suffix else 1

    def _number(self, number: float, places: int) -> str:
        shown = round(number, places) + 0.0  # never -0
        return f"{self._factor * shown:,.{places - 2 if self._suffix else places}f}"

    def _as_given(self, number: float) -> str:
        return f"{self._factor * number:.10g}{self._suffix}"


def _hold(name: str, subject: str, found: Interval | str, limit: Limit, note: str = "") -> Gate:
    """The gate of one number, or of the reason why there is none."""
    if isinstance(found, str):
        return Gate(
            name=name,
            asked=limit.asked,
            found=found,
            bound=limit.bound,
            passed=False,
            sentence=f"{subject} {found}; it must be {limit.asked}: failed.",
        )
    passed, exact = limit.holds(found.low, found.high), found.low == found.high
    text = f"{limit.says(found)}{note}"
    must = limit.asked if exact else f"{limit.asked} {limit.end}"
    return Gate(
        name=name,
        asked=limit.asked,
        found=text,
        value=found.value,
        low=None if exact else found.low,
        high=None if exact else found.high,
        bound=limit.bound,
        passed=passed,
        sentence=f"{subject} is {text}; it must be {must}: {_verdict(passed)}.",
    )


def _fact(name: str, asked: str, found: str, passed: bool, sentence: str) -> Gate:
    """The gate of something that is so or not."""
    return Gate(
        name=name, asked=asked, found=found, passed=passed, sentence=f"{sentence}: {_verdict(passed)}."
    )


def _verdict(passed: bool) -> str:
    return "passed" if passed else "failed"


def at_of(value: object, *keys: str) -> Any:
    """What lies at `keys` in nested mappings; None where nothing does."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _items(value: object) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _interval(estimate: object) -> Interval | str:
    """An estimate of the result that may be shown, or why there is none."""
    if not isinstance(estimate, Mapping):
        return MISSING
    if estimate.get("publishable") is not True:
        return HIDDEN
    ends = [estimate.get(name) for name in ("value", "low", "high")]
    return Interval(*map(float, ends)) if all(map(_real, ends)) else MISSING  # type: ignore[arg-type]


# --- accuracy, usefulness, calibration --------------------------------------------------------------------


def _overall(gates: Gates, metrics: object) -> Iterator[Gate]:
    """Of everybody in the test."""
    low, high = gates.observed_expected or (None, None)
    limits: dict[str, tuple[str, Limit]] = {
        "auc": ("The ranking (AUC)", Limit(least=gates.auc)),
        "accuracy": (
            "The share of people rightly flagged or rightly left (accuracy)",
            Limit(least=gates.accuracy, unit="percent"),
        ),
        "net_benefit_gain": (
            "The net benefit over the better of flagging everybody and flagging nobody",
            Limit(least=gates.net_benefit_gain, strict=True),
        ),
        "observed_expected": (
            "The number of outcomes for each one expected (observed over expected)",
            Limit(low, high),
        ),
        "ece": ("The calibration error (ECE)", Limit(most=gates.ece)),
        "brier": ("The distance from the truth (Brier)", Limit(most=gates.brier)),
    }
    for name, (subject, limit) in limits.items():
        if limit.bound is not None:
            yield _hold(name, subject, _interval(at_of(metrics, "overall", name)), limit)


# --- groups -----------------------------------------------------------------------------------------------

RATES = {
    "tpr": "The share found of those who had the outcome (true positive rate)",
    "ppv": "The share with the outcome of those flagged (positive predictive value)",
    "fpr": "The share wrongly flagged of those who did not have the outcome (false positive rate)",
    "fnr": "The share missed of those who had the outcome (false negative rate)",
}
GAPS = {
    "demographic_parity": "The gap in how many are flagged (demographic parity)",
    "equal_opportunity": "The gap in how many are found of those who had the outcome (equal opportunity)",
    "equalized_odds": "The gap in who is found or who is wrongly flagged, whichever is larger (equalised odds)",
    "predictive_parity": "The gap in how often a flag is right (predictive parity)",
}


def _groups(gates: Gates, metrics: object) -> Iterator[Gate]:
    """The worst group of any attribute, and how many people are behind each. A group is an attribute's level, and a
    combination of levels where `intersections` asks for it.
    """
    levels = {
        f"{attribute}: {level}": table
        for attribute, tables in _items(at_of(metrics, "groups"))
        for level, table in _items(tables)
    }
    if gates.intersections:
        combined = at_of(metrics, "intersections")
        if not isinstance(combined, Mapping):
            words = "numbers for combinations of groups"
            yield _fact("intersections", words, MISSING, False, f"It must have {words}; the result has none")
        levels |= dict(_items(combined))
    asked = gates.worst_group
    limits = {
        "tpr": Limit(least=asked.tpr, unit="percent"),
        "ppv": Limit(least=asked.ppv, unit="percent"),
        "fpr": Limit(most=asked.fpr, unit="percent"),
        "fnr": Limit(most=asked.fnr, unit="percent"),
    }
    wanted = {rate: limit for rate, limit in limits.items() if limit.bound is not None}
    for rate, limit in wanted.items():
        found = {name: _interval(at_of(table, rate)) for name, table in levels.items()}
        shown = {name: each for name, each in found.items() if isinstance(each, Interval)}
        yield _but(_worst(f"worst_group.{rate}", RATES[rate], shown, limit), set(levels) - set(shown))
    if gates.min_people is not None:
        yield _people(levels, gates.min_people)
    if gates.every_group_published:
        yield _published(levels, ("people", *wanted))


def _but(gate: Gate, hidden: set[str]) -> Gate:
    """The gate, which also says whom it could not judge."""
    if not hidden or gate.value is None:
        return gate
    listed = ", ".join(sorted(hidden))
    return gate.but(
        sentence=f"{gate.sentence} Not judged, because their numbers are not published: {listed}."
    )


def _worst(
    name: str,
    subject: str,
    shown: Mapping[str, Interval],
    limit: Limit,
    where: str = ", where it is worst ({}),",
) -> Gate:
    """The one of `shown` whose unfavourable end is worst."""
    if not shown:
        return _hold(name, subject, "cannot be told from noise in any group", limit)
    if limit.least is None:
        at = max(shown, key=lambda each: shown[each].high)
    else:
        at = min(shown, key=lambda each: shown[each].low)
    return _hold(name, f"{subject}{where.format(at)}", shown[at], limit)


def _people(levels: Mapping[str, Json], least: int) -> Gate:
    """People in each group of which any number is published, at the low end of their noise."""
    name, limit = "min_people", Limit(least=least, unit="count", places=0)
    subject = "The number of people in the smallest group that is published"
    published = [
        level
        for level, table in levels.items()
        if any(at_of(estimate, "publishable") is True for _, estimate in _items(table))
    ]
    found = {level: _interval(at_of(levels[level], "people")) for level in published}
    for level, each in found.items():
        if isinstance(each, str):
            return _hold(name, f"The number of people in a group that is published ({level})", each, limit)
    shown = {level: each for level, each in found.items() if isinstance(each, Interval)}
    return _worst(name, subject, shown, limit, where=" ({})")


def _published(levels: Mapping[str, Json], names: Sequence[str]) -> Gate:
    """Whether each group's people, and the rates that a gate asks of the worst, may all be shown."""
    hidden = [
        level
        for level, table in levels.items()
        if any(isinstance(_interval(at_of(table, name)), str) for name in names)
    ]
    asked = "every group published"
    if not levels:
        return _fact(
            "every_group_published",
            asked,
            "no groups",
            False,
            "No group was measured, and every group must be",
        )
    if hidden:
        listed = ", ".join(hidden)
        sentence = f"What is asked of every group cannot be told from noise in {listed}, so nobody knows how they fare"
        return _fact("every_group_published", asked, f"not published: {listed}", False, sentence)
    sentence = f"All {len(levels)} groups are published, as they must be"
    return _fact("every_group_published", asked, f"{len(levels)} published", True, sentence)


def _of_agencies(metrics: object) -> dict[str, Any]:
    """The gaps within each agency, by attribute and agency."""
    return {
        f"{attribute} at {agency}": table
        for attribute, agencies in _items(at_of(metrics, "agency_gaps"))
        for agency, table in _items(agencies)
    }


def _gaps(group: str, asked: Gaps, gaps: Mapping[str, Any]) -> Iterator[Gate]:
    """Of the attribute whose gap may be largest. An attribute whose gap cannot be told fails: it may be that one."""
    for kind, subject in GAPS.items():
        ceiling = getattr(asked, kind)
        if ceiling is None:
            continue
        name, limit = f"{group}.{kind}", Limit(most=ceiling, unit="points")
        found = {attribute: _interval(at_of(table, kind)) for attribute, table in gaps.items()}
        unknown = [attribute for attribute, each in found.items() if isinstance(each, str)]
        if not found:
            yield _hold(name, subject, MISSING, limit)
        elif unknown:
            yield _hold(name, f"{subject} by {', '.join(unknown)}", HIDDEN, limit)
        else:
            shown = {attribute: each for attribute, each in found.items() if isinstance(each, Interval)}
            yield _worst(name, subject, shown, limit)


# --- privacy ----------------------------------------------------------------------------------------------

NO_AUDIT = "this is no audit that can be read: name the JSON file that `fedrisk audit` wrote"
AUDIT_ASKED = "no bound above its claim and no check that fails"
VIEWERS = {
    "public": "whoever sees the results",
    "coordinator": "the coordinator",
    "everybody": "all others together",
}


def _epsilon(asked: EpsilonTo, privacy: object) -> Iterator[Gate]:
    delta = at_of(privacy, "delta")
    note = f" at δ = {delta:g}" if _real(delta) else ""
    for viewer, words in VIEWERS.items():
        ceiling = getattr(asked, viewer)
        if ceiling is not None:
            spent = at_of(privacy, "epsilon_to", viewer)
            found = _exact(spent) if _real(spent) else "has no limit that the result knows of"
            yield _hold(f"epsilon.{viewer}", f"ε to {words}", found, Limit(most=ceiling, places=2), note)


def _audit(required: bool, result: Json, audit: Json | None) -> Iterator[Gate]:
    """The audit's strongest attack against its claim. Every bound, check and membership test in it must hold."""
    registration = _registration(result)
    found = registration.evidence.audit if isinstance(registration, Registration) else None
    if audit is None and found is None and not required:
        return
    mechanism = at_of(result, "privacy", "mechanism")
    if audit is None and found is None:
        yield _audit_fails("no audit", "No audit was given")
    elif mechanism not in ("local", "shared"):
        yield _audit_fails(
            "no privacy", "The run was without privacy, so there is no claim that an audit could test"
        )
    else:
        before = None if found is None else _audited(str(mechanism), found)
        if audit is not None:
            try:
                yield _audited(str(mechanism), audited(audit, _sha256(audit)))
            except GatesError:
                yield _audit_fails("not readable", "What was given is no audit that can be read")
        if before is not None and not (audit is not None and before.passed):
            yield before


def audited(audit: Json, sha256: str) -> Audited:
    """What an audit (JSON of `fedrisk audit`, in a file of that SHA-256) found; `GatesError` where it is none."""
    findings = [
        (str(at_of(setting, "name")), finding)
        for setting in _list(audit.get("settings"))
        for finding in _list(at_of(setting, "findings"))
    ]
    bounds = [
        (at_of(each, "epsilon"), at_of(each, "claim"), f"{setting}: {at_of(each, 'method')}")
        for setting, each in findings
        if at_of(each, "kind") != "check"
    ]
    if (
        audit.get("schema") != 1
        or not bounds
        or not all(_real(level) and _real(claim) for level, claim, _ in bounds)
    ):
        raise GatesError(NO_AUDIT)
    level, claim, attack = max(bounds, key=lambda each: each[0] - each[1])
    failed = [
        f"{setting}: {at_of(each, 'method')}" for setting, each in findings if at_of(each, "ok") is not True
    ]
    failed += [
        f"membership, {at_of(each, 'group')}"
        for each in _list(audit.get("membership"))
        if at_of(each, "ok") is not True
    ]
    names = list(dict.fromkeys(setting for setting, _ in findings))
    confidence = audit.get("confidence")
    try:
        return Audited(
            sha256=sha256,
            claimed_epsilon=claim,
            lower_bound=level,
            confidence=confidence if _real(confidence) else None,
            attack=attack,
            what=f"{audit.get('data') or 'people who are not named'}: {'; '.join(names)}",
            mechanisms=tuple(sorted({name.partition(",")[0] for name in names if "," in name})),
            failed=tuple(failed),
            ok=audit.get("ok") is True,
        )
    except ValidationError:
        raise GatesError(NO_AUDIT) from None


def _audited(mechanism: str, audit: Audited) -> Gate:
    """An audit of this mechanism, whatever else it tried."""
    if mechanism not in audit.mechanisms:
        return _audit_fails(
            f"not of {mechanism} noise", f"The audit did not try the run's own mechanism, {mechanism} noise"
        )
    level, claim, failed = audit.lower_bound, audit.claimed_epsilon, audit.failed
    limit = Limit(most=claim, places=2)
    found = limit.says(_exact(level))
    sentence = f"The strongest attack of the audit ({audit.attack}) shows an ε of at least {found}, and {claim:g} is claimed"
    if failed:
        found, sentence = (
            f"{found}; failed: {', '.join(failed)}",
            f"{sentence}; it failed at {', '.join(failed)}",
        )
    passed = limit.holds(level, level) and not failed and audit.ok
    return Gate(
        name="audit",
        asked=AUDIT_ASKED,
        found=found,
        value=level,
        bound=claim,
        passed=passed,
        sentence=f"{sentence}; an audit must have {AUDIT_ASKED}: {_verdict(passed)}.",
    )


def _audit_fails(found: str, sentence: str) -> Gate:
    return _fact("audit", AUDIT_ASKED, found, False, f"{sentence}; there must be one, with {AUDIT_ASKED}")


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


# --- whose run it was -------------------------------------------------------------------------------------


def _run(gates: Gates, result: Json) -> Iterator[Gate]:
    trained = [name for name, facts in _items(result.get("agencies")) if at_of(facts, "status") == "trained"]
    if gates.min_agencies is not None:
        limit = Limit(least=gates.min_agencies, unit="count", places=0)
        yield _hold("min_agencies", "The number of agencies that trained", _exact(len(trained)), limit)
    registration = _registration(result)
    if gates.registered:
        yield _registered(registration)
    if gates.agencies_as_registered:
        yield _as_registered(registration, trained)
    if not gates.simulation_allowed:
        played = result.get("simulation") is not False
        found = "a simulation" if played else "real agencies"
        sentence = f"This is the result of {found}; it must be that of real agencies"
        yield _fact("simulation", "real agencies", found, not played, sentence)


def _registration(result: Json) -> Registration | str:
    """What was registered before the run, or why that does not count."""
    registered = result.get("registration")
    if registered is None:
        return "no registration"
    try:
        signed = Signed.model_validate(at_of(registered, "signed"))
        found = signed.read(Registration)
        created = datetime.fromisoformat(str(result.get("created")))
    except ValueError:  # DecisionError and pydantic's are
        return "a registration, or a date, that cannot be read"
    if signed.digest != at_of(registered, "sha256"):
        return "another registration than its SHA-256 names"
    if not signed.signatures:
        return "a registration that nobody signed"
    if created.tzinfo is None or found.registered >= created:
        return "a registration that is not older than the result"
    return found


def _registered(found: Registration | str) -> Gate:
    asked = "registered before the run"
    if isinstance(found, str):
        return _fact("registered", asked, found, False, f"The result has {found}; the run must be {asked}")
    at = found.registered.astimezone(UTC)
    text = f"by {found.panel} on {at.day} {at:%B %Y}"
    return _fact("registered", asked, text, True, f"The run was registered {text}; it must be {asked}")


def _as_registered(found: Registration | str, trained: Sequence[str]) -> Gate:
    name, asked = "agencies_as_registered", "only registered agencies trained"
    if isinstance(found, str):
        return _fact(name, asked, found, False, f"The result has {found}, so nobody knows whether {asked}")
    others = ", ".join(agency for agency in trained if agency not in found.agencies)
    if others or not trained:
        text = f"not registered: {others}" if others else "no agency trained"
        return _fact(name, asked, text, False, f"It must be that {asked}; {text}")
    return _fact(name, asked, "only those", True, f"It must be that {asked}; so it was")
