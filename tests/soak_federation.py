"""A federation under random faults: 24 orders to each agency, and at the end the ledgers hold what left, each draw once.

    python -m tests.soak_federation [--seed N] [--masked]           about ten minutes

While a run goes on, something breaks every few seconds: a worker, a node, the SuperLink or nginx is killed (-9), a
node stands still for five seconds, an agency's network is cut for a minute, and once the coordinator is killed whole
and the run resumed. Then each charge in each ledger must be a reply that the coordinator used, or is named with why
it was not; each reply that was used must be charged exactly as it was ordered; and ledgers and journals verify.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from deployment import descendants
from federation_host import starting
from hosted import Agency, Federation, Run, change, hosted
from rich.console import Console
from rich.table import Table
from test_faults import Relay

from federation.experiment import Experiment
from federation.plan import TrainPlan

NAMES = ("clinic", "north", "south")
ONE_MORE = "east"  # behind masks: with three, no round would survive that one is late
BEHIND_RELAY = "north"  # whose network can be cut
ROUNDS, BREAKING, LONGEST = 23, 8 * 60.0, 14 * 60.0  # seconds: of faults, and of all
PAUSE = (3.0, 7.0)  # seconds between faults
STILL, CUT, RESTART = (
    5.0,
    60.0,
    5.0,
)  # seconds: of a stopped node, of a cut network, until systemd starts a node again
ANSWER_SECONDS = 1.0  # that each answer takes at least, so that there is something to break
SETTINGS = (f"rounds={ROUNDS}", "patience=300", "join_timeout=180", "min_agencies=2", "local.steps=50")
MASKED = (
    "strategy=dp_fedsgd",
    "privacy=shared",
    "privacy.colluders=1",
    "privacy.dropouts=1",
    "local.steps=1",
    "void_rounds=20",
)
WEIGHTS = {"worker": 6.0, "still": 6.0, "nginx": 1.0, "superlink": 1.0, "node": 1.0}  # of what may come often
ONCE = ("network", "coordinator")


@dataclass
class Faults:
    """Breaks things, and puts back what somebody else would put back."""

    federation: Federation
    relay: Relay
    chance: random.Random
    happened: list[tuple[float, str, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _restart: dict[str, float] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    resumed_at: int | None = None

    def draw(self) -> str:
        """Each kind once, in a random order, then by weight."""
        done = {kind for _, kind, _ in self.happened}
        left = sorted({*WEIGHTS, *ONCE} - done)
        if left:
            return self.chance.choice(left)
        return self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]

    def do(self, kind: str, run: Run) -> None:
        """One fault, if it is possible now."""
        whose = getattr(self, f"_{kind}")(run)
        if whose is not None:
            self.happened.append((time.monotonic() - self.began, kind, whose))
            print(f"  {self.happened[-1][0]:5.0f} s  round {run.rounds() + 1:>2}  {kind} {whose}", flush=True)

    def tend(self) -> None:
        """What is due: a stopped node goes on, a network is back, a node that ended is started again."""
        now = time.monotonic()
        for due in [each for each in self._due if each[0] <= now]:
            self._due.remove(due)
            due[1]()
        for name, agency in self.federation.agencies.items():
            ended = agency.process is not None and agency.process.poll() is not None
            if ended and now >= self._restart.setdefault(name, now + RESTART):
                del self._restart[name]
                agency.start()

    def put_back(self) -> None:
        """All that is due, now."""
        for _, act in self._due:
            act()
        self._due.clear()

    def _worker(self, run: Run) -> str | None:
        """Not twice while it has one order: of that an order is refused, which is meant."""
        agency = self._one(lambda each: each.log().count(": released ") > self._seen.get(each.name, -1))
        if agency is None or agency.worker is None:
            return None
        self._seen[agency.name] = agency.log().count(": released ")
        _kill(agency.worker)
        return agency.name

    def _node(self, run: Run) -> str | None:
        agency = self._one(lambda each: True)
        if agency is not None:
            agency.kill()
        return None if agency is None else agency.name

    def _still(self, run: Run) -> str | None:
        agency = self._one(lambda each: True)
        if agency is None or agency.process is None:
            return None
        pid = agency.process.pid
        os.kill(pid, signal.SIGSTOP)
        self._due.append((time.monotonic() + STILL, lambda: _signal(pid, signal.SIGCONT)))
        return agency.name

    def _superlink(self, run: Run) -> str | None:
        return self._child("superlink")

    def _nginx(self, run: Run) -> str | None:
        return self._child("nginx")

    def _child(self, name: str) -> str | None:
        pid = self.federation.host.child(name)
        if pid is None:
            return None
        _kill(pid)
        return "at the coordinator"

    def _network(self, run: Run) -> str:
        self.relay.cut()
        self._due.append((time.monotonic() + CUT, self.relay.restore))
        return f"of {BEHIND_RELAY}"

    def _coordinator(self, run: Run) -> str | None:
        """The host is rebooted: all its processes at once; somebody starts it and resumes the run."""
        if run.rounds() < 2:
            return None
        host = self.federation.host
        for pid in [host.process.pid, *descendants(host.process.pid)]:
            _kill(pid)
        host.process.wait()
        self.resumed_at = run.rounds()
        self.federation.host = starting(host.folder)
        self.federation.wait(lambda: self._is_back(run), 120, "the coordinator is back")
        return "whole, resumed"

    def _is_back(self, run: Run) -> bool:
        self.tend()
        time.sleep(1)
        host = self.federation.host
        if host.child("nginx") is None or not (host.folder / "flower" / "config.toml").exists():
            return False
        where = ("--output", str(run.folder.parent), "--superlink", str(host.folder))
        return host.fedrisk("resume", run.folder.name, *where).returncode == 0

    def _one(self, fits: Callable[[Agency], bool]) -> Agency | None:
        agencies = [each for each in self.federation.agencies.values() if each.process is not None]
        found = [each for each in agencies if each.process.poll() is None and fits(each)]  # type: ignore[union-attr]
        return self.chance.choice(found) if found else None


def _kill(pid: int) -> None:
    _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def federation(root: Path, names: Sequence[str]) -> Iterator[tuple[Federation, Relay]]:
    """Agencies, one of them behind a network that can be cut."""
    with hosted(root, names, start=False) as running:
        relay = Relay(running.host.address)
        try:
            for name, agency in running.agencies.items():
                change(agency.folder / "policy.toml", min_reply_seconds=ANSWER_SECONDS)
                if name == BEHIND_RELAY:
                    facts = {"address": relay.address, "certificate": "ca.crt"}
                    change(agency.folder / "node.toml", superlink=facts)
                agency.start()
            running.until_online(names)
            yield running, relay
        finally:
            relay.close()


def break_until_it_ends(run: Run, faults: Faults) -> None:
    """Something every few seconds, until there is a result."""
    next_at = time.monotonic() + faults.chance.uniform(*PAUSE)
    log = run.folder / "run.log"
    while not (run.folder / "result.json").exists():
        faults.tend()
        if time.monotonic() > faults.began + LONGEST:
            raise AssertionError(f"not within {LONGEST / 60:.0f} minutes\n{faults.federation.logs()}")
        if log.exists() and " ERROR " in log.read_text():
            raise AssertionError(f"the run failed\n{log.read_text()[-3000:]}\n{faults.federation.logs()}")
        if next_at <= time.monotonic() < faults.began + BREAKING and run.rounds() >= 1:
            faults.do(faults.draw(), run)
            next_at = time.monotonic() + faults.chance.uniform(*PAUSE)
        time.sleep(0.2)
    faults.put_back()


# --- the account ----------------------------------------------------------------------------------------------


@dataclass
class Account:
    """One agency's ledger held against what the coordinator used. `unused`: by order, why its reply was not."""

    name: str
    used: int = 0
    charged: int = 0
    unused: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def account(agency: Agency, run: Run, plan: TrainPlan, resumed_at: int | None) -> Account:
    """Every charge of the run, by order."""
    result, found = run.result, Account(agency.name)
    records = {record["round"]: record for record in result["rounds"]}
    masked = plan.privacy.shared is not None
    charges: dict[int, dict[str, Counter[str]]] = {}
    for order, event in agency.charges():
        if order.startswith(f"{run.folder.name}/"):
            number = int(order.split("/")[1].partition("#")[0])
            part = event.part if event.kind == "evaluate" else "train"
            charges.setdefault(number, {}).setdefault(order, Counter())[part] += 1
            found.charged += 1
    for number in range(1, plan.rounds + 2):
        record = records.get(number)
        if record is None:  # the last tables: behind masks nobody knows whose they are
            replied = masked or agency.name in result["final"]["metrics"]["agencies"]
        else:
            replied = agency.name in record["replied"]
        void = None if record is None else record["void"]
        orders = charges.get(number, {})
        wanted = Counter(_kinds(plan, number))
        found.wrong += [
            f"{order} was charged as {kinds}" for order, kinds in orders.items() if kinds != wanted
        ]
        if replied and void is None:
            found.used += 1
            if not orders:
                found.wrong.append(f"round {number} was used and not charged")
        spare = len(orders) - int(replied and void is None)
        if spare > 0:
            why = _why(agency.name, number, record, resumed_at, masked=masked)
            found.unused |= dict.fromkeys(list(orders)[:spare], why or "")
    found.wrong += [
        f"{order} was charged, not used, and nobody says why"
        for order, why in found.unused.items()
        if not why
    ]
    if set(charges) - set(range(1, plan.rounds + 2)):
        found.wrong.append("charged for a round that the plan has not")
    return found


