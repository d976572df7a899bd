"""A coordinator that sends code: a node never fetches, unpacks or imports a bundle, whatever is in it.

The coordinator here is a stock SuperLink, as an attacker would run it: it hands out any bundle.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from deployment import NAME, Deployment, free_ports, healthy, know_superlink, start, stop
from hosted import Agency, lay_out

from experiments.config import compose, read
from experiments.run import new_run_id, with_whole_paths
from federation import installed

NAMES = ("clinic", "north", "south")
SETTINGS = ["experiment=own", "name=bundles", "tracking=none", "rounds=1", "evaluation.checkpoints=0"]
SETTINGS += ["min_agencies=3", "join_timeout=60", "engine=superlink"]
pytestmark = [pytest.mark.deployed, pytest.mark.timeout(600)]

SPY = """
from pathlib import Path
for table in Path({nodes!r}).glob("*/people.csv"):
    Path({loot!r}, table.parent.name).write_text(table.read_text())
import clients.app
app = clients.app.app
"""
LENIENT = """
from pathlib import Path
Path({loot!r}, "policy").write_text("imported")
class Policy:
    def __getattr__(self, name):
        return lambda *_, **__: None
PolicyError = ValueError
def read_policy(path):
    return Policy()
"""


class Evil:
    """A stock SuperLink, and nodes that trust its address."""

    def __init__(self, root: Path) -> None:
        (port,) = free_ports(1)
        self.root, self.loot = root, root / "loot"
        self.loot.mkdir()
        self.agencies: dict[str, Agency] = lay_out(root, NAMES, f"127.0.0.1:{port}", None)
        nodes = {name: agency.folder for name, agency in self.agencies.items()}
        self.deployment = Deployment(root, f"127.0.0.1:{port}", nodes)
        know_superlink(root / "submitter", NAME, self.deployment.address)
        command = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
        start(self.deployment, "superlink", [*command, "--host", "127.0.0.1", "--port", str(port)])
        self.deployment.wait(lambda: healthy(self.deployment.address), 60, "the SuperLink")
        for agency in self.agencies.values():
            agency.start()

    def overrides(self) -> list[str]:
        return [*SETTINGS, f"data.agencies={self.root}/agencies.yaml", f"output={self.root}/runs"]

    def run(self, app: Path) -> Path:
        """`flwr run` of the bundle in `app`, with the settings of a proper run; the run's folder once it is over."""
        experiment = read(compose(self.overrides()), tables=False).experiment
        experiment = experiment.but(settings=with_whole_paths(experiment.settings, self.root))
        run_id = new_run_id("bundles")
        (self.root / "config.toml").write_text(
            tomli_w.dumps({"experiment": experiment.encode(), "run-id": run_id, "stats": ""})
        )
        options = ["--run-config", str(self.root / "config.toml"), "--format", "json"]
        done = self.deployment.command("flwr.cli.app", "run", str(app), NAME, *options)
        answer = json.loads(done.stdout)
        assert answer["success"], done.stdout
        return self.until_it_ends(str(answer["run-id"]), self.root / "runs" / run_id)

    def submit(self) -> Path:
        """`fedrisk submit`; the run's folder once it is over."""
        done = self.deployment.command("experiments.cli", "submit", NAME, *self.overrides())
        said = re.search(r"which Flower calls (\d+)[\s\S]*?\nresult +(\S+)/result.json", done.stdout)
        assert said is not None, done.stdout + done.stderr
        return self.until_it_ends(said[1], Path(said[2]))

    def until_it_ends(self, number: str, folder: Path) -> Path:
        self.deployment.wait(lambda: self.deployment.status(number).startswith("finished"), 240, "the run")
        return folder

    def state(self) -> dict[str, str]:
        """What a bundle could have changed: every file of an agency but its log, and the installed code."""
        paths = [
            path
            for agency in self.agencies.values()
            for path in agency.folder.rglob("*")
            if path.is_file() and "log" not in path.parts and not path.name.startswith("ledger.db")
        ]
        code = Path(installed.__file__).parent.parent
        paths += [path for name in installed.PACKAGES for path in (code / name).rglob("*.py")]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def bundle(folder: Path, files: dict[str, str], client: str = installed.CLIENT_APP) -> Path:
    """A Flower app like ours, with code of its own beside it."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(installed.pyproject().replace(installed.CLIENT_APP, client))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evil]:
    found = Evil(tmp_path_factory.mktemp("evil"))
    try:
        yield found
    finally:
        with contextlib.ExitStack() as stack:
            for agency in found.agencies.values():
                stack.callback(agency.end)
            stack.callback(stop, found.deployment.processes.values())


def attacks(evil: Evil) -> dict[str, Path]:
    names = {"nodes": str(evil.root / "nodes"), "loot": str(evil.loot)}
    spy, lenient = SPY.format(**names), LENIENT.format(**names)
    return {
        "an import that reads the data path": bundle(evil.root / "spy", {"spy.py": spy}, "spy:app"),
        "another policy": bundle(evil.root / "lenient", {"clients/policy.py": lenient}),
    }


@pytest.mark.long
def test_a_bundle_with_code_is_refused_and_the_next_proper_run_works(evil: Evil) -> None:
    deployment = evil.deployment
    deployment.wait(
        lambda: all("connected" in each.log() for each in evil.agencies.values()), 60, "the nodes"
    )
    before = evil.state()
    for what, app in attacks(evil).items():
        refused = {
            name: agency.log().count("refused, VERSION: release: ") for name, agency in evil.agencies.items()
        }
        folder = evil.run(app)
        log = (folder / "run.log").read_text()
        assert all(f"{name} (refused: VERSION)" in log for name in NAMES), (what, log)
        for name, agency in evil.agencies.items():
            assert agency.log().count("refused, VERSION: release: ") == refused[name] + 1, what
            assert not agency.charges(), what
        assert evil.state() == before, what
        assert not list(evil.loot.iterdir()), what
        assert not list(evil.root.glob("home-*/apps")), "nothing was fetched"
    proper = evil.submit()
    assert json.loads((proper / "result.json").read_text())["status"] == "finished", deployment.logs()
    for agency in evil.agencies.values():
        assert [event.kind for _, event in agency.charges()] == ["train", "evaluate"]
        assert "refused" in agency.command("log", str(agency.folder)).stdout


@pytest.mark.long
def test_the_control_stock_flower_runs_what_it_is_sent(evil: Evil) -> None:
    """The same bundle at a stock SuperNode: its import takes the table. This is what the node does not do."""
    (port,) = free_ports(1)
    for agency in evil.agencies.values():
        agency.stop()
    north = evil.agencies["north"].folder
    command = [
        "flower-supernode",
        "--insecure",
        "--superlink",
        evil.deployment.address,
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(port), "--node-config", f'node-dir="{north}"']
    start(evil.deployment, "stock", command)
    spy = SPY.format(nodes=str(evil.root / "nodes"), loot=str(evil.loot))
    evil.run(bundle(evil.root / "control", {"spy.py": spy}, "spy:app"))
    assert (evil.loot / "north").read_text() == (north / "people.csv").read_text()
