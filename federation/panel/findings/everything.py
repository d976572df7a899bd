"""Every finding by the name that checklists.yaml and atrs.yaml use."""

from collections.abc import Iterator, Mapping

from federation.decision import Answers
from federation.panel.findings import about, cost, fair, happened, works
from federation.panel.findings.finding import Find, answer

_FOUND: tuple[Find, ...] = (
    about.additive,
    about.agencies,
    about.cautions,
    about.data_contract,
    about.description,
    about.experiment,
    about.groups,
    about.identity,
    about.model,
    about.model_input,
    about.model_output,
    about.outcome,
    about.purpose,
    about.records_stay,
    about.simulation,
    about.size,
    about.sizes,
    about.training,
    about.version,
    cost.audit,
    cost.disclosure,
    cost.privacy,
    cost.robustness,
    cost.several,
    fair.analysis,
    fair.between_agencies,
    fair.by_agency,
    fair.by_group,
    fair.characteristics,
    fair.conflicts,
    fair.fairness_training,
    fair.gaps,
    fair.hidden,
    fair.intersections,
    fair.worst_gap,
    happened.changed,
    happened.departures,
    happened.gates,
    happened.incidents,
    happened.registered,
    happened.took_part,
    works.base_rate,
    works.benefit,
    works.brier,
    works.calibration,
    works.calibration_error,
    works.capacity,
    works.compared,
    works.constant,
    works.cutoff,
    works.errors,
    works.lead,
    works.measures,
    works.people,
    works.practice,
    works.ranking,
    works.recalibration,
    works.right_if_flagged,
    works.set_aside,
    works.super_users,
)


def _named() -> Iterator[tuple[str, Find]]:
    for find in _FOUND:
        yield find.__name__, find
    for key in Answers.model_fields:
        yield f"answer {key}", answer(key)


FINDINGS: Mapping[str, Find] = dict(_named())
