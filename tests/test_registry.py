"""`fedrisk-panel promote`: MLflow's alias moves to what the panel approved whole, and stays where it was otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_panel_cli import APPROVE, BOUND, CONDITIONAL, SAYS, Desk, Done, flip, later, make_desk, write_run

from federation.panel.history import read
from federation.server.archive.writer import Writer
from federation.server.registry import RegistryError, champion, promote
from models.spec import ModelSpec

# MLflow calls SQLAlchemy in ways that SQLAlchemy has deprecated; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAME = "early-help"
NOTHING = "not promoted: nothing in MLflow was changed"


def uri(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri(home), registry_uri=uri(home))


def promoting(desk: Desk, run: Path | None = None, *more: str) -> Done:
    return desk.does("promote", run or desk.run, "--uri", uri(desk.home), "--name", NAME, *more)


@pytest.fixture(scope="module")
def promoted_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A panel that approved a run, tracked in MLflow, and promoted it."""
    home = tmp_path_factory.mktemp("promoted")
    desk = make_desk(home)
    result = json.loads((desk.run / "result.json").read_text())
    writer = Writer(uri(home), result["experiment"], artifacts=(home / "artifacts").as_uri())
    writer.start({"run_id": result["run_id"], "agencies": {name: {} for name in result["agencies"]}})
    writer.finish(result, desk.run, 3000)
    desk.approved()
    assert champion(uri(home), NAME) is None
    done = promoting(desk)
    assert done.code == 0, done.err
    assert done.out == "promoted  early-help version 1 is the champion; before it: nothing\n"
    return home


@pytest.fixture
def promoted(promoted_home: Path, tmp_path: Path) -> Desk:
    """A copy of it to change."""
    shutil.copytree(promoted_home, tmp_path, dirs_exist_ok=True)
    return Desk(tmp_path)


def refused(desk: Desk, *says: str, run: Path | None = None) -> None:
    """Exit code 1, all of `says`, and MLflow is as it was."""
    mlflow = client(desk.home)
    before = (champion(uri(desk.home), NAME), len(mlflow.search_model_versions(f"name='{NAME}'")))
    done = promoting(desk, run)
    assert done.code == 1
    for sentence in (*says, NOTHING):
        assert sentence in done.err
    assert (champion(uri(desk.home), NAME), len(mlflow.search_model_versions(f"name='{NAME}'"))) == before
    assert before == ("1", 1)


# --- moved ----------------------------------------------------------------------------------------------


def test_the_version_says_by_which_decision_and_its_run_holds_the_files(promoted_home: Path) -> None:
    desk, mlflow = Desk(promoted_home), client(promoted_home)
    version = mlflow.get_model_version_by_alias(NAME, "champion")
    decision = next(entry.entry for entry in read(desk.folder) if entry.entry.kind == "decision")
    subject = json.loads(decision.statement)["subject"]
    assert version.tags == {
        "panel.decision_sha256": decision.digest,
        "panel.verdict": "approve",
        "panel.expires": version.tags["panel.expires"],
        "panel.registration_sha256": subject["registration_sha256"],
        "fedrisk.weights_sha256": subject["weights_sha256"],
        "fedrisk.run_id": "early-help-1",
    }
    run = mlflow.get_run(version.run_id)
    assert run.info.run_name == "early-help-1"
    assert run.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in run.data.tags
    place = Path(mlflow.download_artifacts(version.run_id, f"panel/{decision.digest[:12]}"))
    for name in ("model/model.safetensors", "model/card.json", "report.html", "gates.json"):
        assert (place / Path(name).name).read_bytes() == (desk.run / name).read_bytes()
    assert run.data.tags["panel.decision_sha256"] == decision.digest


def test_the_registered_model_is_a_pickle_free_export_of_the_weights(promoted_home: Path) -> None:
    import mlflow
    import torch
    from safetensors.torch import load_file

    version = client(promoted_home).get_model_version_by_alias(NAME, "champion")
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri(promoted_home))
    mlflow.set_registry_uri(uri(promoted_home))
    try:
        model = mlflow.pytorch.load_model(f"models:/{NAME}@champion")
        files = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version.version}"))
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    assert [path for path in files.rglob("*") if path.suffix in (".pkl", ".pth", ".pickle")] == []
    weights = load_file(promoted_home / "early-help-1" / "model" / "model.safetensors")
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 31)).astype(np.float32))
    weight, bias = (next(value for value in weights.values() if value.ndim == n) for n in (2, 1))
    torch.testing.assert_close(model(rows), rows @ weight[0] + bias[0])


