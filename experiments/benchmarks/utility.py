"""What a private federation can learn on public data, next to what it is measured against.

    python -m experiments.benchmarks.utility --seeds 5 --out outputs/bench/utility.json

For each line: scikit-learn and the experiment's own model on pooled rows, the same model federated, private at
several ε, and each agency alone; mean ± sd over the seeds, measured without noise on the held-out people of all
agencies. Prints the tables of RESULTS.md and whether each target is met; exit code 1 if one is not.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clients.records.data import PartName
from experiments.agencies import DataError
from experiments.compare import summary, trial
from experiments.config import compose, read
from experiments.run import log_to_file

MEASURES = ("auc", "brier", "worst_gap", "accuracy", "agency_accuracy")
EPSILONS = (1.0, 3.0)
FLAMBY = (
    "experiment=heart",
    "data.options.split=flamby",
    "split.tune=0",
    "split.test=0.34",
    "evaluation.checkpoints=0",
)
LINES: Mapping[str, tuple[str, ...]] = {
    "heart": FLAMBY,
    "compas": ("experiment=compas",),
    "compas-corrected": ("experiment=compas", "data.options.cohort=corrected"),
    "iowa": ("experiment=iowa",),
}
POOLED = "sklearn logistic, pooled"


@dataclass(frozen=True)
class Target:
    """`row`'s mean of `measure` on `line` is at least `least`, or at most `within` below that of `reference`."""

    line: str
    row: str
    measure: str
    least: float | None = None
    within: float | None = None
    reference: str = POOLED

    def judge(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """The target with what was found: value, bound, met."""
        value = rows[self.row][self.measure]["mean"]
        bound = (
            self.least if self.within is None else rows[self.reference][self.measure]["mean"] - self.within
        )
        return asdict(self) | {"value": value, "bound": bound, "met": bool(value >= bound)}


TARGETS = (
    Target("heart", "federated", "agency_accuracy", least=0.79),
    Target("compas", "federated", "auc", within=0.005),
    Target("compas", "private, ε = 3", "auc", within=0.02),
    Target("iowa", "federated", "auc", within=0.005),
    Target("iowa", "private, ε = 3", "auc", within=0.02),
)


def measure(
    line: str, seeds: Sequence[int], folder: Path, part: PartName = "test", overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of one line; `DataError` where its files are absent."""
    asked = [*LINES[line], "tracking=none", f"output={folder}", f"compare.epsilons={list(EPSILONS)}"]
    study = read(compose([*asked, *overrides]))
    found = []
    for seed in seeds:
        found.append(trial(study, seed, folder, part=part))
        print(f"{line}: seed {seed} done", file=sys.stderr)
    return summary(found, MEASURES)


def table(line: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One line's rows as Markdown, without scikit-learn at single agencies (the JSON has them)."""
    rows = [row for row in rows if row["kind"] != "sklearn" or row["name"].endswith(", pooled")]
    head = f"| {line} | ε | AUC | Brier | worst gap | accuracy | mean of agencies' accuracies |\n|---|---|---|---|---|---|---|"
    lines = [
        f"| {row['name']} | {'–' if row['epsilon'] is None else format(row['epsilon'], 'g')} | "
        + " | ".join(shown(row[key]) for key in MEASURES)
        + " |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def shown(value: Mapping[str, float | None], digits: int = 3) -> str:
    """mean ± sd, without an sd where there is one seed."""
    if value["mean"] is None:
        return "–"
    return f"{value['mean']:.{digits}f}" + ("" if value["sd"] is None else f" ± {value['sd']:.{digits}f}")


def verdict(target: Mapping[str, Any]) -> str:
    """One target in a sentence."""
    rule = f"{target['bound']:.4f}"
    if target["within"] is not None:
        rule += f" ({target['reference']} − {target['within']:g})"
    return (
        f"{'met' if target['met'] else 'MISSED'}: {target['line']}, {target['row']}, {target['measure']} "
        f"{target['value']:.4f}, asked at least {rule}"
    )


def main() -> None:
    """The command line."""
    arguments = _arguments()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    found: dict[str, list[dict[str, Any]]] = {}
    problems = {}
    with tempfile.TemporaryDirectory(prefix="fedrisk-utility-") as folder:
        log_to_file(Path(folder))
        for line in arguments.only or LINES:
            try:
                found[line] = measure(line, seeds, Path(folder), arguments.part, arguments.overrides)
            except DataError as error:
                problems[line] = str(error)
    by_name = {line: {row["name"]: row for row in rows} for line, rows in found.items()}
    judged = [
        target for target in TARGETS if arguments.part == "test" and POOLED in by_name.get(target.line, {})
    ]
    targets = [target.judge(by_name[target.line]) for target in judged]
    result = {
        "overrides": {line: [*LINES[line], *arguments.overrides] for line in found},
        "seeds": list(seeds),
        "part": arguments.part,
        "lines": found,
        "targets": targets,
        "left_out": problems,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1))
    for line, rows in found.items():
        print(table(line, rows), end="\n\n")
    print(
        "\n".join([verdict(target) for target in targets] + [f"left out: {why}" for why in problems.values()])
    )
    print(f"written to {arguments.out}")
    if problems or not all(target["met"] for target in targets):
        raise SystemExit(1)


def parser(description: str, lines: Iterable[str], out: str) -> argparse.ArgumentParser:
    """Which seeds, which of `lines`, who judges, and where the JSON goes."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--seeds", type=int, default=5, help="how many")
    found.add_argument("--first-seed", type=int, default=0)
    found.add_argument("--out", type=Path, default=Path(out))
    found.add_argument("--only", choices=list(lines), action="append", help="one line (may be repeated)")
    found.add_argument(
        "--part", choices=["tune", "test"], default="test", help="who judges; tune to choose settings"
    )
    return found


def _arguments() -> argparse.Namespace:
    found = parser("Utility on public data: see RESULTS.md", LINES, "outputs/bench/utility.json")
    found.add_argument("overrides", nargs="*", help="settings, for example rounds=20")
    return found.parse_args()


if __name__ == "__main__":
    main()
