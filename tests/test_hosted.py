"""A hosted federation: what a bundle cannot do, what a round costs, and who may not start twice."""

from collections.abc import Iterator

import pytest
from hosted import CANARY, Federation, Run, hosted

NAMES = ("clinic", "north", "south")
pytestmark = [pytest.mark.deployed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with hosted(tmp_path_factory.mktemp("hosted"), NAMES) as running:
        yield running


@pytest.fixture(scope="module")
def finished(federation: Federation) -> Run:
    """A run that went through."""
    run = federation.submit("rounds=4")
    assert federation.until_it_ends(run) == "finished:completed", federation.logs()
    return run


def test_three_agencies_finish_and_each_ledger_holds_what_left(federation: Federation, finished: Run) -> None:
    result = finished.result
    assert [record["replied"] for record in result["rounds"]] == [list(NAMES)] * 4
    assert result["privacy"]["ledger"] == "lifetime"
    federation.must_have_charged_what_left(finished)
    for agency in federation.agencies.values():
        assert len(agency.charges()) == 4 + 2, "four trainings, a table at the checkpoint, one at the end"


def test_a_run_pays_for_imports_once(federation: Federation, finished: Run) -> None:
    """One worker has answered everything: nobody started a process for an order."""
    for agency in federation.agencies.values():
        assert "a new worker" not in agency.log()
        assert agency.worker is not None


def test_the_second_node_on_a_folder_refuses(federation: Federation) -> None:
    agency = federation.agencies["north"]
    second = agency.command("start", str(agency.folder))
    assert second.returncode == 1
    assert second.stderr.startswith("fedrisk-node: a node is at work in")
    assert second.stderr.count("\n") == 1
    assert agency.process is not None
    assert agency.process.poll() is None


def test_nothing_of_a_record_is_outside_the_agencies(federation: Federation, finished: Run) -> None:
    """Coordinator, homes, what nodes printed; inside an agency only its own table has it."""
    assert finished.folder.is_dir()
    holders = [
        path.relative_to(federation.root).as_posix()
        for path in federation.root.rglob("*")
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()
    ]
    assert sorted(holders) == [f"nodes/{name}/people.csv" for name in sorted(NAMES)]
