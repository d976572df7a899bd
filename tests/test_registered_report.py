"""What was registered before a run is in its report, word for word; what nobody answered is red, and a failed gate is named."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from fake_result import fake_result
from panels import Signatories
from test_report import Outline

from federation.panel import registered
from federation.panel.registered import ABOUT, NEXT
from federation.panel.report import render_report
from federation.server.gates import Gates

PANEL = Signatories.of("alice", "bob", quorum=2)
RESULT = fake_result()
CREATED = datetime.fromisoformat(RESULT["created"])
EASY = {
    "net_benefit_gain": None,
    "simulation_allowed": True,
    "agencies_as_registered": False,
    "auc": 0.51,
}


def page(answers: dict[str, str] | None = None, **registration: Any) -> str:
    given = {
        "registered": CREATED - timedelta(days=1),
        "gates": EASY,
        "answers": answers or {},
    }
    signed = PANEL.signed(PANEL.registration(**(given | registration)))
    whole = {"sha256": signed.digest, "signed": json.loads(signed.canonical)}
    return render_report(RESULT | {"registration": whole})


def text(page: str) -> str:
    return Outline(page).text


def test_a_run_that_was_not_registered_says_so_first() -> None:
    said = text(render_report(RESULT))
    assert said.index("Not registered before it began.") < said.index("What is it for?")
    assert "no panel can approve it" in said
    assert "no gates were registered for this run" in said
    assert "it is not given when it is measured again" in said


def test_every_answer_is_on_the_page_and_what_is_not_given_is_red() -> None:
    answers = {key: f"answer to {key} <b>" for key in [*ABOUT, *NEXT, "not_for"]}
    whole = page(answers)
    said = text(whole)
    for key in answers:
        assert f"answer to {key} <b>" in said
    assert "not given" not in said.split("What people answered")[1].split("Who took part")[0]
    assert "alice, bob signed these answers for Test panel" in said
    assert "The fingerprint of what they signed is in the plan" in said

    del answers["dpia"]
    assert text(page(answers)).count("Data protection impact assessment not given") == 1
    assert text(render_report(RESULT)).count("Data protection impact assessment not given") == 1
    assert '<dd><span class="alarm-text">not given</span></dd>' in page(answers)


def test_gates_are_named_with_their_verdict() -> None:
    said = text(page())
    assert "Every gate is passed." in said
    assert "gates failed" not in said

    said = text(page(gates=EASY | {"auc": 0.999, "min_agencies": 99}))
    assert "2 of" in said
    assert said.index("gates failed.") < said.index("What is it for?")
    assert "must be at least 0.999" in said


def test_every_gate_has_a_name_in_words() -> None:
    def names(settings: dict[str, Any], before: str = "") -> Iterator[str]:
        for name, value in settings.items():
            if isinstance(value, dict):
                yield from names(value, f"{before}{name}.")
            else:
                yield before + name

    judged_as = {"simulation_allowed": "simulation", "audit_required": "audit"}
    known = {judged_as.get(name, name) for name in names(Gates().model_dump())}
    assert known <= set(registered.GATES)


def test_a_registration_after_the_run_does_not_count() -> None:
    said = text(page(registered=CREATED + timedelta(seconds=1)))
    assert "Registered after the run." in said
    assert "The fingerprint of what they signed is in the plan" not in said


@pytest.mark.parametrize("change", [{"signed": {}}, {"signed": None}, {"sha256": None}])
def test_a_registration_that_cannot_be_read_is_none(change: dict[str, Any]) -> None:
    signed = PANEL.signed(PANEL.registration())
    whole = {"sha256": signed.digest, "signed": json.loads(signed.canonical)} | change
    said = text(render_report(RESULT | {"registration": whole}))
    if "signed" in change:
        assert "Not registered before it began." in said
    else:
        assert "not registered" in said  # the hash that identifies it


def test_evidence_is_read_as_it_is_attached_and_is_nothing_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not any(registered.evidence_of(RESULT).values())
    attached = {"audit": None, "replaces": {"run_id": "early-help-1"}}
    for evidence in (attached, SimpleNamespace(model_dump=lambda mode: attached)):
        registration = SimpleNamespace(evidence=evidence)
        monkeypatch.setattr(registered, "registration_of", lambda _, found=registration: found)
        assert registered.evidence_of(RESULT) == attached


def test_the_page_stays_small_and_whole_with_everything_in_it() -> None:
    whole = page(dict.fromkeys([*ABOUT, *NEXT, "not_for"], "x" * 4000))
    assert len(whole) < 1_500_000
    Outline(whole)
