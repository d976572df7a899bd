"""`fedrisk draft`: a run before it begins, as a file that an ethics panel completes and signs.

What follows from the settings, the contract and the agencies' public facts is filled in; what only people can say is a
question with no answer. `fedrisk-panel register` reads the file, signs it, and `registration=` runs it. What is known
before the run goes with it: an audit of the privacy claim, and the model that it may replace.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from experiments.config import compose, read
from federation.decision import (
    Answers,
    Audited,
    Decision,
    DecisionError,
    Evidence,
    Replaced,
    Signed,
    read_approval,
)
from federation.experiment import Experiment, SettingsError, checked
from federation.panel.files import UNREADABLE, PanelError
from federation.panel.registered import registration_of
from federation.panel.runs import APPROVAL, FILES, MODEL, RESULT, Run, read_json, read_run
from federation.server.gates import GatesError, audited, read_gates

NOTHING = Evidence()
QUESTIONS: dict[str, str] = {
    "intended_use": "What is the model for, and for whom?",
    "not_for": "What must it not be used for?",
    "who_acts": "Who acts on a score, and what may they do?",
    "outcome_is_a_proxy": "What does the outcome stand for, and how can it differ from it?",
    "benefit": "What is better with it than without it?",
    "current_practice": "How is this decided today?",
    "date_windows": "From when to when are the records, and when does the outcome count?",
    "legal_basis": "Which law lets each agency use its records for this?",
    "dpia": "The reference of the data protection impact assessment.",
    "equality_impact": "The reference of the equality impact assessment.",
    "missing_attributes": "Which protected characteristics are not in the records, so nobody can audit them?",
    "drift_owner": "Who watches whether it still works?",
    "contest": "How does a person contest a score?",
    "stop_plan": "Who can stop it, and how?",
    "retest": "When is it measured again, on what?",
}


def draft_from(
    overrides: Sequence[str], out: Path, audit: Path | None = None, replaces: Path | None = None
) -> None:
    """Write the draft of the run that `overrides` describe to the new file `out`.

    audit: what `fedrisk audit` wrote. replaces: the folder of the finished run whose model stands until now.
    """
    evidence = Evidence(
        audit=None if audit is None else audit_of(audit),
        replaces=None if replaces is None else replaced_by(replaces),
    )
    config = compose(overrides)
    experiment = read(config, tables=False).experiment
    gates = OmegaConf.to_container(config.gates, resolve=True)
    text = draft(experiment, dict(gates) if isinstance(gates, dict) else {}, evidence)  # type: ignore[arg-type]
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SettingsError(f"{out} exists: name another file with --out, or remove it first") from None
    print(f"draft   {out}\nnext    answer what is null in it, then: fedrisk-panel register {out}")


def draft(experiment: Experiment, gates: dict[str, Any], evidence: Evidence = NOTHING) -> str:
    """The YAML text; `SettingsError` where the gates are none."""
    contract, settings = experiment.data_contract, experiment.settings
    try:
        read_gates(gates)
    except GatesError as error:
        raise SettingsError("\n".join(f"gates: {line}" for line in str(error).splitlines())) from None
    known = {
        "experiment": settings.name,
        "purpose": settings.purpose,
        "outcome": contract.label.description or contract.label.column,
        "horizon": contract.label.horizon,
        "contract_sha256": contract.sha256,
        "agencies": sorted(participant.name for participant in experiment.participants),
        "groups": [group.name for group in contract.groups],
    }
    asked = "".join(
        f"  # {question}\n  {key}: null\n"
        for key, question in QUESTIONS.items()
        if key in Answers.model_fields
    )
    return (
        "# A run before it begins, for an ethics panel: answer what is null, change the gates if others are wanted, and\n"
        "# sign it with fedrisk-panel register. What is left null is shown as not given, in red.\n"
        f"answers:\n{asked}\n"
        "# What the model must pass to be approved, judged on the unfavourable end of each interval.\n"
        f"{_yaml({'gates': gates})}\n{_known_before(evidence)}"
        "# What was planned. To change it, change the command and draft again: other values void the registration.\n"
        f"{_yaml(known)}{_yaml({'terms': experiment.terms})}"
    )


def _known_before(evidence: Evidence) -> str:
    if evidence == NOTHING:
        return ""
    values = json.loads(evidence.canonical)
    return f"# What was known before the run. It is signed with the rest; the files that it names are not.\n{_yaml({'evidence': values})}\n"


def audit_of(path: Path) -> Audited:
    """What the audit in `path` found; `SettingsError` where `fedrisk audit` did not write it."""
    try:
        content = path.read_bytes()
        return audited(dict(read_json(content)), hashlib.sha256(content).hexdigest())
    except (OSError, *UNREADABLE):  # GatesError is one
        raise SettingsError(
            f"--audit: {path} is no audit that can be read: name the JSON file that `fedrisk audit` wrote"
        ) from None


def replaced_by(folder: Path) -> Replaced:
    """The model of the finished run in `folder`; `SettingsError` where there is none, or its approval is of another."""
    try:
        run = read_run(folder)
        gone = [
            name
            for name in (RESULT, FILES["card_sha256"], FILES["weights_sha256"])
            if not (folder / name).is_file()
        ]
        if gone:
            raise PanelError(f"{folder / gone[0]} is missing: name the folder of a finished run")
        card, result, weights = run.card, run.result, run.hashes["weights_sha256"]
        if (card.weights_sha256, card.run_id) != (weights, result.get("run_id")):
            raise PanelError(
                f"{folder}: result, card and weights are not of one run: get the run's folder again"
            )
        decision = _approval_beside(run)
    except (PanelError, DecisionError) as error:
        raise SettingsError(f"--replaces: {error}") from None
    registration = registration_of(result)
    overall = ((result.get("final") or {}).get("metrics") or {}).get("overall") or {}
    values = {
        "run_id": card.run_id,
        "decision_sha256": None if decision is None else decision.digest,
        "weights_sha256": weights,
        "contract_sha256": card.contract_sha256,
        "terms": {} if registration is None else registration.terms,
        "measures": {
            name: {end: each[end] for end in ("value", "low", "high")}
            for name, each in overall.items()
            if each["publishable"]
        },
    }
    return checked(Replaced, values, within=["--replaces"])


def _approval_beside(run: Run) -> Signed | None:
    """The decision of the approval.json that was delivered with the run's model, if one was."""
    path = run.folder / MODEL / APPROVAL
    if not path.is_file():
        return None
    signed = read_approval(path.read_text(encoding="utf-8")).decision
    subject = signed.read(Decision).subject
    if (subject.run_id, subject.weights_sha256) != (run.card.run_id, run.card.weights_sha256):
        raise PanelError(f"{path} approves another model than this one: deliver the right one, or remove it")
    return signed


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