def _kinds(plan: TrainPlan, number: int) -> list[str]:
    """What the order of a round asks for."""
    if number > plan.rounds:
        return ["tune", "test"] if plan.rounds in plan.checkpoints else ["test"]
    return ["tune", "train"] if number - 1 in plan.checkpoints else ["train"]


def _why(
    name: str, number: int, record: dict[str, Any] | None, resumed_at: int | None, *, masked: bool
) -> str | None:
    """Why a reply was not used, in words; None where nothing explains it."""
    if masked and resumed_at is not None and number == resumed_at + 1:
        return (
            "behind masks the coordinator was killed in this round, which has other masks when it is resumed"
        )
    if record is None:
        return None
    if record["void"] is not None:
        return f"the round was void: {record['void']}"
    if name in record["late"]:
        return "it came too late"
    if name in record["refused"]:
        return f"refused half way: {record['refused'][name]}"
    if name in record["rejected"]:
        return f"rejected: {record['rejected'][name]}"
    return None


def verified(agency: Agency) -> list[str]:
    """What `ledger --verify` and `log --verify` say that is not well."""
    found = []
    for what in ("ledger", "log"):
        done = agency.command(what, str(agency.folder), "--verify")
        if done.returncode:
            found.append(f"{what} --verify: {done.stderr.strip()}")
    return found