def test_nothing_in_mlflow_names_a_person_or_a_machine(promoted_home: Path) -> None:
    import getpass
    import socket

    mlflow = client(promoted_home)
    version = mlflow.get_model_version_by_alias(NAME, "champion")
    logged = mlflow.get_logged_model(version.source.removeprefix("models:/"))
    tags = mlflow.get_run(version.run_id).data.tags | logged.tags
    assert tags["mlflow.user"] == "fedrisk"
    said = [text for name, text in tags.items() if not name.startswith("fedrisk.")]
    for text in said:
        assert socket.gethostname() not in text
        assert not text.startswith("/")
        assert text != getpass.getuser()


def test_a_new_decision_moves_the_alias_to_a_new_version(promoted: Desk) -> None:
    promoted.approved(*APPROVE, "--expires", "30")
    done = promoting(promoted, None, "--json")
    assert done.code == 0, done.err
    assert {key: done.json[key] for key in ("name", "version", "alias", "before")} == {
        "name": NAME,
        "version": "2",
        "alias": "champion",
        "before": "1",
    }
    assert champion(uri(promoted.home), NAME) == "2"


def test_a_delivered_approval_is_archived_beside_the_model(promoted: Desk) -> None:
    decision = promoted.must("list", "--json").json["decisions"][0]["decision_sha256"]
    promoted.must("deliver", decision, promoted.run)
    done = promoting(promoted, None, "--json")
    assert done.code == 0, done.err
    archived = client(promoted.home).download_artifacts(
        done.json["run"], f"panel/{decision[:12]}/approval.json"
    )
    assert Path(archived).read_bytes() == (promoted.run / "model" / "approval.json").read_bytes()


def test_a_suspension_is_mirrored_on_run_and_version_and_moves_nothing(promoted: Desk) -> None:
    _suspended(promoted)
    done = promoted.must("mirror", promoted.run, "--uri", uri(promoted.home))
    mlflow = client(promoted.home)
    version = mlflow.get_model_version_by_alias(NAME, "champion")
    assert (
        done.out == f"mirrored  decision {version.tags['panel.decision_sha256'][:12]}, approve: suspended\n"
    )
    for tags in (version.tags, mlflow.get_run(version.run_id).data.tags):
        assert (tags["panel.state"], tags["panel.until"]) == ("suspended", "")


def test_a_rejection_is_mirrored_on_the_run_alone(promoted: Desk) -> None:
    promoted.decide("--verdict", "reject", *SAYS)
    tags = promoted.must("mirror", promoted.run, "--uri", uri(promoted.home), "--json").json
    assert (tags["panel.verdict"], tags["panel.state"]) == ("reject", "may not be used")
    mlflow = client(promoted.home)
    version = mlflow.get_model_version_by_alias(NAME, "champion")
    assert mlflow.get_run(version.run_id).data.tags.items() >= tags.items()
    assert version.tags["panel.verdict"] == "approve", "the version is by the decision before"
    flip(promoted.folder / "history.jsonl", 50)
    done = promoted.does("mirror", promoted.run, "--uri", uri(promoted.home))
    assert done.code == 1
    assert "is not as it was written" in done.err


def test_a_decision_on_a_run_that_mlflow_lacks_says_how_to_put_it_there(promoted: Desk) -> None:
    empty = f"sqlite:///{promoted.home / 'empty.db'}"
    shutil.copy(promoted.home / "mlflow.db", promoted.home / "empty.db")
    mlflow = client(promoted.home)
    run = mlflow.get_model_version_by_alias(NAME, "champion").run_id
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=empty).delete_run(run)
    done = promoted.does("mirror", promoted.run, "--uri", empty)
    assert done.code == 1
    assert "put it there with fedrisk track" in done.err


def test_a_run_that_mlflow_does_not_know_gets_one(promoted: Desk) -> None:
    run = promoted.home / "untracked"
    shutil.copytree(promoted.run, run)
    model = run / "model"
    tags = {"panel.decision_sha256": "d" * 64, "fedrisk.weights_sha256": weights_sha256(promoted)}
    found = promote(
        uri(promoted.home), "other", model, ModelSpec("logistic", ()), 31, "untracked", "new", tags
    )
    assert (found.version, found.before) == ("1", None)
    logged = client(promoted.home).get_run(found.run)
    assert logged.info.run_name == "untracked"
    assert logged.data.tags["mlflow.user"] == "fedrisk"
    assert logged.data.tags["mlflow.source.name"] == "fedrisk"
    assert champion(uri(promoted.home), NAME) == "1"


def weights_sha256(desk: Desk) -> str:
    return str(json.loads((desk.run / "model" / "card.json").read_text())["weights_sha256"])


# --- not moved --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOUND)
def test_one_byte_in_any_bound_file_stops_it(promoted: Desk, name: str) -> None:
    flip(promoted.run / name)
    refused(promoted, f"{promoted.run / name} is not what decision")
    (promoted.run / name).unlink()
    refused(promoted, f"{promoted.run / name} is not what decision", "it is missing")


