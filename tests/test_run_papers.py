"""The papers beside a report: made of the result alone, nothing in them that may not be published, nothing invented."""

import copy
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_result import SECRET, fake_result, whole_result
from jsonschema import Draft202012Validator
from panels import Signatories

from federation.decision import Answers
from federation.panel import atrs as atrs_module
from federation.panel import checklists as checklists_module
from federation.panel import evidence as evidence_module
from federation.panel import model_card as model_card_module
from federation.panel import papers
from federation.panel.atrs import atrs
from federation.panel.checklists import checklists
from federation.panel.evidence import evidence
from federation.panel.facts import REGISTRATION, at, is_estimate, pointer
from federation.panel.findings.everything import FINDINGS
from federation.panel.findings.finding import Finding, supported
from federation.panel.model_card import model_card
from federation.panel.papers import PAPERS, as_read, write_papers
from federation.panel.report import ANCHORS, render_report
from federation.panel.sections.numbers import shown

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
PANEL = Signatories.of("alice", "bob", quorum=2)
HIDDEN = dict(zip(("value", "low", "high"), SECRET, strict=True)) | {"publishable": False}
EASY = {"net_benefit_gain": None, "simulation_allowed": True, "agencies_as_registered": False, "auc": 0.51}


def every_part() -> Json:
    """The made-up result with every part that a result may have; an estimate of each new part is hidden."""
    result = whole_result()
    result["checkpoints"] = fake_result(checkpoints=1)["checkpoints"]  # small: each test hashes all of it
    metrics, users = result["final"]["metrics"], result["users"]
    metrics["capacity"]["overall"]["ppv"] = metrics["capacity"]["groups"]["sex"]["female"]["fpr"] = HIDDEN
    metrics["agency_gaps"]["sex"]["st anne health"]["equal_opportunity"] = HIDDEN
    metrics["between_agencies"]["fpr"] = metrics["constant"]["everybody"]["fpr"] = HIDDEN
    metrics["conflicts"]["age band"]["base_rate_gap"] = HIDDEN
    users["by_intensity"]["no service"]["tpr"] = users["practice"]["fpr"] = HIDDEN
    users["lead"]["bands"][1]["share"] = HIDDEN
    return result | {
        "departures": [
            {"agency": "gone", "at": "2026-03-01T10:00:00+00:00", "run_id": "x", "round": 3, "back": None}
        ],
        "scoring": {
            "outcome": "a crisis",
            "tune_fraction": 0.2,
            "test_fraction": 0.25,
            "bands": [],
            "recalibration": {"intercept": 0.1, "slope": 1.1},
        },
    }


def registered(result: Json, answers: Mapping[str, str] | None = None, **changes: Any) -> Json:
    """`result` with a registration, in which `answers` were given (all where None)."""
    given = {key: f"said of {key}" for key in Answers.model_fields} if answers is None else answers
    at_ = datetime.fromisoformat(result["created"]) - timedelta(days=1)
    values = {"registered": at_, "gates": EASY, "answers": given, "groups": ("sex", "age band")} | changes
    signed = PANEL.signed(PANEL.registration(**values))
    return result | {"registration": {"sha256": signed.digest, "signed": json.loads(signed.canonical)}}


WHOLE = every_part()
RESULT = as_read(registered(WHOLE))
BARE = as_read(fake_result())


