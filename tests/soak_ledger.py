"""A thousand processes killed (-9) while they charge one ledger: nothing was released that was not charged.

    python -m tests.soak_ledger [kills]

Each child opens the same ledger and, like a training, charges a release, waits for the disk, and only then
says in a file of its own that it released it. Two children at a time are killed at random moments: while
they open the ledger, or after their first charge. At the end, and after every hundred kills, each line that
says "released" must have its charge in a ledger that verifies. A killed process leaves what it wrote to the
operating system; a cut of the power is not tried here (`PRAGMA synchronous = FULL` is SQLite's promise).
"""

import contextlib
import math
import os
import random
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a child is a fork: one thread, and no imports of its own

from clients.ledger import Ledger, Limit, PlanFacts
from federation.release import Release, SharedRelease

KILLS = 1000
BUDGET = (Limit("life", None, 1e-5, {"public": 1e6, "coordinator": 1e6, "everybody": 1e6}),)
EVENTS = (
    Release("train", "train", 2.0, 0.1, 50),
    SharedRelease("train", "train", 1000.0, 4_000_000, 64, 5, 1, 1, 0.1, 50),
)


def open_ledger(path: Path) -> Ledger:
    return Ledger(path, budget=BUDGET, scope="lifetime", people="soak", split_id="s", wait=60)


def train(path: Path, name: str, working: int) -> None:
    """Charge and release until killed; a byte to `working` after the first."""
    plan = PlanFacts(name, "soak", "soak", "soak")
    released = os.open(path.with_name(f"{name}.released"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ledger = open_ledger(path)
    for number in range(1_000_000):
        order = f"{name}/{number}"
        ledger.charge(plan, order, EVENTS, once=True)
        os.write(released, f"{order}\n".encode())
        if number == 0:
            os.write(working, b"x")


def fork(path: Path, name: str) -> tuple[int, int]:
    """A child that trains: its process id, and where its first release is told."""
    told, working = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            train(path, name, working)
        os._exit(1)  # it should have been killed
    os.close(working)
    return child, told


def kill_two(path: Path, batch: int, chance: random.Random, opening: float) -> int:
    """Start two, kill each at a random moment. How many were still alive to be killed."""
    children = [fork(path, f"child-{batch}-{number}") for number in range(2)]
    while_opening = chance.random() < 0.2
    due = {child: time.monotonic() + chance.uniform(0, opening) for child, _ in children if while_opening}
    killed = 0
    while children:
        silent = [told for child, told in children if child not in due]
        soonest = min(due.values(), default=math.inf) - time.monotonic()
        heard, _, _ = select.select(silent, [], [], min(max(soonest, 0), 60))
        for child, told in list(children):
            if told in heard:  # its first release, or its end
                due[child] = time.monotonic() + chance.uniform(0, 0.02)
            if due.get(child, math.inf) <= time.monotonic():
                os.kill(child, signal.SIGKILL)
                killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
                os.close(told)
                del due[child]
                children.remove((child, told))
    return killed


def check(path: Path) -> tuple[int, int, list[str]]:
    """Orders charged, lines released, and what is wrong."""
    with open_ledger(path) as ledger:
        ledger.verify()
        orders = [entry.order_id for entry in ledger.entries() if entry.action == "charge"]
    charged = set(orders)
    wrong = [] if len(orders) == len(EVENTS) * len(charged) else ["an order was charged twice or in part"]
    lines = [line for file in path.parent.glob("*.released") for line in file.read_text().split("\n")[:-1]]
    wrong += [f"{line} was released and not charged" for line in lines if line not in charged]
    if len(set(lines)) != len(lines):
        wrong.append("an order was released twice")
    return len(charged), len(lines), wrong


def main(kills: int) -> int:
    began, chance = time.monotonic(), random.Random(0)
    killed, batch, opening = 0, 0, 0.05
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        while killed < kills and not wrong:
            killed += kill_two(path, batch, chance, opening)
            batch += 1
            if batch % 50 == 0 or killed >= kills:
                checking = time.monotonic()
                charged, released, wrong = check(path)
                opening = (time.monotonic() - checking) / 3  # it reads the ledger three times
            if 2 * batch - killed > kills // 100:
                wrong.append(f"{2 * batch - killed} children ended before they were killed")
        size = path.stat().st_size
    print(
        f"soak: {killed} kills, {charged} orders charged, {released} released,"
        f" {charged - released} charged and never released; {size / 1e6:.1f} MB,"
        f" {time.monotonic() - began:.0f} s: {'; '.join(wrong[:5]) or 'every release has its charge'}"
    )
    return 1 if wrong or charged - released > killed else 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else KILLS))