@pytest.mark.parametrize("line", [1, 2, 3])
def test_one_byte_in_a_line_of_the_history_stops_it(promoted: Desk, line: int) -> None:
    path = promoted.folder / "history.jsonl"
    flip(path, sum(map(len, path.read_bytes().splitlines(keepends=True)[: line - 1])) + 50)
    done = promoting(promoted)
    assert done.code == 1
    assert f"entry {line} is not as it was written" in done.err
    assert champion(uri(promoted.home), NAME) == "1"


def test_another_registration_stops_it(promoted: Desk) -> None:
    result = json.loads((promoted.run / "result.json").read_text())
    other = promoted.register("other", horizon="6 months")
    (promoted.run / "result.json").write_text(json.dumps(result | {"registration": other}))
    refused(promoted, "result.json is not what decision", f"is {other['sha256'][:12]}, and ")
    (promoted.run / "result.json").write_text(json.dumps(result | {"registration": None}))
    refused(promoted, "is none, and ")


def _suspended(desk: Desk) -> None:
    decision = desk.must("list", "--json").json["decisions"][0]["decision_sha256"]
    desk.must("suspend", decision, "--reason", "drift at the council", *desk.key("bob"), "--yes")


def _failed_gate(desk: Desk) -> None:
    report = json.loads((desk.run / "gates.json").read_text())
    report["gates"][0]["passed"] = False
    (desk.run / "gates.json").write_text(json.dumps(report))


UNFIT: dict[str, tuple[Callable[[Desk], object], tuple[str, ...]]] = {
    "rejected": (
        lambda desk: desk.decide("--verdict", "reject", *SAYS),
        ("the panel 'Panel of the North' rejected it",),
    ),
    "more information": (
        lambda desk: desk.decide("--verdict", "more_information", *SAYS),
        ("asked for more information",),
    ),
    "suspended": (_suspended, ("the panel suspended it on", "drift at the council")),
    "no status": (lambda desk: desk.decide(*APPROVE), ("nobody has said yet that it is in force",)),
    "open condition, no status": (
        lambda desk: desk.decide(*CONDITIONAL),
        ("condition dpia is not met yet: DPIA signed", "nobody has said yet that it is in force"),
    ),
    "open condition": (lambda desk: desk.approved(*CONDITIONAL), ("condition dpia is not met yet",)),
    "failed gate": (_failed_gate, ("gates.json is not what decision", "gate auc: ")),
}


@pytest.mark.parametrize("why", UNFIT)
def test_what_the_panel_does_not_allow_now_is_not_promoted(promoted: Desk, why: str) -> None:
    act, says = UNFIT[why]
    act(promoted)
    refused(promoted, *says)


@pytest.mark.parametrize(
    ("days", "says"), [(8, "the newest word that it is in force ended"), (91, "expired on")]
)
def test_what_has_ended_is_not_promoted(
    promoted: Desk, monkeypatch: pytest.MonkeyPatch, days: int, says: str
) -> None:
    later(monkeypatch, days=days)
    refused(promoted, says)


def test_what_nobody_decided_on_is_not_promoted(promoted: Desk) -> None:
    run = write_run(promoted.home / "another", None, seed=8)
    (run / "model" / "model.safetensors").write_bytes(b"other weights")
    refused(promoted, "the panel decided nothing on the run in", run=run)


def test_an_entry_that_too_few_signed_stops_it(promoted: Desk) -> None:
    path = promoted.folder / "panel.toml"
    path.write_text(path.read_text().replace("quorum = 2", "quorum = 3", 1))
    refused(promoted, "entry 2: the decision needs the signatures of 3 members")


# --- the address ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mlruns", "is a plain folder"),
        ("sqlite:////dev/null/mlflow.db", "cannot be written"),
        ("http://127.0.0.1:9", "no MLflow server answers"),
    ],
)
def test_an_address_that_is_none_is_a_sentence(promoted: Desk, address: str, says: str) -> None:
    done = promoted.does("promote", promoted.run, "--uri", address, "--name", NAME)
    assert done.code == 1
    assert says in done.err


def test_weights_that_changed_at_the_last_moment_are_not_registered(promoted: Desk) -> None:
    model, spec = promoted.run / "model", ModelSpec("logistic", ())
    tags = {"panel.decision_sha256": "d" * 64, "fedrisk.weights_sha256": weights_sha256(promoted)}
    with pytest.raises(RegistryError, match="does not hold the weights"):
        promote(uri(promoted.home), NAME, model, spec, 30, "early-help-1", "x", tags)
    flip(model / "model.safetensors")
    with pytest.raises(RegistryError, match="was changed just now"):
        promote(uri(promoted.home), NAME, model, spec, 31, "early-help-1", "x", tags)
    assert champion(uri(promoted.home), NAME) == "1"
