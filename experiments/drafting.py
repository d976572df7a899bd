"""`fedrisk draft`: a run before it begins, as a file that an ethics panel completes and signs.

What follows from the settings, the contract and the agencies' public facts is filled in; what only people can say is a
question with no answer. `fedrisk-panel register` reads the file, signs it, and `registration=` runs it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from experiments.config import compose, read
from federation.decision import Answers
from federation.experiment import Experiment, SettingsError
from federation.server.gates import GatesError, read_gates

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


def draft_from(overrides: Sequence[str], out: Path) -> None:
    """Write the draft of the run that `overrides` describe to the new file `out`."""
    config = compose(overrides)
    experiment = read(config, tables=False).experiment
    gates = OmegaConf.to_container(config.gates, resolve=True)
    text = draft(experiment, dict(gates) if isinstance(gates, dict) else {})  # type: ignore[arg-type]
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SettingsError(f"{out} exists: name another file with --out, or remove it first") from None
    print(f"draft   {out}\nnext    answer what is null in it, then: fedrisk-panel register {out}")


def draft(experiment: Experiment, gates: dict[str, Any]) -> str:
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
        f"{_yaml({'gates': gates})}\n"
        "# What was planned. To change it, change the command and draft again: other values void the registration.\n"
        f"{_yaml(known)}{_yaml({'terms': experiment.terms})}"
    )


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
