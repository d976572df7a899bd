"""`model-card.json`: a model card in the JSON of Google's Model Card Toolkit, schema 0.0.2, with intervals.

Mitchell et al., Model Cards for Model Reporting (FAT* 2019); the schema: github.com/tensorflow/model-card-toolkit.
Numbers are texts there, and are here exactly as in result.json. What may not be published is left out and
counted in a limitation; what nobody said (an owner, a licence) is left out and named in one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from federation.panel.evidence import result_sha256
from federation.panel.facts import Fact, answered, at, facts, metrics_source, pointer, table
from federation.panel.findings import about, cost, fair, happened, works
from federation.panel.findings.finding import Find, Json, supported
from federation.panel.registered import ABOUT, NEXT, registration_of

SCHEMA_VERSION = "0.0.2"
BESIDE = ("report.html", "evidence.json", "atrs.json", "result.json")
ARCHITECTURE: tuple[Find, ...] = (about.model, about.additive, about.training, works.recalibration)
LIMITATIONS: tuple[Find, ...] = (
    about.simulation,
    about.cautions,
    fair.hidden,
    works.constant,
    works.super_users,
    cost.robustness,
    happened.departures,
)
TRADEOFFS: tuple[Find, ...] = (
    cost.privacy,
    cost.several,
    fair.conflicts,
    works.cutoff,
    works.capacity,
    fair.analysis,
)
RISKS: tuple[
    tuple[str, tuple[Find, ...], tuple[str, ...]], ...
] = (  # risk, findings, and answers that mitigate it
    (
        "Groups are not treated alike",
        (fair.worst_gap, happened.gates, fair.fairness_training),
        ("equality_impact",),
    ),
    (
        "A person can be recognised in what was learned",
        (cost.privacy, cost.audit, about.records_stay),
        ("dpia",),
    ),
    ("A score is followed without thinking", (), ("who_acts",)),
    ("A person cannot contest a score", (), ("contest",)),
    ("It goes on when it no longer works", (), ("retest", "drift_owner", "stop_plan")),
)


def model_card(result: Json) -> dict[str, Any]:
    """The model card of `result` (schema 1 of result.json)."""
    measured = list(_measured(result))
    hidden = sum(fact.state == "suppressed" for _, fact in measured)
    metrics = [_metric(where, fact) for where, fact in measured if fact.state == "shown"]
    return {
        "schema_version": SCHEMA_VERSION,
        "model_details": _details(result),
        "model_parameters": _parameters(result),
        "quantitative_analysis": {"performance_metrics": metrics},
        "considerations": _considerations(result, hidden),
    }


def _details(result: Json) -> dict[str, Any]:
    run, owner = result.get("run_id"), answered(result, "drift_owner")
    made = str(result.get("created") or "")[:10]
    cited = f"{result.get('experiment')}, run {run}, fedrisk {result.get('fedrisk_version')}, SHA-256 of result.json {result_sha256(result)}"
    return {
        "name": str(result.get("experiment") or "not named"),
        "overview": _told(result, about.outcome, about.purpose),
        "documentation": _told(result, about.description, about.agencies, about.data_contract),
        "version": {"name": str(run or "not given")} | ({"date": made} if made else {}) | _diff(result),
        "references": [{"reference": name} for name in BESIDE],
        "citations": [{"style": "plain", "citation": cited}],
    } | ({"owners": [{"name": f"watches whether it still works: {owner}"}]} if owner else {})


def _diff(result: Json) -> dict[str, str]:
    changed = supported(happened.changed, result)
    return {} if changed is None else {"diff": changed.text}


def _parameters(result: Json) -> dict[str, Any]:
    contract, spec = table(result.get("contract")), table(result.get("model"))
    groups = [str(name) for name in table(at(result, f"{metrics_source(result) or '/final/metrics'}/groups"))]
    data = {
        "name": str(contract.get("name") or "not given"),
        "description": _told(result, about.agencies, about.sizes, works.set_aside, about.records_stay),
    } | ({"sensitive": {"sensitive_data": groups}} if groups else {})
    return {
        "model_architecture": _told(result, *ARCHITECTURE),
        "data": [data],
        "input_format": _told(result, about.model_input),
        "input_format_map": _map(features=spec.get("features"), contract_sha256=contract.get("sha256")),
        "output_format": _told(result, about.model_output),
        "output_format_map": _map(
            outcome=contract.get("label"), horizon=contract.get("horizon"), range="0 to 1"
        ),
    }


def _map(**values: Any) -> list[dict[str, str]]:
    return [{"key": key, "value": str(value)} for key, value in values.items() if value is not None]


# --- numbers --------------------------------------------------------------------------------------------------


def _measured(result: Json) -> Iterator[tuple[str, Fact]]:
    """Every estimate of the metrics with the slice of people that it is of."""
    source = metrics_source(result)
    if source is None:
        return

    def of(where: str, *keys: str) -> Iterator[tuple[str, Fact]]:
        if at(result, source + pointer(*keys)) is not None:
            yield from (
                (where, fact) for fact in facts(result, source + pointer(*keys), *keys) if _judged(fact)
            )

    found = at(result, source)
    yield from of("overall", "overall")
    for agency in table(found.get("agencies")):
        yield from of(f"agency: {agency}", "agencies", agency)
    for attribute, levels in table(found.get("groups")).items():
        for level in table(levels):
            yield from of(f"{attribute}: {level}", "groups", attribute, level)
    for group in table(found.get("intersections")):
        yield from of(group, "intersections", group)
    for attribute in table(found.get("gaps")):
        yield from of(f"between groups of {attribute}", "gaps", attribute)
    yield from of("between agencies", "between_agencies")
    for attribute, agencies in table(found.get("agency_gaps")).items():
        for agency in table(agencies):
            yield from of(
                f"agency: {agency}, between groups of {attribute}", "agency_gaps", attribute, agency
            )
    for who in table(found.get("constant")):
        yield from of(f"the same said of everyone: {who}", "constant", who)
    yield from _at_capacity(found, of)


def _at_capacity(found: Json, of: Any) -> Iterator[tuple[str, Fact]]:
    capacity = table(found.get("capacity"))
    words = f"capacity {100 * capacity['share']:g}%" if capacity.get("share") else "capacity"
    yield from of(words, "capacity", "overall")
    for attribute, levels in table(capacity.get("groups")).items():
        for level in table(levels):
            yield from of(f"{words}, {attribute}: {level}", "capacity", "groups", attribute, level)


def _judged(fact: Fact) -> bool:
    """Whether it is an estimate: those that may be shown have an interval."""
    return fact.state == "suppressed" or fact.low is not None or fact.high is not None


def _metric(where: str, fact: Fact) -> dict[str, Any]:
    ends = {"lower_bound": fact.low, "upper_bound": fact.high}
    interval = {name: repr(end) for name, end in ends.items() if end is not None}
    gap = " difference" if where.startswith("between") or ", between" in where else ""
    return {
        "type": fact.name + gap,
        "value": repr(fact.value),
        "slice": where,
        "confidence_interval": interval,
    }


# --- words ----------------------------------------------------------------------------------------------------


def _considerations(result: Json, hidden: int) -> dict[str, Any]:
    users, uses = answered(result, "who_acts"), answered(result, "intended_use")
    found = {
        "users": [users] if users else [],
        "use_cases": [uses] if uses else [],
        "limitations": list(_limitations(result, hidden)),
        "tradeoffs": _texts(result, TRADEOFFS),
    }
    said: dict[str, Any] = {
        name: [{"description": text} for text in texts] for name, texts in found.items() if texts
    }
    return said | {"ethical_considerations": [_risk(result, *risk) for risk in RISKS]}


def _limitations(result: Json, hidden: int) -> Iterator[str]:
    not_for = answered(result, "not_for")
    yield f"Not for: {not_for}" if not_for else "Nobody said what it must not be used for."
    if registration_of(result) is None:
        yield "It was not registered before it began: no panel can approve it."
    for key in ("outcome_is_a_proxy", "missing_attributes", "date_windows"):
        if said := answered(result, key):
            yield f"{ABOUT[key]}: {said}"
    yield from _texts(result, LIMITATIONS)
    if hidden:
        yield f"{hidden} numbers are left out: too few people, or too much noise, to publish them."
    silent = [words for key, words in (ABOUT | NEXT).items() if answered(result, key) is None]
    if silent:
        yield f"Nobody answered: {'; '.join(silent)}."
    yield "No licence of the model is stated."
    if answered(result, "drift_owner") is None:
        yield "No owner of the model is named."


def _risk(result: Json, name: str, findings: tuple[Find, ...], keys: tuple[str, ...]) -> dict[str, str]:
    texts = _texts(result, findings) + [said for key in keys if (said := answered(result, key))]
    return {"name": name, "mitigation_strategy": " ".join(texts) or "Nobody said how this is met."}


def _told(result: Json, *findings: Find) -> str:
    return " ".join(_texts(result, findings)) or "not given"


def _texts(result: Json, findings: tuple[Find, ...]) -> list[str]:
    told: Mapping[str, None] = dict.fromkeys(
        finding.text for find in findings if (finding := supported(find, result)) is not None
    )
    return list(told)
