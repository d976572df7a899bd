"""`users` of result.json: whom the model flags, beside how they use services, how early, and what is done today.

It is read from the sum of the agencies' noised tables of users, which are taken once, with the last score table on
test people: no reading of them costs any further ε.
"""

import math
from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from federation.experiment import Experiment
from federation.plan import TrainPlan
from federation.server.masked import noise_variance
from models.contract import Contract
from models.users import UserTable, summarise

ANSWERS = ("by_intensity", "most_intensive_share_of_flagged", "found_beyond", "lead", "practice")


def users_of(
    experiment: Experiment, plan: TrainPlan, measured: int, tables: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """`users` for the weights after round `measured`; None where the contract declares nothing for it.

    Where there is no table (the run was not to take one, or nobody sent one), all that it would tell is null.
    """
    contract, evaluation = experiment.data_contract, experiment.settings.evaluation
    if contract.users_shape is None:
        return None
    prefix = f"users/{measured}/"
    found = [
        UserTable(counts, noise_variance(plan, "users", whose.removeprefix(prefix)))
        for whose, counts in sorted(tables.items())
        if whose.startswith(prefix)
    ]
    told: dict[str, Any] = {"declared": _declared(contract), "part": "test"}
    if not found:
        return told | {"sigma": None} | dict.fromkeys(ANSWERS)
    table = reduce(add, found)
    sigma = math.sqrt(float(table.variance.flat[0]))
    return told | {"sigma": sigma} | summarise(table, contract, evaluation.cutoff, evaluation.rule)


def _declared(contract: Contract) -> dict[str, Any]:
    intensity, lead, practice = contract.intensity, contract.lead_time, contract.practice
    return {
        "intensity": intensity
        and {
            "column": intensity.column,
            "levels": [level.name for level in intensity.levels],
            "description": intensity.description,
        },
        "lead_time": lead
        and {
            "column": lead.column,
            "unit": lead.unit,
            "edges": list(lead.edges),
            "description": lead.description,
        },
        "practice": practice and {"column": practice.column, "description": practice.description},
    }