def leaves(value: Any) -> Iterator[Any]:
    """Every text, number and flag in `value`, keys too."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield key
            yield from leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value


def numbers(value: Any) -> set[float]:
    return {leaf for leaf in leaves(value) if isinstance(leaf, int | float) and not isinstance(leaf, bool)}


def estimates(value: Any, where: str = "") -> Iterator[tuple[str, Json]]:
    """Every estimate below `value` with its JSON pointer."""
    if is_estimate(value):
        yield where, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from estimates(entry, where + pointer(key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from estimates(entry, where + pointer(number))


def all_facts(result: Json) -> list[Json]:
    return [fact for each in evidence(result)["questions"].values() for fact in each["facts"]]


def human(result: Json) -> set[tuple[str, str]]:
    return {
        (each["name"], item["id"]) for each in checklists(result) for item in each["items"] if item["human"]
    }


def written(result: Json) -> str:
    return "".join(make(result).decode() for make in PAPERS.values())


@cache
def all_written() -> str:
    """What is in the papers of RESULT."""
    return written(RESULT)


# --- nothing that may not be published ------------------------------------------------------------------------


def test_no_suppressed_value_is_in_any_paper() -> None:
    text = all_written()
    for value in SECRET:
        for way in (f"{value:.2f}", f"{100 * value:.1f}", f"{value:.6f}", repr(value)):
            assert way not in text, f"{value} is in a paper as {way}"
    assert any(repr(SECRET[0]) in json.dumps(part) for part in (RESULT["final"], RESULT["users"])), (
        "the test has secrets to find"
    )


def test_what_is_suppressed_is_marked_where_it_stands() -> None:
    hidden = {where for where, each in estimates(RESULT) if each["publishable"] is not True}
    marked = set(evidence(RESULT)["suppressed"])
    assert marked <= hidden
    assert {where for where in hidden if where.startswith(("/final", "/users"))} <= marked
    assert len(marked) > 40


def test_nothing_that_may_be_published_of_the_final_test_is_left_out() -> None:
    told = {fact["source"] for fact in all_facts(RESULT) if fact["state"] == "shown"}
    assert {
        where for where, each in estimates(RESULT) if where.startswith(("/final", "/users")) and shown(each)
    } <= told


# --- every number comes from the result ------------------------------------------------------------------------


def test_every_fact_is_what_stands_at_its_source() -> None:
    for fact in all_facts(RESULT):
        there = at(RESULT, fact["source"])
        if fact["state"] == "missing":
            assert there in (None, "", {}), fact
        elif is_estimate(there):
            shows = [there[end] for end in ("value", "low", "high")]
            assert fact["state"] == "suppressed" or [fact[end] for end in ("value", "low", "high")] == shows
        elif fact["of"][:1] != ["gates"] or fact["name"] not in ("asked", "found", "passed"):
            assert fact["value"] == there, fact


def test_a_missing_fact_says_so_where_it_would_stand() -> None:
    told = {fact["source"]: fact for fact in all_facts(BARE)}
    for source in ("/users", "/cautions", f"{REGISTRATION}#/answers/dpia", f"{REGISTRATION}#/evidence/audit"):
        assert told[source]["state"] == "missing"
        assert told[source]["reason"]


def test_every_number_of_the_evidence_is_in_the_result() -> None:
    signed = json.loads(at(RESULT, REGISTRATION))
    assert numbers(evidence(RESULT)["questions"]) <= numbers(RESULT) | numbers(signed)


def test_every_metric_of_the_card_is_in_the_result_with_its_interval() -> None:
    known = {tuple(repr(each[end]) for end in ("value", "low", "high")) for _, each in estimates(RESULT)}
    card = model_card(RESULT)["quantitative_analysis"]["performance_metrics"]
    for metric in card:
        ends = metric["confidence_interval"]
        assert (metric["value"], ends["lower_bound"], ends["upper_bound"]) in known
    keys = [(metric["slice"], metric["type"]) for metric in card]
    assert len(set(keys)) == len(keys)
    slices = {where for where, _ in keys}
    assert {
        "overall",
        "agency: st anne health",
        "sex: female",
        "sex=female & age band=under 25",
        "capacity 10%",
    } <= slices
    assert {"capacity 10%, sex: female", "between groups of sex", "between agencies"} <= slices
    assert {"agency: st anne health, between groups of sex", "the same said of everyone: nobody"} <= slices
    assert not any("other" in where.split() for where in slices)


NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?")


def renderings(value: Any) -> set[str]:
    """How a number, or the numbers inside a text, may be written."""
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, str):
        return set(NUMBER.findall(value))
    ways = (
        f"{value:.3f}",
        f"{value:.2f}",
        f"{100 * value:.1f}",
        f"{value:g}",
        f"{100 * value:g}",
        f"{value:,.0f}",
        str(value),
    )
    return set(ways)


@pytest.mark.parametrize("name", FINDINGS)
def test_every_number_in_a_finding_stands_at_its_sources(name: str) -> None:
    """A finding's sources hold its numbers; what is not from there is how a sentence counts: 0, 1, 95% and lengths."""
    found = FINDINGS[name](RESULT)
    if found is None:
        assert name in ("audit", "changed", "records_stay"), "the whole result answers every other"
        return
    there = [at(RESULT, source) for source in found.sources]
    assert any(each is not None for each in there)
    known = {"0", "1", "95"}.union(*(renderings(leaf) for each in there for leaf in leaves(each)))
    known |= {str(len(each)) for each in there if isinstance(each, list)}
    known |= {text for source in found.sources for text in NUMBER.findall(source.replace("/", " "))}
    if name == "registered":  # a date and a hash of what was signed, read from the statement
        return
    assert set(NUMBER.findall(found.text)) <= known, found.text


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_that_lacks_what_it_quotes_is_not_said(name: str) -> None:
    found = supported(FINDINGS[name], RESULT)
    for source in () if found is None else found.sources:
        if "#" in source or at(RESULT, source) in (None, {}, []):
            continue
        rest = supported(FINDINGS[name], without(RESULT, tuple(source.split("/")[1:]), null=True))
        assert rest is None or (source not in rest.sources and rest.text != found.text), source
        assert "None" not in (rest.text if rest else ""), source


