"""What somebody reads who is asked to approve a map or a cohort: made from what the plan asks, and believing nothing of its names."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTRACT, MakeStudy, people, permits
from test_demand import OF_ALL, POLICY, WORKLOAD, ask, deployed, plan_of
from typer.testing import CliRunner

from clients import cli
from clients.desk.plan_words import about
from federation import wire
from federation.cohort import CohortPlan
from federation.demand import MapPlan
from federation.plan import Reason
from federation.privacy import epsilon
from federation.protocol import MapOrder, Refusal
from models.cohort import planned_buckets
from models.contract import Contract

WHOLE = Contract.from_dict(CONTRACT)
MATCHED = Contract.from_dict(CONTRACT | {"match": {"identifier": "number"}})


@pytest.fixture
def plan(make_study: MakeStudy) -> MapPlan:
    return plan_of(make_study(), epsilon=0.5)


def test_a_map_is_said_whole(plan: MapPlan) -> None:
    assert (
        about(plan, WHOLE, "clinic")
        == [
            f"a map: {plan.design_of(WHOLE, 'clinic').numbers} noised counts of the people here leave once, as this agency's own",  # type: ignore[union-attr]
            f"costs ε = {epsilon(plan.releases(), plan.delta):.2f} (δ = 1e-05) of one person, for all of these together",
            "counted by the columns age, known, sex, visits",
            *about(plan, WHOLE, "clinic")[3:],
        ]
    )
    questions = [line.partition(" (each count ± ")[0] for line in about(plan, WHOLE, "clinic")[3:]]
    assert questions == [
        "- number of people, by band (column age) and known",
        "- number of people, by sex",
        "- share with known yes, of people with sex female",
        "- number of people, by often (column visits)",
    ]
    assert len(about(plan, WHOLE, "north")) == 6, "what an agency does not hold it is not asked for"


def test_names_that_a_coordinator_gives_are_not_believed(make_study: MakeStudy) -> None:
    named: dict[str, Any] = WORKLOAD | {
        "queries": [{"histogram": "sex", "name": "how many chairs there are"}],
        "attributes": {"chairs": {"column": "age", "edges": [30]}},
    }
    named["queries"].append({"histogram": "chairs", "name": "again chairs"})
    said = " ".join(about(plan_of(make_study(), named), WHOLE, "north"))
    assert "chairs there are" not in said
    assert "by chairs (column age)" in said


def test_masks_are_said(make_shared: MakeStudy) -> None:
    said = about(plan_of(make_shared(), OF_ALL, epsilon=4.0), WHOLE, "north")
    assert "behind masks: only the sum of all agencies is seen" in said[0]


def test_what_cannot_be_read_and_what_is_not_asked_here(plan: MapPlan) -> None:
    (said,) = about(plan.but(workload="[1]"), WHOLE, "north")
    assert said.startswith("a map that cannot be read: workload")
    (said,) = about(plan.but(without={"north": ["age", "sex", "known"]}), WHOLE, "north")
    assert said == "a map that asks for nothing that this agency holds"
    (said,) = about(plan, WHOLE, "stranger")
    assert "does not list the agency" in said


def test_a_cohort_says_with_whom_by_what_and_its_price(plan: MapPlan) -> None:
    terms = {name: getattr(plan, name) for name in set(MapPlan.model_fields) & set(CohortPlan.model_fields)}
    of = ("clinic", "north")
    facts = {"of": of, "epsilon": 0.7, "by": "sex", "levels": 2}
    cohort = CohortPlan(**terms, **facts, buckets=planned_buckets([300, 300], 0.7, 2))
    what, price, columns = about(cohort, MATCHED, "north")
    assert what.startswith("a cohort: how many people this agency and clinic both know, by sex. ")
    assert price == "costs ε = 0.70 (δ = 0) of one person here, and as much at each of the others"
    assert columns == "counted by the columns number, sex"


def test_who_decides_reads_it(tmp_path: Path, plan: MapPlan) -> None:
    """Where a person must say yes: `policy asked` and `policy check` have the words, and `--json` has them too."""
    policy = POLICY | {"purposes": permits()["purposes"], "ask": True}
    folder = deployed(tmp_path / "node", policy, people(0))
    assert ask(folder, wire.pack_map_order(MapOrder(plan), 1)) == Refusal("north", Reason.NOT_YET)
    words = about(plan, WHOLE, "north")
    asked = CliRunner().invoke(cli.app, ["policy", "asked", str(folder)])
    assert all(line in asked.output for line in words)
    (waits,) = json.loads(CliRunner().invoke(cli.app, ["policy", "asked", str(folder), "--json"]).output)
    assert waits["about"] == words
    checked = CliRunner().invoke(cli.app, ["policy", "check", plan.sha256, "--folder", str(folder)])
    assert all(line in checked.output for line in words)
