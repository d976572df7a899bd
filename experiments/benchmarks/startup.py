"""What a person waits for: `fedrisk run`, from the start of the process to its first finished round."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from experiments.engines import FLOWER_ENV

PATIENCE = 300.0  # seconds
LIBRARIES = "import torch, opacus, flwr.serverapp, flwr.clientapp, dp_accounting, pyarrow"


def measure(folder: Path, *, repeats: int = 5) -> dict[str, Any]:
    """Seconds from process start to the first round's checkpoint: `fedrisk run experiment=demo`, tracking on.

    `first`: nothing is there, neither the demo's tables nor MLflow's database. `again`: both are. `libraries`:
    a Python that only imports what a round needs, and does nothing.
    """
    first, again, libraries = [], [], []
    for repeat in range(repeats):
        output = folder / f"start-{repeat}"
        first.append(first_round(output))
        again.append(first_round(output))
        libraries.append(importing())
    times = {"first": first, "again": again, "libraries": libraries}
    target = {"target": "first round within 12 s", "value": median(first), "most": 12.0}
    return {"seconds": times, "median": {k: median(v) for k, v in times.items()}, "targets": [target]}


def first_round(output: Path) -> float:
    """Start a run, wait for its first checkpoint, stop it as Ctrl-C does."""
    known = set(output.glob("demo-*"))
    uri = f"sqlite:///{output}/mlflow.db"
    arguments = ["run", "experiment=demo", f"output={output}", f"tracking.uri={uri}", "--quiet"]
    began = time.perf_counter()
    run = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *arguments], stdout=subprocess.DEVNULL, env=one_thread()
    )
    try:
        while time.perf_counter() - began < PATIENCE and run.poll() is None:
            for home in set(output.glob("demo-*")) - known:
                if (home / "checkpoints" / "round-00001.safetensors").exists():
                    return time.perf_counter() - began
            time.sleep(0.01)
        raise RuntimeError(f"no round was finished in {output} within {PATIENCE:.0f} s")
    finally:
        run.send_signal(signal.SIGINT)
        run.wait()


def importing() -> float:
    """Seconds of a process that imports the libraries of a round."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True, env=one_thread())
    return time.perf_counter() - began


def one_thread() -> dict[str, str]:
    """The environment of a process that is timed."""
    return {**os.environ, **FLOWER_ENV, "OMP_NUM_THREADS": "1"}
