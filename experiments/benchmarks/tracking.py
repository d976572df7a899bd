"""What tracking adds to a run: how long `fedrisk run` waits in its tracker, of its whole time as a process."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks.startup import one_thread
from experiments.benchmarks.work import Work
from federation.server import tracking
from federation.server.tracking import Tracker


@dataclass
class Timed:
    """A tracker that adds up how long the run waits for it, by what it is asked for."""

    tracker: Tracker
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def page(self) -> str | None:
        return self.tracker.page

    def start(self, header: Mapping[str, Any]) -> None:
        self._time("start", lambda: self.tracker.start(header))

    def round(self, record: Mapping[str, Any]) -> None:
        self._time("round", lambda: self.tracker.round(record))

    def checkpoint(self, record: Mapping[str, Any]) -> None:
        self._time("checkpoint", lambda: self.tracker.checkpoint(record))

    def finish(self, result: Mapping[str, Any], folder: Path) -> None:
        self._time("finish", lambda: self.tracker.finish(result, folder))

    def fail(self, reason: str) -> None:
        self.tracker.fail(reason)

    def _time(self, what: str, act: Callable[[], None]) -> None:
        began = time.perf_counter()
        act()
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began


def measure(work: Work, folder: Path, *, rounds: int = 50, repeats: int = 3) -> dict[str, Any]:
    """Runs of `rounds` rounds tracked in one SQLite database; the first run creates it and is not counted."""
    agencies = work.write(folder / "data")
    arguments = [*work.overrides(agencies, rounds), f"output={folder}", "--quiet"]
    runs = []
    for number in range(repeats + 1):
        found = folder / f"tracked-{number}.json"
        uri = f"tracking.uri=sqlite:///{folder}/mlflow.db"
        began = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "experiments.benchmarks.tracking",
            str(found),
            "run",
            *arguments,
            uri,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_thread())
        total = time.perf_counter() - began
        inside = json.loads(found.read_text())
        runs.append({"total": total, "inside": inside, "share": sum(inside.values()) / total})
    share = median(run["share"] for run in runs[1:])
    return {
        "rounds": rounds,
        "agencies": work.agencies,
        "first": runs[0],
        "runs": runs[1:],
        "targets": [{"target": "tracking at most 5% of the run", "value": share, "most": 0.05}],
    }


def main(found: Path, arguments: Sequence[str]) -> None:
    """`fedrisk` with `arguments`; writes how long it waited in its tracker to `found`."""
    from experiments import cli, run

    timed: list[Timed] = []

    def opened(*args: Any, **kwargs: Any) -> Timed:
        began = time.perf_counter()
        tracker = Timed(tracking.open_tracker(*args, **kwargs))
        tracker.seconds["open"] = time.perf_counter() - began
        timed.append(tracker)
        return tracker

    vars(run)["open_tracker"] = opened
    sys.argv = ["fedrisk", *arguments]
    try:
        cli.main()
    finally:
        found.write_text(json.dumps(timed[0].seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
