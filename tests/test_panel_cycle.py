"""From the first key to a score at an agency, by the commands that people type, with real MLflow: and what ends it."""

import json
import re
from pathlib import Path

import pytest
import tomli_w
import yaml
from click.testing import Result
from command import fedrisk
from conftest import CONTRACT, people, write_agencies, write_table
from mlflow import MlflowClient
from test_gates import audit
from typer.testing import CliRunner

from clients import journal
from clients.cli import app as node_app
from federation.panel.cli import app as panel_app

ANSWERS = {"legal_basis": "made up for a test", "who_acts": "a case worker", "not_for": "to refuse help"}
MEMBERS = ("alice", "bob", "chris")


class Cycle:
    """One folder with everything in it, and the three commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.panel = folder, folder / "panel"
        self.keys = {name: folder / f"{name}.key" for name in MEMBERS}
        self.uri = f"sqlite:///{folder}/mlflow.db"

    def says(self, *arguments: str, by: str = "") -> str:
        """`fedrisk-panel`, signed by the members named; it must succeed."""
        done = self.tries(*arguments, by=by)
        assert done.exit_code == 0, done.output
        return done.stdout

    def tries(self, *arguments: str, by: str = "") -> Result:
        words = list(arguments)
        if arguments[0] not in ("key", "init"):
            words += ["--folder", str(self.panel)]
        for name in by.split():
            words += ["--key", f"{name}={self.keys[name]}"]
        if by:
            words.append("--yes")
        return CliRunner().invoke(panel_app, words)

    @property
    def waiting(self) -> str:
        """The name of the one statement that waits for signatures."""
        (draft,) = (self.panel / "drafts").iterdir()
        return draft.stem.rpartition("-")[2]

    def run(self, *overrides: str) -> Path:
        """`fedrisk run`: the run's folder."""
        done = fedrisk("run", *self.settings, *overrides)
        assert done.code == 0, done.err
        return max((self.folder / "outputs").glob("pilot-*"), key=lambda path: path.stat().st_mtime_ns)

    @property
    def settings(self) -> list[str]:
        given = ["experiment=own", f"data.agencies={self.folder}/agencies.yaml", "name=pilot"]
        given += [
            f"tracking.uri={self.uri}",
            f"output={self.folder}/outputs",
            "rounds=6",
            "privacy.epsilon=8",
        ]
        return [*given, "evaluation.checkpoints=1", "local.learning_rate=2"]

    def score(self, model: Path, *more: str) -> Result:
        arguments = [
            str(self.folder / "people.csv"),
            str(self.folder / f"scores-{len(list(self.folder.iterdir()))}"),
        ]
        arguments += [
            "--model",
            str(model),
            "--purpose",
            "early-warning",
            "--folder",
            str(self.folder / "node"),
        ]
        return CliRunner().invoke(node_app, ["score", *arguments, "--capacity", "5", *more])

    def node(self, section: str) -> None:
        """An agency's own folder, with the panel that it pins."""
        node = self.folder / "node"
        node.mkdir()
        facts = {
            "name": "north",
            "kind": "police",
            "table": "own.csv",
            "contract": "contract.yaml",
            "public_size": 900,
        }
        policy = {"purposes": {"early-warning": {"legal_basis": "made up for a test"}}}
        (node / "node.toml").write_text(tomli_w.dumps(facts) + "\n" + section)
        (node / "policy.toml").write_text(tomli_w.dumps(policy))
        (node / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
        write_table(node / "own.csv", people(7), ("visits",))
        write_table(self.folder / "people.csv", people(8, 40), ("visits", "outcome", "sex"))


@pytest.mark.long
def test_register_run_report_decide_promote_score_and_what_ends_it(tmp_path: Path) -> None:
    cycle = Cycle(tmp_path)
    write_agencies(tmp_path, {"north": "police", "clinic": "health", "south": "police"}, 900)

    # the panel
    public = {}
    for name, file in cycle.keys.items():
        line = cycle.says("key", name, "--out", str(file))
        public[name] = re.search(r'"(.+)"', line)[1]  # type: ignore[index]
    members = [word for name, key in public.items() for word in ("--member", f"{name}={key}")]
    made = json.loads(
        cycle.says("init", str(cycle.panel), "--name", "Ethics panel", "--quorum", "2", *members, "--json")
    )
    cycle.node(made["node_toml"])

    # before the run: drafted, answered, signed by two on two days
    draft = tmp_path / "registration.yaml"
    gates = ["gates.simulation_allowed=true", "gates.min_people=10", "gates.auc=0.55"]
    gates += ["gates.epsilon.public=9", "gates.epsilon.coordinator=9", "gates.worst_group.fpr=0.6"]
    gates += ["gates.gaps.equalized_odds=null", "gates.ece=0.3", "gates.observed_expected=[0.5,2.0]"]
    gates += ["gates.audit_required=true"]
    audited = tmp_path / "audit.json"
    audited.write_text(json.dumps(audit()))
    assert fedrisk("draft", *cycle.settings, *gates, "--audit", str(audited), "--out", str(draft)).code == 0
    audited.unlink()  # what it found is in the registration, so that anyone can judge it again
    values = yaml.safe_load(draft.read_text())
    values["answers"] |= ANSWERS
    draft.write_text(yaml.safe_dump(values, sort_keys=False))
    signed = tmp_path / "registration.json"
    cycle.says("register", str(draft), by="alice")
    assert not signed.exists()
    cycle.says("sign", cycle.waiting, "--out", str(signed), by="bob")

    # the run is that one or none
    edited = fedrisk("run", *cycle.settings, f"registration={signed}", "rounds=7")
    assert edited.code == 1
    assert "rounds differ: an edit after the registration voids it" in edited.err
    run = cycle.run(f"registration={signed}")
    witnessed = {
        line.facts.get("registration")
        for line in journal.read(run / "nodes" / "north")
        if line.kind == "ordered"
    }
    assert witnessed == {json.loads((run / "result.json").read_text())["registration"]["sha256"]}
    report = (run / "report.html").read_text()
    assert "a case worker" in report
    assert "Every gate is passed." in report
    assert "Every registered gate is passed." in (run / "evidence.json").read_text()
    assert "a case worker" in (run / "model-card.json").read_text()

    # nothing is promoted, and nobody scored, before a decision
    promote = ["promote", str(run), "--uri", cycle.uri, "--name", "pilot"]
    assert cycle.tries(*promote).exit_code == 1
    assert "approval.json is not there" in cycle.score(run / "model").stderr

    # decided, by two, with a condition
    decide = [
        "decide",
        str(run),
        "--verdict",
        "approve_with_conditions",
        "--condition",
        "training=all are trained",
    ]
    decide += ["--rationale", "it finds people", "--dissent", "none", "--owner", "head of safeguarding"]
    decide += ["--rereferral", "AUC below 0.6", "--limit-capacity", "5"]
    cycle.says(*decide, by="alice")
    decided = cycle.waiting
    cycle.says("sign", decided, "--run", str(run), by="bob")
    cycle.says("status", decided, by="chris")
    refused = cycle.tries(*promote)
    assert refused.exit_code == 1
    assert "condition training is not met yet" in refused.stderr
    cycle.says("met", decided, "training", "--evidence", "attendance list", by="alice bob")
    cycle.says("deliver", decided, str(run))

    # promoted, and used
    cycle.says(*promote)
    client = MlflowClient(cycle.uri, cycle.uri)
    champion = client.get_model_version_by_alias("pilot", "champion")
    assert champion.tags["panel.decision_sha256"].startswith(decided)
    scored = cycle.score(run / "model")
    assert scored.exit_code == 0, scored.output
    assert "Ethics panel" in scored.output
    assert cycle.score(run / "model", "--rehearsal", "--capacity", "9").exit_code == 0
    assert "more than the 5 people" in cycle.score(run / "model", "--capacity", "6").stderr
    assert cycle.tries("verify", str(run)).exit_code == 0

    # measured again, against what the panel said brings it back
    again = fedrisk("retest", str(run), "--decision", str(cycle.panel))
    assert again.code == 0, again.err
    (measured,) = run.parent.glob("pilot-retest-*")
    found = json.loads((measured / "retest.json").read_text())
    assert (found["decision"]["decision_sha256"][:12], found["decision"]["verified"]) == (decided, True)
    assert [(each["text"], each["verdict"]) for each in found["thresholds"]] == [("AUC below 0.6", "not due")]
    of_run = f"tags.`fedrisk.retest_of` = '{run.name}'"
    experiment = client.get_experiment_by_name("pilot").experiment_id
    (tracked,) = client.search_runs([experiment], of_run)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test/overall/auc"] == found["final"]["metrics"]["overall"]["auc"]["value"]

    # an unregistered run is research
    other = cycle.run("seed=1")
    assert "Not registered before it began." in (other / "report.html").read_text()
    none = cycle.tries("decide", str(other), *decide[2:], by="alice bob")
    assert none.exit_code == 1
    assert "without a registration" in none.stderr

    # suspended: at once where it is heard
    cycle.says("suspend", decided, "--reason", "drift at the council", by="alice")
    cycle.says("deliver", decided, str(run))
    assert "drift at the council" in cycle.score(run / "model").stderr
    assert cycle.tries(*promote).exit_code == 1
    assert cycle.tries("status", decided, by="alice bob").exit_code == 1

    # tampered
    (run / "report.html").write_text(report.replace("a case worker", "nobody"))
    found = cycle.tries("verify", str(run))
    assert found.exit_code == 1
    assert "report.html" in found.stderr
