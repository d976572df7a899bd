"""`fedrisk-node` as a person types it: what is made, what is shown, and what exit code a script gets."""

import base64
import csv
import io
import json
import re
import stat
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table
from flwr.cli.supernode.register import try_load_public_key
from test_doctor import Ca
from test_policy import ask, orders
from typer.testing import CliRunner

from clients import journal
from clients.cli import app
from clients.desk import ledger_copy
from clients.desk.ledger_copy import read_only
from clients.desk.policy_template import POLICY
from clients.desk.setup_files import DATA, NODE
from clients.desk.statement import DELTA, sentences, statement
from clients.journal import Journal
from clients.journal_lines import Stopped
from clients.keys import node_key
from clients.ledger import Ledger, LedgerError, PlanFacts
from clients.node import open_node
from clients.policy import Policy, read_policy
from federation.plan import TrainPlan
from federation.release import VIEWERS, LaplaceRelease, Release

PEOPLE = "north/people"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def node(*arguments: str | Path) -> Done:
    """Run `fedrisk-node ARGUMENTS`; an error that the command does not know is the test's."""
    result = CliRunner().invoke(
        app, [str(each) for each in arguments], env={"COLUMNS": "200", "TERM": "dumb"}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


# --- init ---------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_init_makes_a_folder_for_its_owner_alone_whose_files_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    done = node("init", folder, "--name", "police", "--kind", "police", "--public-size", "3000")
    assert done.code == 0, done.err
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("node.key", "split.key", "signing.key", "policy.toml", "data.toml", "node.toml"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert (folder / "log").is_dir()
    assert read_policy(folder / "policy.toml") == Policy()
    facts = tomllib.loads((folder / "node.toml").read_text())
    assert facts == {
        "name": "police",
        "kind": "police",
        "public_size": 3000,
        "contract": "contract.yaml",
        "peers": {},
    }
    assert tomllib.loads((folder / "data.toml").read_text()) == {
        "source": {"kind": "csv", "path": "people.csv"}
    }


def test_init_prints_what_the_coordinator_and_the_other_agencies_need(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    done = node("init", folder, "--name", "police", "--json")
    assert done.json["public_key"] == (folder / "node.pub").read_text().strip()
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(folder / "node.pub")], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[:2] == ["384", done.json["fingerprint"]]
    assert try_load_public_key(folder / "node.pub"), "as `flwr supernode register` takes it"
    name, key = re.fullmatch(r'(\w+) = "(.{44})"', done.json["peer"]).groups()  # type: ignore[union-attr]
    assert (name, len(base64.b64decode(key))) == ("police", 32)
    assert node_key(folder).curve.name == "secp384r1"
    words = node("init", folder).out
    assert all(done.json[key] in words for key in ("public_key", "fingerprint", "peer"))


def test_a_second_init_changes_nothing_and_says_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    node("init", folder, "--name", "police")
    (folder / "policy.toml").write_text("ask = true\n")
    before = contents(folder)
    done = node("init", folder, "--name", "police", "--json")
    assert contents(folder) == before
    assert set(done.json["files"].values()) == {"there"}


def test_init_makes_what_is_missing_beside_files_that_were_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('name = "north"\npublic_size = 300\ncontract = "contract.yaml"\n')
    done = node("init", tmp_path, "--json")
    assert (done.json["name"], done.json["files"]["node.toml"]) == ("north", "there")
    assert {name for name, state in done.json["files"].items() if state == "made"} >= {
        "node.key",
        "split.key",
        "policy.toml",
    }


def test_init_copies_the_contract_and_the_ca(tmp_path: Path) -> None:
    (tmp_path / "agreed.yaml").write_text(yaml.safe_dump(CONTRACT))
    (tmp_path / "theirs.pem").write_bytes(Ca().pem)
    options = ["--superlink", "fedrisk.example.org:9092", "--certificate", tmp_path / "theirs.pem"]
    done = node(
        "init", tmp_path / "node", "--name", "north", "--contract", tmp_path / "agreed.yaml", *options
    )
    assert done.code == 0, done.err
    assert (tmp_path / "node" / "ca.crt").read_bytes() == (tmp_path / "theirs.pem").read_bytes()
    facts = tomllib.loads((tmp_path / "node" / "node.toml").read_text())
    assert facts["superlink"] == {"address": "fedrisk.example.org:9092", "certificate": "ca.crt"}
    assert yaml.safe_load((tmp_path / "node" / "contract.yaml").read_text()) == CONTRACT


WRONG: dict[str, tuple[list[str], str]] = {
    "no name": ([], "FOLDER has no node.toml yet: say --name NAME, the agency's name in the federation"),
    "a name in capitals": (["--name", "North"], "--name must be small letters, digits, - and _, at most 64, got 'North'"),
    "nobody served": (["--name", "north", "--public-size", "0"], "--public-size should be greater than or equal to 1, got 0"),
    "no port": (["--name", "north", "--superlink", "example.org"], "--superlink.address"),
    "a certificate alone": (["--name", "north", "--certificate", "x"], "--certificate belongs to --superlink HOST:PORT"),
    "no such contract": (["--name", "north", "--contract", "absent"], "--contract: absent is no text file"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_an_init_that_cannot_be_is_one_sentence_and_makes_nothing(case: str, tmp_path: Path) -> None:
    arguments, sentence = WRONG[case]
    done = node("init", tmp_path / "node", *arguments)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"fedrisk-node: {sentence}".replace("FOLDER", str(tmp_path / "node")))
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "node").exists()


def test_init_with_a_certificate_that_is_none_or_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    done = node(
        "init", tmp_path / "node", "--name", "a", "--superlink", "h:1", "--certificate", tmp_path / "ca.pem"
    )
    assert (
        done.err
        == f"fedrisk-node: --certificate: {tmp_path / 'ca.pem'} holds no certificate in PEM: ask the coordinator for ca.crt\n"
    )
    node("init", tmp_path / "node", "--name", "north")
    done = node("init", tmp_path / "node", "--name", "south")
    assert done.code == 1
    assert "is there already and has name = 'north' where --name says 'south'" in done.err


def test_the_commented_policy_shows_every_key_with_a_value_that_can_be_used() -> None:
    """Uncommented, it parses, and no key of the policy is left out."""
    values = tomllib.loads(POLICY.replace("#: ", ""))
    assert set(values) == set(Policy.model_fields)
    Policy.model_validate(values)
    assert set(values["budget"]) == {"delta", "life", "year", "experiment", "order", "purpose"}
    assert tomllib.loads(POLICY) == {}


def test_the_other_commented_files_name_every_key() -> None:
    from clients.folder import NodeFile
    from clients.records.datafile import DataFile, SourceSettings

    for key in NodeFile.model_fields:
        assert re.search(rf"^(# )?\[?{key}\b|{{{key}}}", NODE, re.MULTILINE) or key in ("dataset", "table"), (
            key
        )
    source = {field.alias or name for name, field in SourceSettings.model_fields.items()}
    for key in source | set(DataFile.model_fields):
        assert re.search(rf"\b{key}\b", DATA), key


# --- the ledger ---------------------------------------------------------------------------------------


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    """A deployed run's plan that `folder`'s policy permits."""
    return make_study("rounds=2", "evaluation.checkpoints=1").experiment.plan("run-1", simulation=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node as an agency hosts it, which nobody has asked yet. (The study's own folder is beside it.)"""
    from conftest import write_agencies

    write_agencies(tmp_path, {"north": "police", "clinic": "health", "south": "police"})
    home = tmp_path / "node"
    home.mkdir(mode=0o700)
    facts = {
        "name": "north",
        "kind": "police",
        "table": "north.csv",
        "contract": "contract.yaml",
        "public_size": 300,
    }
    (home / "node.toml").write_text(tomli_w.dumps(facts))
    (home / "policy.toml").write_text(
        tomli_w.dumps(permits(budget={"life": 20.0, "year": 10.0, "delta": 1e-5}))
    )
    (home / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    write_table(home / "north.csv", people(0), ("visits",))
    return home


@pytest.fixture
def make_study(folder: Path, tmp_path: Path) -> MakeStudy:
    """As conftest's, beside the node."""
    from experiments.config import Study, compose, read

    def make(*overrides: str) -> Study:
        common = ["experiment=own", f"data.agencies={tmp_path}/agencies.yaml", "name=small", "tracking=none"]
        return read(compose([*common, f"output={tmp_path}/outputs", *overrides]))

    return make


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_the_ledger_says_what_left_and_what_is_left_while_the_node_runs_and_changes_nothing(
    folder: Path, plan: TrainPlan
) -> None:
    for order in orders(plan):
        ask(folder, order)
    running = open_node(folder).ledger  # open, as in a node at work: its write-ahead log is there
    assert (folder / "ledger.db-wal").stat().st_size > 0
    before = stamps(folder)
    words, found = node("ledger", folder, "--verify"), node("ledger", folder, "--json").json
    assert stamps(folder) == before
    assert found["left"] == {
        "steps": plan.local.steps,
        "tables": 1,
        "statistics": 0,
        "maps": 0,
        "cohorts": 0,
        "orders": 1,
    }
    assert found["epsilon"]["public"] == pytest.approx(running.epsilon(1e-5))
    assert [line["allowed"] for line in found["limits"]] == [20.0] * 3 + [10.0] * 3
    assert [line["spent"] for line in found["limits"]] == [line.spent for line in running.spent()]
    (kept,) = found["open"]
    assert (kept["experiment"], kept["left"]["tables"]) == ("small", 1), (
        "the test people's, which are still to come"
    )
    assert "this agency has released 1 noisy table and 1 noisy training step, for 1 experiment." in words.out
    assert f"The hash chain holds. Newest entry: {running.head[0]} {running.head[1]}" in words.out


def test_an_empty_ledger_says_so_and_is_not_made(folder: Path) -> None:
    done = node("ledger", folder)
    assert done.code == 0
    assert "So far nothing that was computed from a record has left this agency." in done.out
    assert not (folder / "ledger.db").exists()


@pytest.mark.parametrize("spoil", ["a changed row", "not a ledger", "no node"])
def test_a_ledger_that_does_not_hold_is_one_sentence(folder: Path, plan: TrainPlan, spoil: str) -> None:
    import sqlite3

    with Ledger(folder / "ledger.db", budget=None, scope="lifetime", people=PEOPLE) as ledger:
        ledger.charge(PlanFacts("a" * 64, "run", "trial", "early-warning"), "run/1", [table()])
    if spoil == "a changed row":
        with sqlite3.connect(folder / "ledger.db") as db:
            db.execute("DROP TRIGGER release_no_UPDATE")
            db.execute("UPDATE release SET part = 'test'")
        db.close()
    elif spoil == "not a ledger":
        (folder / "ledger.db").write_bytes(b"x" * 9000)
    else:
        (folder / "node.toml").unlink()
    done = node("ledger", folder, "--verify")
    assert done.code == 1
    (line,) = done.err.splitlines()
    expected = {"a changed row": "fails its hash chain at entry", "not a ledger": "is not a fedrisk ledger", "no node": "is this a node's folder?"}  # fmt: skip
    assert line.startswith(f"fedrisk-node: {folder}")
    assert expected[spoil] in line


def test_a_copy_that_was_caught_half_way_is_taken_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the node had written between the copies of the two files: the first copy is not whole."""
    with Ledger(folder / "ledger.db", budget=None, scope="lifetime", people=PEOPLE) as ledger:
        ledger.charge(PlanFacts("a" * 64, "run", "trial", "early-warning"), "run/1", [table()])
    real, copies = ledger_copy.shutil.copyfile, []

    def half(source: Path, target: Path) -> None:
        copies.append(source)
        real(source, target)
        if len(copies) == 1:
            target.write_bytes(target.read_bytes()[:5000])
            source.touch()  # as a node that writes does

    monkeypatch.setattr(ledger_copy.shutil, "copyfile", half)
    facts, policy = open_facts(folder)
    with read_only(folder, facts, policy) as copy:
        assert len(copy.releases()) == 1
    assert len(copies) > 1


def open_facts(folder: Path) -> tuple[Any, Policy]:
    from clients.folder import read_node_file

    return read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")


def table(sigma: float = 5.0) -> Release:
    return Release("evaluate", "tune", sigma, 1.0, 1)


def test_the_statement_groups_by_experiment_purpose_and_kind(tmp_path: Path) -> None:
    with Ledger(
        tmp_path / "ledger.db", budget=None, scope="lifetime", people="north/people", split_id="s"
    ) as ledger:
        for number, (experiment, purpose) in enumerate(
            [("one", "care"), ("two", "care"), ("two", "housing")]
        ):
            facts = PlanFacts(f"{number}" * 64, f"run-{number}", experiment, purpose)
            ledger.charge(facts, f"run-{number}/1", [Release("train", "train", 1.0, 0.1, 4), table()])
        found = statement(ledger, None)
        assert [(group.name, group.left.steps) for group in found.experiments] == [("one", 4), ("two", 8)]
        assert [(group.name, group.left.tables) for group in found.purposes] == [("care", 2), ("housing", 1)]
        assert [(group.name, group.left.orders) for group in found.kinds] == [
            ("training", 3),
            ("tables of tune people", 3),
        ]
        assert found.delta == DELTA
        assert found.epsilon["public"] == ledger.epsilon(DELTA)
        assert max(group.epsilon["public"] for group in found.experiments) <= found.epsilon["public"]
        said = "\n".join(sentences(found))
        assert "3 noisy tables and 12 noisy training steps, for 2 experiments." in said
        assert "anybody, even the coordinator and all other agencies together: at most ε = " in said


def test_maps_and_cohorts_have_words_and_their_own_epsilon(tmp_path: Path) -> None:
    facts, cohort = PlanFacts("a" * 64, "run", "trial", "care"), LaplaceRelease("cohort", "all", 0.25)
    with Ledger(tmp_path / "ledger.db", budget=None, scope="lifetime", people="a/b", split_id="s") as ledger:
        ledger.charge(facts, "1", [Release("map", "all", 5.0, 1.0, 1)])
        ledger.charge(facts, "2", [cohort])
        ledger.charge(facts, "3", [cohort])
        found = statement(ledger, None)
    assert "released 1 noisy map and 2 noisy cohorts, for 1 experiment." in sentences(found)[0]
    assert [group.name for group in found.kinds] == ["maps", "cohorts"]
    assert found.kinds[1].epsilon == dict.fromkeys(VIEWERS, 0.5)
    assert (
        found.kinds[0].epsilon["public"] < found.epsilon["public"] <= found.kinds[0].epsilon["public"] + 0.5
    )


def test_what_had_no_noise_has_no_bound_in_words_and_in_json(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db", budget=None, scope="this run alone", people="a/b") as ledger:
        ledger.charge(
            PlanFacts("a" * 64, "run", "trial", "care"), "run/1", [Release("evaluate", "tune", 0.0, 1.0, 1)]
        )
        found = statement(ledger, 1e-5)
    assert "there is no bound on what it says about a person" in sentences(found)[1]
    assert found.to_dict()["epsilon"] == {"public": None, "coordinator": None, "everybody": None}


# --- the log ------------------------------------------------------------------------------------------


def test_the_log_shows_exports_and_checks_what_happened(folder: Path, plan: TrainPlan) -> None:
    ask(folder, orders(plan.but(purpose="ranking"))[0])
    for order in orders(plan):
        ask(folder, order)
    words = node("log", folder).out
    assert "ready of run run-1" in words
    assert "PURPOSE, by purposes: the plan's purpose 'ranking' is not listed" in words
    assert f"tune table, training of run run-1 (plan {plan.sha256[:12]}), ledger entry" in words
    exported = node("log", folder, "--json").json
    assert [each["kind"] for each in exported] == [
        "ordered",
        "refused",
        "ordered",
        "accepted",
        "ordered",
        "released",
    ]
    rows = list(csv.DictReader(io.StringIO(node("log", folder, "--csv").out)))
    assert [row["hash"] for row in rows] == [each["hash"] for each in exported]
    assert rows[5]["released"] == "tune table + training"
    done = node("log", folder, "--verify")
    assert done.code == 0
    assert "6 lines in 1 file: the hash chain holds. Every charge of the ledger is in it" in done.out


def test_a_log_that_was_changed_or_a_ledger_that_went_back_is_told(folder: Path, plan: TrainPlan) -> None:
    for order in orders(plan):
        ask(folder, order)
    path = folder / "log" / "journal.jsonl"
    kept = path.read_text()
    path.write_text(kept.replace("run-1", "run-2", 1))
    done = node("log", folder, "--verify")
    assert (done.code, done.out) == (1, "")
    assert "fails its hash chain at line 1" in done.err
    path.write_text(kept)
    open_node(folder).close()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (folder / name).unlink(missing_ok=True)
    assert "an older ledger was put back" in node("log", folder, "--verify").err


def test_a_cell_of_the_export_is_no_formula(tmp_path: Path) -> None:
    from clients.desk.screen import csv_of
    from clients.journal_lines import Approved

    Journal(tmp_path).write(Approved(plan_sha256="a" * 64, by='=HYPERLINK("http://x")'))
    (row,) = csv.DictReader(io.StringIO(csv_of(journal.read(tmp_path))))
    assert row["by"].startswith("'=HYPERLINK")


SINCE: list[tuple[str, int]] = [("7d", 2), ("3h", 1), ("2026-11-01", 3), ("2026-11-09T12:00", 2), ("", 3)]


@pytest.mark.parametrize(("since", "lines"), SINCE)
def test_the_log_since_a_day_or_for_a_span(folder: Path, since: str, lines: int) -> None:
    from clients.desk.journal_read import lines_since

    now = datetime(2026, 11, 16, 12, tzinfo=UTC)
    for ago in (timedelta(days=8), timedelta(days=6), timedelta(hours=1)):
        Journal(folder, now=lambda ago=ago: now - ago).write(Stopped(how="asked"))  # type: ignore[misc]
    assert len(lines_since(folder, since, now)) == lines


def test_a_since_that_is_no_time_is_one_sentence(folder: Path) -> None:
    done = node("log", folder, "--since", "yesterday")
    assert (done.code, done.err) == (
        1,
        "fedrisk-node: --since must be a day (2026-11-01) or how long ago (7d, 12h, 30m), got 'yesterday'\n",
    )


# --- the policy and people's decisions ----------------------------------------------------------------


def plan_file(folder: Path, plan: TrainPlan) -> Path:
    path = folder / "plan.json"
    path.write_text(plan.canonical)
    return path


def test_policy_show_is_every_key_in_words(folder: Path) -> None:
    keys = {line["key"].partition(".")[0] for line in node("policy", "show", folder, "--json").json}
    assert keys == set(Policy.model_fields)
    assert "Models that may be trained: logistic." in node("policy", "show", folder).out


def test_policy_check_says_what_the_node_would_answer_and_the_line_that_decides(
    folder: Path, plan: TrainPlan
) -> None:
    done = node("policy", "check", plan_file(folder, plan), "--folder", folder)
    assert (done.code, "The policy permits this plan." in done.out) == (0, True), done.out
    other = node(
        "policy", "check", plan_file(folder, plan.but(purpose="ranking")), "--folder", folder, "--json"
    )
    assert (other.code, other.json["decides"]) == (1, "purposes")
    assert not (folder / "ledger.db").exists(), "nothing was reserved"


def test_a_plan_that_a_data_scientist_wrote_can_be_checked(folder: Path, tmp_path: Path) -> None:
    """`fedrisk plan --plan-file` writes what `fedrisk-node policy check` reads."""
    from command import fedrisk

    settings = [
        "experiment=own",
        f"data.agencies={tmp_path}/agencies.yaml",
        "rounds=2",
        "evaluation.checkpoints=1",
    ]
    written = fedrisk("plan", *settings, "--plan-file", str(tmp_path / "plan.json"), "--json")
    assert written.code == 0, written.err
    found = node("policy", "check", tmp_path / "plan.json", "--folder", folder, "--json").json
    assert (found["permitted"], found["plan"]["rounds"]) == (True, 2)


CHANGES: dict[str, tuple[Callable[[TrainPlan], TrainPlan], str]] = {
    "another size": (lambda p: p.but(participants=[q.but(public_size=9, weight=9) for q in p.participants]), "public_size"),
    "not listed": (lambda p: p.but(participants=[q for q in p.participants if q.name != "north"]), "name"),
    "more than is left": (lambda p: p.but(rounds=100_000), "budget"),
    "less noise": (lambda p: p.but(privacy=p.privacy.but(noise_multiplier=0.1)), "min_noise_multiplier"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CHANGES))
def test_policy_check_decides_as_the_node_does(case: str, folder: Path, plan: TrainPlan) -> None:
    from federation.protocol import Refusal

    change, rule = CHANGES[case]
    found = node("policy", "check", plan_file(folder, change(plan)), "--folder", folder, "--json").json
    assert found["decides"] == rule
    reply = ask(folder, orders(change(plan))[0])
    assert isinstance(reply, Refusal)
    assert reply.reason == next(
        each["reason"] for each in found["rules"] if each["rule"] == rule and each["reason"]
    )


def test_a_plan_waits_for_a_person_who_approves_and_withdraws_it(folder: Path, plan: TrainPlan) -> None:
    policy = permits(budget={"life": 20.0, "delta": 1e-5}) | {"ask": True}
    (folder / "policy.toml").write_text(tomli_w.dumps(policy))
    ask(folder, orders(plan)[0])
    (waits,) = node("policy", "asked", folder, "--json").json
    assert waits["plan_sha256"] == plan.sha256
    short = plan.sha256[:8]
    assert node("policy", "check", short, "--folder", folder, "--json").json["decides"] == "ask"
    done = node("approve", short, "--by", "R. Okafor", "--why", "agreed in March", "--folder", folder)
    assert (done.code, done.out) == (0, f"approved  plan {plan.sha256}, by R. Okafor\n")
    assert node("policy", "check", short, "--folder", folder).code == 0
    assert node("policy", "asked", folder).out == "No plan waits for a person.\n"
    assert node("withdraw", short, "--by", "R. Okafor", "--why", "it ended", "--folder", folder).code == 0
    assert node("policy", "check", short, "--folder", folder, "--json").json["decides"] == "withdraw"
    kinds = [each.kind for each in journal.read(folder)]
    assert kinds[-2:] == ["approved", "withdrawn"]
    assert f"plan {plan.sha256[:12]} by R. Okafor" in node("log", folder).out


@pytest.mark.parametrize("which", ["absent.json", "deadbeef", "../node"])
def test_a_plan_that_is_not_there_is_one_sentence(folder: Path, which: str) -> None:
    for command in (["policy", "check", which], ["approve", which, "--by", "A", "--why", "b"]):
        done = node(*command, "--folder", folder)
        assert done.code == 1
        assert done.err.startswith(f"fedrisk-node: {which} is neither a plan's JSON file nor")
    assert not (folder / "approvals.jsonl").exists()


def test_a_file_that_is_no_plan_is_told_by_its_keys(folder: Path) -> None:
    (folder / "plan.json").write_text('{"run_id": "r"}')
    done = node("policy", "check", folder / "plan.json", "--folder", folder)
    assert done.code == 1
    assert "plan.json: experiment is missing" in done.err


# --- the command itself -------------------------------------------------------------------------------

COMMANDS = [
    ["init"],
    ["doctor"],
    ["start"],
    ["stop"],
    ["ledger"],
    ["log"],
    ["policy", "show"],
    ["policy", "check"],
]
COMMANDS += [["policy", "asked"], ["approve"], ["withdraw"], ["score"], ["approval"], ["review"], ["access"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    done = node(*command, "--help")
    assert done.code == 0
    assert "Example" in done.out
    assert " ".join(["fedrisk-node", *command]) in done.out


@pytest.mark.parametrize("arguments", [["ledgers"], ["ledger", "--colour"], ["init"], ["approve", "x"]])
def test_a_command_that_is_typed_wrongly_is_exit_code_2(arguments: list[str]) -> None:
    assert node(*arguments).code == 2


def test_doctor_as_json_and_its_exit_code(folder: Path) -> None:
    done = node("doctor", folder, "--json", "--offline")
    assert done.code == 1, "the keys were not made yet"
    states = {each["check"]: each["state"] for each in done.json}
    assert (states["keys"], states["data"]) == ("fail", "ok")
    node("init", folder)
    assert node("doctor", folder, "--offline").code == 0


def test_an_error_that_nobody_foresaw_says_where_and_not_what(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clients.desk import statement as module

    def stumbles(_: object) -> None:
        raise TypeError("could not convert 'JOHN SMITH'")

    monkeypatch.setattr(module, "of_folder", stumbles)
    done = node("ledger", folder)
    assert (done.code, "JOHN" in done.err) == (1, False)
    assert re.fullmatch(r"fedrisk-node: TypeError in test_node_cli.py line \d+: please report it\n", done.err)


def test_a_known_problem_of_the_ledger_is_told_in_its_own_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clients.desk import statement as module

    def full(_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(module, "of_folder", full)
    assert node("ledger", folder).err == "fedrisk-node: the disk is full\n"