# --- the same result, the same bytes; nothing else is needed -----------------------------------------------------


def test_papers_are_the_same_in_another_process() -> None:
    code = (
        "import sys, json, hashlib; from federation.panel.papers import PAPERS; r = json.load(sys.stdin); "
        "print([hashlib.sha256(make(r)).hexdigest() for make in PAPERS.values()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(RESULT),
        cwd=ROOT,
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([sha256(make(RESULT)).hexdigest() for make in PAPERS.values()])


def test_making_papers_changes_no_result() -> None:
    before = copy.deepcopy(RESULT)
    written(RESULT)
    assert before == RESULT


def parts(value: Json, *keys: str) -> Iterator[tuple[str, ...]]:
    yield from ((*keys, key) for key in value)


EVERY_PART = [
    *parts(RESULT),
    *parts(RESULT["final"]["metrics"], "final", "metrics"),
    *parts(RESULT["final"]["metrics"]["overall"], "final", "metrics", "overall"),
    *(
        path
        for name in ("contract", "model", "privacy", "users", "scoring")
        for path in parts(RESULT[name], name)
    ),
]


def without(value: Any, path: tuple[str, ...], *, null: bool) -> Any:
    """`value` with what stands at `path` removed, or null."""
    key, *below = path
    if isinstance(value, list):
        entry = without(value[int(key)], tuple(below), null=null)
        return [*value[: int(key)], entry, *value[int(key) + 1 :]]
    if below:
        return value | {key: without(value[key], tuple(below), null=null)}
    return value | {key: None} if null else {name: entry for name, entry in value.items() if name != key}


@pytest.mark.parametrize("null", [False, True], ids=["removed", "null"])
def test_without_a_part_its_lines_go_to_people_and_nothing_fails(null: bool) -> None:
    people, waiting = human(RESULT), set(atrs(RESULT)["to_complete_by_people"])
    for path in EVERY_PART:
        result = without(RESULT, path, null=null)
        assert human(result) >= people, path
        assert set(atrs(result)["to_complete_by_people"]) >= waiting, path
        if len(path) == 1 or (len(path) == 3 and not null):
            json.dumps([evidence(result), model_card(result)], allow_nan=False)


@pytest.mark.parametrize(
    "part",
    ["final", "registration", "privacy", "contract", "agencies", "users", "cautions", "fairness_training"],
)
def test_a_part_that_is_gone_is_missed(part: str) -> None:
    """The other half of the law above: each of these parts answers a line that nothing else answers."""
    rest = {key: value for key, value in RESULT.items() if key not in (part, "checkpoints")}
    assert human(rest) > human({key: value for key, value in RESULT.items() if key != "checkpoints"})
    valid(evidence(rest), model_card(rest))


@pytest.mark.parametrize("key", Answers.model_fields)
def test_what_nobody_answered_is_left_to_people(key: str) -> None:
    every = {each: f"said of {each}" for each in Answers.model_fields}
    silent = as_read(registered(WHOLE, {each: said for each, said in every.items() if each != key}))
    assert f"said of {key}" in all_written()
    assert f"said of {key}" not in written(silent)
    assert human(silent) > human(RESULT) or key in ("intended_use", "date_windows")
    (fact,) = [fact for fact in all_facts(silent) if fact["source"] == f"{REGISTRATION}#/answers/{key}"]
    assert (fact["value"], fact["reason"]) == (None, "nobody gave an answer")


def test_a_card_says_what_is_left_out() -> None:
    said = [each["description"] for each in model_card(BARE)["considerations"]["limitations"]]
    left_out = [
        where
        for where, each in estimates(BARE["final"]["metrics"])
        if each["publishable"] is not True and not where.startswith(("/reliability", "/worst_gap"))
    ]
    assert left_out
    assert (
        f"{len(left_out)} numbers are left out: too few people, or too much noise, to publish them." in said
    )
    assert "It was not registered before it began: no panel can approve it." in said
    assert "No owner of the model is named." in said
    assert any(text.startswith("Nobody answered: What it is for;") for text in said)
    assert "owners" not in model_card(BARE)["model_details"]
    assert model_card(RESULT)["considerations"]["users"] == [{"description": "said of who_acts"}]
    assert "Not for: said of not_for" in [
        e["description"] for e in model_card(RESULT)["considerations"]["limitations"]
    ]


def test_an_audit_and_what_would_be_replaced_are_read_from_what_was_signed() -> None:
    statement = json.loads(at(RESULT, REGISTRATION)) | {
        "evidence": {
            "audit": {
                "claimed_epsilon": 3.0,
                "lower_bound": 1.7613,
                "confidence": 0.95,
                "attack": "one run",
                "what": "x",
            },
            "replaces": {"run_id": "before", "terms": {"rounds": 9}},
        }
    }
    result = copy.deepcopy(RESULT)
    result["registration"]["signed"]["statement"] = json.dumps(statement)
    audit, changed = FINDINGS["audit"](result), FINDINGS["changed"](result)
    assert audit == Finding(
        "An audit by one run found an ε of at least 1.76 where 3.0 is claimed, with a confidence of 0.95.",
        tuple(
            f"{REGISTRATION}#/evidence/audit/{key}"
            for key in ("attack", "lower_bound", "claimed_epsilon", "confidence")
        ),
    )
    assert changed is not None
    assert changed.text == "It would replace the model of run before; settings that differ: rounds."
    assert 1.7613 in [fact["value"] for fact in all_facts(result)]


# --- oracles: schemas and templates of others --------------------------------------------------------------------


EVIDENCE_SCHEMA = json.loads((ROOT / "federation" / "panel" / "evidence.schema.json").read_text())
CARD_SCHEMA = json.loads((ROOT / "tests" / "model_card.schema.json").read_text())
EVIDENCE, CARD = Draft202012Validator(EVIDENCE_SCHEMA), Draft202012Validator(CARD_SCHEMA)


def valid(found: Json, card: Json) -> None:
    assert not [error.message for error in EVIDENCE.iter_errors(found)]
    assert not [error.message for error in CARD.iter_errors(card)]


@pytest.mark.parametrize(
    "result",
    [RESULT, BARE, as_read(fake_result(private=False)), {}],
    ids=["whole", "bare", "public", "empty"],
)
def test_papers_are_valid(result: Json) -> None:
    for schema in (EVIDENCE_SCHEMA, CARD_SCHEMA):
        Draft202012Validator.check_schema(schema)
    valid(evidence(result), model_card(result))


def test_the_schema_refuses_a_number_that_is_suppressed() -> None:
    found = evidence(RESULT)
    fact = next(fact for fact in found["questions"]["fair"]["facts"] if fact["state"] == "suppressed")
    fact["value"] = 0.5
    assert list(EVIDENCE.iter_errors(found))


# The fields of the standard, from template_table.md of github.com/co-cddo/algorithmic-transparency-recording-standard (v3.0).
ATRS = {
    "1": "name description website_url contact_email",
    "2.1": "organisation_or_department team senior_responsible_owner external_supplier_involvement",
    "2.1.4": "external_supplier companies_house_number external_supplier_role procurement_procedure_type data_access_terms",
    "2.2": "detailed_description scope benefit previous_process alternatives_considered",
    "2.3": "process_integration provided_information frequency_and_scale_of_usage human_decisions_and_review required_training "
    "appeals_and_review",
    "2.4.1": "system_architecture phase maintenance models",
    "2.4.2": "model_name model_version model_task model_input model_output model_architecture model_performance datasets "
    "dataset_purposes",
    "2.4.3": "source_data_name data_modality data_description data_quantities sensitive_attributes "
    "data_completeness_and_representativeness source_data_url data_collection data_cleaning data_sharing_agreements "
    "data_access_and_storage",
    "2.5": "impact_assessment risks_and_mitigations",
}


def fields(part: Json) -> Iterator[tuple[str, str]]:
    for name, entry in part.items():
        if "ref" in entry:
            yield str(entry["ref"]), name
        else:
            yield from fields(entry)


def test_the_record_has_every_field_of_the_standard() -> None:
    expected = {
        (f"{section}.{n + 1}", name)
        for section, names in ATRS.items()
        for n, name in enumerate(names.split())
    }
    assert set(fields(yaml.safe_load(atrs_module.FILE.read_text()))) == expected


def test_a_field_of_the_record_has_an_answer_with_its_sources_or_waits_for_people() -> None:
    record = atrs(RESULT)
    waiting = set(record["to_complete_by_people"])
    answered = 0
    for tier in ("tier_1", "tier_2"):
        for name, entry in record[tier].items():
            for key, field in {name: entry}.items() if tier == "tier_1" else entry.items():
                path = f"{tier}.{key}" if tier == "tier_1" else f"{tier}.{name}.{key}"
                assert (field is None) == (path in waiting)
                if field is not None:
                    answered += 1
                    assert field["answer"]
                    assert field["sources"]
    assert answered > 25
    assert "tier_2.owner_and_responsibility.senior_responsible_owner" in waiting
    assert record["tier_2"]["decision_making_process"]["appeals_and_review"]["answer"].endswith(
        "said of contest"
    )


# --- the lists themselves --------------------------------------------------------------------------------------


LISTS = yaml.safe_load(checklists_module.FILE.read_text())


def test_lists_name_findings_and_places_that_exist() -> None:
    for each in LISTS:
        ids = [str(item["id"]) for item in each["items"]]
        assert len(set(ids)) == len(ids)
        for item in each["items"]:
            assert set(item) <= {"id", "text", "from", "any", "anchor"}
            assert set(item.get("from", ())) <= set(FINDINGS)
            assert item["text"].endswith("?")
            assert ("from" in item) == ("anchor" in item)
            assert item.get("anchor", "about") in ANCHORS


def test_every_place_that_a_list_names_is_on_every_report() -> None:
    wanted = {item["anchor"] for each in LISTS for item in each["items"] if "anchor" in item}
    for result in (RESULT, {}):
        assert wanted <= set(re.findall(r'\bid="([^"]+)"', render_report(result)))


def test_the_lists_have_every_heading_of_their_sources() -> None:
    heads = {each["name"]: [item["text"].split(":")[0] for item in each["items"]] for each in LISTS}
    algo_care = "Advisory Lawful Granularity Ownership Challengeable Accuracy Responsible Explainable"
    assert list(dict.fromkeys(heads["ALGO-CARE"])) == algo_care.split()
    ids = {each["name"]: {str(item["id"]).split("-")[0] for item in each["items"]} for each in LISTS}
    assert ids["NPCC Covenant for Using Artificial Intelligence in Policing"] == {
        "Lawful",
        "Transparent",
        "Explainable",
        "Responsible",
        "Accountable",
        "Robust",
    }
    assert ids["Data and AI Ethics Framework"] == {
        "Transparency",
        "Accountability",
        "Fairness",
        "Privacy",
        "Safety",
        "Society",
        "Environment",
    }
    tripod = {name.split()[0] for name in ids["TRIPOD+AI, items that concern fairness"]}
    assert {"3c", "5a", "7", "8a", "9c", "12d", "12f", "14", "20b", "23a", "23b", "25", "26"} <= tripod


def test_every_finding_is_used() -> None:
    lists = {name for each in LISTS for item in each["items"] for name in item.get("from", ())}
    record = re.findall(
        r"answer \w+|\w+", " ".join(re.findall(r"from: \[(.*?)\]", atrs_module.FILE.read_text()))
    )
    card = Path(model_card_module.__file__).read_text()
    assert [name for name in FINDINGS if name not in lists | set(record) and f".{name}" not in card] == []


def test_a_line_has_an_answer_with_its_place_or_is_for_people() -> None:
    for result in (RESULT, BARE):
        for each in checklists(result):
            for item in each["items"]:
                assert set(item) == {"id", "text", "answer", "anchor", "human"}
                assert item["human"] == (item["answer"] is None) == (item["anchor"] is None)
                assert item["human"] or item["anchor"][1:] in ANCHORS
    assert len(human(RESULT)) < len(human(BARE))
    assert human(RESULT) > {("ALGO-CARE", "A-7"), ("TRIPOD+AI, items that concern fairness", "19")}


def test_a_failed_gate_is_named_in_every_paper_that_speaks_of_gates() -> None:
    result = as_read(registered(WHOLE, gates=EASY | {"auc": 0.999}))
    for text in (json.dumps(checklists(result)), json.dumps(atrs(result)), json.dumps(model_card(result))):
        assert "must be at least 0.999" in text
        assert "Every registered gate is passed." not in text


# --- files -------------------------------------------------------------------------------------------------------


def test_papers_are_written_beside_the_result(tmp_path: Path) -> None:
    paths = write_papers(RESULT, tmp_path)
    assert {path.name for path in paths} == set(PAPERS) == {path.name for path in tmp_path.iterdir()}
    assert {RESULT["files"][name] for name in ("report", "evidence", "model_card", "atrs")} == set(PAPERS)
    assert {path.name: path.read_bytes() for path in paths} == {
        name: make(RESULT) for name, make in PAPERS.items()
    }
    (tmp_path / "result.json").write_text(json.dumps(RESULT, indent=1))
    told = json.loads((tmp_path / "evidence.json").read_text())["sha256"]["result.json"]
    assert told == sha256((tmp_path / "result.json").read_bytes()).hexdigest()


def test_no_paper_is_written_where_one_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any) -> bytes:
        raise ValueError("no")

    monkeypatch.setattr(papers, "PAPERS", {**PAPERS, "atrs.json": fails})
    with pytest.raises(ValueError, match="no"):
        write_papers(RESULT, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_papers(RESULT | {"seed": float("nan")}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_data_files_are_beside_their_code_and_packaged() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for path in (
        checklists_module.FILE,
        atrs_module.FILE,
        Path(evidence_module.__file__).with_suffix(".schema.json"),
    ):
        assert path.exists()
        assert any(path.match(pattern) for pattern in shipped)