def shown(accounts: list[Account], faults: Faults, seconds: float) -> None:
    """The table."""
    table = Table(title=f"{ROUNDS + 1} orders x {len(accounts)} agencies, {seconds:.0f} s")
    for column in ("agency", "replies used", "charges", "charged, not used", "wrong"):
        table.add_column(column, justify="left" if column == "agency" else "right")
    for each in accounts:
        table.add_row(
            each.name, str(each.used), str(each.charged), str(len(each.unused)), str(len(each.wrong))
        )
    console = Console()
    console.print(table)
    counted = Counter(kind for _, kind, _ in faults.happened)
    console.print(
        f"{len(faults.happened)} faults: " + ", ".join(f"{kind} {n}" for kind, n in counted.items())
    )
    for each in accounts:
        for order, why in each.unused.items():
            console.print(f"{each.name}: {order} was charged and not used: {why}")
        for sentence in each.wrong:
            console.print(f"{each.name}: WRONG: {sentence}")


def main(words: list[str] | None = None) -> int:
    """Exit code 1 where a charge is not accounted for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of which faults happen, and when")
    parser.add_argument("--masked", action="store_true", help="with shared noise behind masks")
    options = parser.parse_args(words)
    print(f"soak: seed {options.seed}{', masked' if options.masked else ''}", flush=True)
    began, names = time.monotonic(), (*NAMES, ONE_MORE) if options.masked else NAMES
    with (
        tempfile.TemporaryDirectory(prefix="fedrisk-soak-") as folder,
        federation(Path(folder), names) as (running, relay),
    ):
        run = running.submit(*SETTINGS, *(MASKED if options.masked else ()))
        faults = Faults(running, relay, random.Random(options.seed))
        break_until_it_ends(run, faults)
        experiment = Experiment.model_validate_json((run.folder / "experiment.json").read_text())
        plan = experiment.plan(run.folder.name, simulation=False)
        for agency in running.agencies.values():
            if agency.process is not None and agency.process.poll() is None:
                agency.stop()
        accounts = [account(agency, run, plan, faults.resumed_at) for agency in running.agencies.values()]
        for each, agency in zip(accounts, running.agencies.values(), strict=True):
            each.wrong += verified(agency)
    shown(accounts, faults, time.monotonic() - began)
    missing = {*WEIGHTS, *ONCE} - {kind for _, kind, _ in faults.happened}
    if missing:
        print(f"it ended before these could happen: {', '.join(sorted(missing))}")
    wrong = any(each.wrong for each in accounts) or bool(missing)
    print(
        "soak: "
        + ("FAILED" if wrong else "every charge is a reply that was used, or is named with why it was not")
    )
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
