"""make bench: what a round, a step, a start and tracking cost, side by side in one run on this machine.

    python -m experiments.benchmarks                       everything, about half an hour
    python -m experiments.benchmarks --only round,step     some lines
    python -m experiments.benchmarks --quick               few repeats, to see that all of it runs

Prints a table and writes OUT/bench.json. One torch thread. Whether a target is met is printed, never asserted.
"""

import argparse
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks import (
    cohort,
    coverage,
    demand,
    deployed,
    dp_step,
    large_map,
    ledger,
    masking,
    matching,
    rounds,
    scaling,
    startup,
    tracking,
)
from experiments.benchmarks.work import Work
from experiments.engines import FLOWER_ENV

MLP = "MLP 2x128, batch 512"


def measure_round(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A steady round beside a bare loop, pfl, and Flower with Opacus."""
    return rounds.measure(
        Work(),
        folder,
        rounds=4 if options.quick else 40,
        blocks=1 if options.quick else 3,
        flower=1 if options.quick else 6,
        pfl_python=options.pfl_python,
    )


def measure_step(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A step of DP-SGD beside plain SGD and Opacus' hooks."""
    warnings.simplefilter("ignore", UserWarning)  # Opacus about its own defaults
    turns = 2 if options.quick else 15
    cases = [
        {**asdict(case), "rows": [asdict(row) for row in dp_step.measure(case, turns)]}
        for case in dp_step.CASES
    ]
    ratios = {row["name"]: row["ratio"] for case in cases if case["name"] == MLP for row in case["rows"]}
    value = ratios["clients.train, simulated noise"]
    return {
        "cases": cases,
        "targets": [{"target": f"{MLP}: at most 2 plain steps", "value": value, "most": 2.0}],
    }


def measure_scaling(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """An agency's round among 10 and among 100."""
    return scaling.measure(
        Work(), folder, rounds=3 if options.quick else 20, blocks=1 if options.quick else 3
    )


def measure_start(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """From `fedrisk run` to the first finished round."""
    return startup.measure(folder, repeats=1 if options.quick else 5)


def measure_tracking(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What MLflow adds to a run of 50 rounds."""
    return tracking.measure(Work(), folder, repeats=1 if options.quick else 3)


def measure_masks(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A round with shared noise behind masks beside one with own noise."""
    return masking.measure(folder, sizes=masking.SIZES[:1] if options.quick else masking.SIZES)


def measure_ledger(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Composing, opening and charging a ledger of 10,000 releases."""
    return ledger.measure(folder, releases=1000 if options.quick else 10_000)


def measure_deployed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A deployed round over TLS, three agencies: stock Flower's empty work beside fedrisk's training."""
    return deployed.measure(folder, **deployed.options(quick=options.quick))


def measure_coverage(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """How often 95% intervals hold the truth, and how wide they are."""
    return coverage.measure(folder, draws=100 if options.quick else 2000)


def measure_matching(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What each rule of a match key misses and confuses, in made-up records with slips and moves."""
    if options.quick:
        return matching.measure(folder, people=50_000, sizes=(5_000,), seeds=1)
    return matching.measure(folder)


def measure_cohort(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """How many people two agencies share, at epsilon 1: the error, and how long a million people take."""
    return cohort.measure(folder, cohort.CASES[:1] if options.quick else cohort.CASES)


def measure_large_map(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A demand map of ten agencies of 200,000 rows: time and memory."""
    return large_map.measure(folder, rows=20_000) if options.quick else large_map.measure(folder)


def measure_demand(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A demand map's tables as one release beside separate ones, and how often its intervals hold the truth."""
    return demand.measure(folder, draws=5 if options.quick else 200)


LINES: Mapping[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "round": measure_round,
    "step": measure_step,
    "scaling": measure_scaling,
    "start": measure_start,
    "tracking": measure_tracking,
    "masks": measure_masks,
    "ledger": measure_ledger,
    "deployed": measure_deployed,
    "coverage": measure_coverage,
    "matching": measure_matching,
    "cohort": measure_cohort,
    "demand": measure_demand,
    "large-map": measure_large_map,
}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All results as text."""
    found: list[str] = []
    for name, result in results.items():
        found += ["", f"{name}: {(LINES[name].__doc__ or '').strip()}"]
        found += SHOWN[name](result)
        for target in result["targets"]:
            found.append(
                f"  {'met   ' if met(target) else 'MISSED'}  {target['target']}: {target['value']:.3g}"
            )
    return "\n".join(found)


def met(target: Mapping[str, Any]) -> bool:
    """Whether a target's value is within its bound."""
    return bool(target["value"] <= target["most"] if "most" in target else target["value"] >= target["least"])


def show_round(result: Mapping[str, Any]) -> list[str]:
    lines = [f"  {'':<62}{'median':>10}{'quartiles':>18}{'to bare':>10}"]
    for row in result["rows"]:
        quartiles = f"{row['low'] * 1e3:.0f}-{row['high'] * 1e3:.0f}"
        lines.append(
            f"  {row['name']:<62}{row['median'] * 1e3:>7.1f} ms{quartiles:>15} ms{row['ratio']:>8.2f} x"
        )
    return lines + [f"  {name:<62}{why}" for name, why in result["missing"].items()]


def show_step(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for case in result["cases"]:
        lines.append(f"  {case['name']}")
        for row in case["rows"]:
            lines.append(
                f"    {row['name']:<60}{row['seconds_per_step'] * 1e6:>7.0f} µs{row['ratio']:>26.2f} x"
            )
    return lines


def show_scaling(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  {row['agencies']} agencies of {row['people']}: {row['median'] * 1e3:.2f} ms per agency-round, "
        f"bare loop {row['bare'] * 1e3:.2f} ms"
        for row in result["rows"]
    ]
    return [*lines, f"  the bare loop grows by {result['bare_growth']:.2f} x"]


def show_start(result: Mapping[str, Any]) -> list[str]:
    median = result["median"]
    return [
        f"  first run {median['first']:.1f} s, again {median['again']:.1f} s; "
        f"importing the libraries alone {median['libraries']:.1f} s"
    ]


def show_tracking(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, run in {"first run": result["first"], "again": result["runs"][-1]}.items():
        inside = ", ".join(f"{what} {seconds * 1e3:.0f} ms" for what, seconds in run["inside"].items())
        lines.append(f"  {name}: {run['total']:.1f} s in all; waiting in the tracker: {inside}")
    return lines


def show_masks(result: Mapping[str, Any]) -> list[str]:
    return [
        f"  {row['agencies']} agencies of {row['people']}, q = {row['sample_rate']:g}, {row['parameters']} parameters: "
        f"{row['local']['median'] * 1e3:.0f} ms with own noise, {row['shared']['median'] * 1e3:.0f} ms behind masks "
        f"({row['ratio']:.2f} x, {row['per_agency'] * 1e3:.1f} ms more per agency); keys "
        f"{row['set_up_per_draw'] * 1e3:.1f} ms per agency and draw, once"
        for row in result["rows"]
    ]


def show_ledger(result: Mapping[str, Any]) -> list[str]:
    return [
        f"  {result['releases']} releases: composed in {result['composed']:.2f} s, ledger opened in "
        f"{result['opened']:.2f} s; one more charge {result['charge'] * 1e3:.2f} ms, "
        f"{result['charge_without_fsync'] * 1e3:.2f} ms without its fsync"
    ]


SHOWN: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "round": show_round,
    "step": show_step,
    "scaling": show_scaling,
    "start": show_start,
    "tracking": show_tracking,
    "masks": show_masks,
    "ledger": show_ledger,
    "deployed": deployed.shown,
    "coverage": coverage.shown,
    "matching": matching.shown,
    "cohort": cohort.shown,
    "demand": demand.shown,
    "large-map": large_map.shown,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of bench.json")
    parser.add_argument(
        "--only", default=",".join(LINES), help=f"lines, with commas between: {','.join(LINES)}"
    )
    parser.add_argument("--quick", action="store_true", help="few repeats: the numbers mean little")
    parser.add_argument(
        "--pfl-python",
        default=os.environ.get("FEDRISK_PFL_PYTHON"),
        help="a Python that has pfl and torch; default: $FEDRISK_PFL_PYTHON, else pfl is left out",
    )
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(LINES)):
        parser.error(f"--only knows {', '.join(LINES)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    os.environ.update(FLOWER_ENV | {"OMP_NUM_THREADS": "1"})
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in chosen:
        print(f"measuring: {name} ...", flush=True)
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            results[name] = LINES[name](options, Path(folder).resolve())
        (options.out / "bench.json").write_text(json.dumps({"machine": machine(), **results}, indent=1))
    print(table(results))


def machine() -> dict[str, Any]:
    """What the numbers depend on; nothing that names a machine."""
    packages = {name: version(name) for name in ("torch", "numpy", "flwr", "opacus", "mlflow")}
    return {
        "cores": os.cpu_count(),
        "gpu": False,
        "threads": 1,
        "python": platform.python_version(),
        **packages,
    }


if __name__ == "__main__":
    main()
