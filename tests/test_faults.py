"""What breaks, breaks: killed nodes, workers, SuperLinks and hosts, cut networks. A run costs time, and no privacy.

Real processes; each test ends with every ledger holding what left, and each draw once.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from federation_host import starting
from hosted import Federation, change, hosted

NAMES = ("clinic", "north", "south")
SLOW = "clinic"  # whose worker is stopped while it has an order
pytestmark = [pytest.mark.deployed, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with hosted(tmp_path_factory.mktemp("faults"), NAMES) as running:
        yield running


def until_back(federation: Federation, name: str, times: int) -> None:
    """Wait until the agency's node has connected for the `times`-th time."""
    agency = federation.agencies[name]
    federation.wait(lambda: agency.log().count("connected to") >= times, 120, f"{name} is back")


def finish(federation: Federation, run: object, *, rounds: int = 6, lost: int = 0) -> list[dict[str, object]]:
    assert federation.until_it_ends(run) == "finished:completed", federation.logs()  # type: ignore[arg-type]
    federation.must_have_charged_what_left(run, lost=lost)  # type: ignore[arg-type]
    found: list[dict[str, object]] = run.result["rounds"]  # type: ignore[attr-defined]
    assert len(found) == rounds
    return found


def test_a_killed_worker_costs_no_round_and_no_second_charge(federation: Federation) -> None:
    """Stopped with an order in hand, then killed: the new one makes the same draw."""
    agency = federation.agencies["north"]
    run = federation.submit("rounds=6")
    federation.until_round(run, 2)
    worker = agency.worker
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    time.sleep(2)
    os.kill(worker, signal.SIGKILL)
    rounds = finish(federation, run)
    assert all(record["replied"] == list(NAMES) for record in rounds)
    assert "the worker ended (signal 9) while it had an order" in agency.log()


def test_a_killed_node_comes_back_to_the_order_that_it_had(federation: Federation) -> None:
    """Its lease refuses it for up to 66 seconds; it keeps trying, is asked again, and was charged once."""
    agency = federation.agencies["south"]
    before = agency.log().count("connected to")
    run = federation.submit("rounds=6", "patience=120")
    federation.until_round(run, 2)
    worker = agency.worker
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    time.sleep(2)
    agency.kill()
    os.kill(worker, signal.SIGKILL)
    agency.start()
    rounds = finish(federation, run)
    assert all(record["replied"] == list(NAMES) for record in rounds)
    until_back(federation, "south", before + 1)


def test_the_superlink_is_killed_and_the_run_goes_on(federation: Federation) -> None:
    run = federation.submit("rounds=6")
    federation.until_round(run, 2)
    pid = federation.host.child("superlink")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    rounds = finish(federation, run)
    assert all(record["replied"] == list(NAMES) for record in rounds)
    assert federation.host.child("superlink") not in (None, pid)


def test_the_coordinators_host_is_rebooted_and_the_run_is_resumed(federation: Federation) -> None:
    run = federation.submit("rounds=6")
    federation.until_round(run, 3)
    host = federation.host
    family = [host.process.pid, *_family(host.process.pid)]
    for pid in family:
        _kill(pid)
    host.process.wait()
    federation.host = starting(host.folder)
    federation.wait(lambda: federation.host.child("nginx") is not None, 60, "the coordinator is back")
    done = federation.host.fedrisk(
        "resume", run.folder.name, "--output", str(run.folder.parent), "--superlink", str(host.folder)
    )
    assert done.returncode == 0, done.stderr
    federation.wait((run.folder / "result.json").exists, 240, "the resumed run")
    rounds = run.result["rounds"]
    assert [record["round"] for record in rounds] == [1, 2, 3, 4, 5, 6]
    assert all(record["replied"] == list(NAMES) for record in rounds)
    federation.must_have_charged_what_left(run)


def _family(pid: int) -> list[int]:
    from deployment import descendants

    return descendants(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Relay:
    """A network between a node and the coordinator that can be cut: what was on its way is lost, and nothing answers."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._pairs: list[socket.socket] = []
        self._is_cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut.set()
        for each in self._pairs:
            each.close()
        self._pairs.clear()

    def restore(self) -> None:
        self._is_cut.clear()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            if self._is_cut.is_set():
                inner.close()
                continue
            try:
                outer = socket.create_connection(self._target)
            except OSError:  # nobody is there just now
                inner.close()
                continue
            self._pairs += [inner, outer]
            for one, other in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        for each in (one, other):
            with_shutdown(each)


def with_shutdown(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


def test_a_cut_network_costs_time_alone(federation: Federation) -> None:
    """Ten seconds here, sixty in the soak: the node waits, and the round with it."""
    cut_for(federation, 10.0)


def cut_for(federation: Federation, seconds: float) -> None:
    agency = federation.agencies["north"]
    relay = Relay(federation.host.address)
    try:
        agency.stop()
        facts = {"address": relay.address, "certificate": "ca.crt"}
        change(agency.folder / "node.toml", superlink=facts)
        before = agency.log().count("connected to")
        agency.start()
        until_back(federation, "north", before + 1)
        run = federation.submit("rounds=6", "patience=180")
        federation.until_round(run, 2)
        relay.cut()
        time.sleep(seconds)
        relay.restore()
        rounds = finish(federation, run)
        assert all(record["replied"] == list(NAMES) for record in rounds)
        assert "cannot be reached" in agency.log()
    finally:
        relay.close()
        agency.stop()
        change(agency.folder / "node.toml", superlink=facts | {"address": federation.host.address})
        before = agency.log().count("connected to")
        agency.start()
        until_back(federation, "north", before + 1)


def test_an_agency_joins_at_the_next_round_and_another_leaves(federation: Federation) -> None:
    late, leaver = federation.agencies["south"], federation.agencies["clinic"]
    late.stop()
    run = federation.submit("rounds=40", "min_agencies=2", "join_timeout=5")
    federation.until_round(run, 2)
    late.start()
    federation.wait(lambda: f"ready for run {run.folder.name}" in late.log(), 90, "the late agency is asked")
    seen = run.rounds()
    federation.until_round(run, seen + 2)
    said = leaver.command("stop", str(leaver.folder), "--leave", "--by", "A. Khan", "--why", "a test")
    assert said.returncode == 0, said.stderr
    assert "clinic has left the federation" in said.stdout
    rounds = finish(federation, run, rounds=40)
    joined = [record["round"] for record in rounds if "south" in record["joined"]]
    assert len(joined) == 1
    first = joined[0]
    assert all(("south" in r["replied"]) == (r["round"] >= first) for r in rounds)  # type: ignore[operator]
    assert "clinic" not in rounds[-1]["replied"]  # type: ignore[operator]
    result = run.result
    assert result["agencies"]["clinic"]["status"] == "left"
    assert [(each["agency"], each["back"]) for each in result["departures"]] == [("clinic", None)]
    again = leaver.command("start", str(leaver.folder))
    assert again.returncode == 1
    assert "clinic has left the federation" in again.stderr
    charged = leaver.charges()
    assert [event.kind for _, event in charged].count("train") >= 1, "what it released stays released"
