"""Section 6, what changed since the last model that the panel approved: settings in words, measures side by side."""

from collections.abc import Mapping
from typing import Any

from federation.panel.registered import evidence_of, registration_of
from federation.panel.sections.numbers import (
    GONE,
    HIDDEN,
    MEASURES,
    Cell,
    Json,
    Unit,
    cell,
    given,
    mark_of,
    of_mark,
)
from federation.panel.sections.tensions import say_setting

SETTINGS = {  # a registered setting -> the words of it
    "name": "name of the experiment",
    "purpose": "purpose",
    "seed": "seed of the random numbers",
    "rounds": "rounds of training",
    "min_agencies": "agencies that a round needs",
    "void_rounds": "void rounds in a row that stop the run",
    "model.name": "kind of model",
    "model.hidden": "hidden layers of the model",
    "privacy.mechanism": "how the noise is made",
    "privacy.epsilon": "privacy cost of the training (ε)",
    "privacy.evaluate_epsilon": "privacy cost of the measuring (ε)",
    "privacy.delta": "chance that the privacy promise fails (δ)",
    "privacy.noise_multiplier": "noise of the training",
    "privacy.max_grad_norm": "how far one person may pull the model",
    "privacy.sample_rate": "chance that a person is in a step",
    "strategy.name": "how changes are put together",
    "local.steps": "steps in a round",
    "local.learning_rate": "size of a step",
    "evaluation.cutoff": "score from which a person is flagged",
    "evaluation.checkpoints": "checkpoints",
    "evaluation.minimum": "people behind a number that is shown, at least",
    "split.tune": "share of people set aside for tuning",
    "split.test": "share of people set aside for the test",
    "participants": "agencies, with size and weight",
}
WORST_GAP = ("Worst gap between groups", "points")


def changed(result: Json, metrics: Json | None) -> dict[str, Any] | None:
    """The last approved model beside this one; None where the registration names none."""
    before = evidence_of(result).get("replaces")
    if not before:
        return None
    registration = registration_of(result)
    old, new = before.get("terms"), None if registration is None else registration.terms
    contract = (result.get("contract") or {}).get("sha256")
    return {
        "run_id": given(before.get("run_id")),
        "decision": given(before.get("decision_sha256")),
        "weights": given(before.get("weights_sha256")),
        "same_contract": None
        if not contract or not before.get("contract_sha256")
        else contract == before["contract_sha256"],
        "contract": given(before.get("contract_sha256")),
        "terms": _terms(old, new) if isinstance(old, Mapping) and old and new is not None else None,
        "measures": [
            _measure(name, value or {}, metrics or {})
            for name, value in (before.get("measures") or {}).items()
        ],
    }


def _terms(old: Json, new: Json) -> list[tuple[str, str, str]]:
    """(setting, before, now) of each that differs."""
    before, now = dict(_flat(old)), dict(_flat(new))
    return [
        (_words(name), _said(before, name), _said(now, name))
        for name in dict.fromkeys([*now, *before])
        if before.get(name, _flat) != now.get(name, _flat)
    ]


def _words(name: str) -> str:
    return SETTINGS.get(name) or name.replace(".", ": ").replace("_", " ")


def _said(settings: Json, name: str) -> str:
    if name not in settings:
        return "not set"
    value = settings[name]
    if name == "participants" and isinstance(value, list):
        return "; ".join(_participant(each) for each in value)
    return say_setting(value)


def _participant(each: Any) -> str:
    if not isinstance(each, Mapping):
        return str(each)
    return f"{each.get('name')} ({say_setting(each.get('public_size'))}, weight {say_setting(each.get('weight'))})"


def _flat(values: Json, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted name, value)."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _measure(name: str, before: Json, metrics: Json) -> tuple[str, Cell, Cell]:
    unit: Unit
    if name == "worst_gap":
        return WORST_GAP[0], _then(before, "points"), cell(metrics.get(name), "points")
    words, _, unit = MEASURES.get(name, (name.replace("_", " "), "", "decimal"))
    return words, _then(before, unit), cell((metrics.get("overall") or {}).get(name), unit)


def _then(before: Json, unit: Unit) -> Cell:
    """What was published of the earlier model; an estimate that says it may not be shown is not."""
    if before.get("publishable") is False:
        return Cell(HIDDEN, hidden=True)
    mark = mark_of(before)
    return Cell(GONE, hidden=True) if mark is None else of_mark(mark, unit)
