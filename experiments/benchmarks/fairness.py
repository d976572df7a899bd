"""Fairness-aware training on COMPAS and Adult, 15 Dirichlet agencies, beside plain training.

    python -m experiments.benchmarks.fairness --seeds 5 --out outputs/bench/fairness.json

Each seed deals the people to agencies, and into parts, anew. Without privacy, with each agency's own noise and with shared
noise at ε = 3 (training, and tables): plain training, group multipliers, q-FFL, and cutoffs by group on the plain model,
which are analysis only, as is the attribute as an input. Measured without noise on the test people of all agencies; mean
± sd over the seeds. Prints the tables of docs/fairness.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from experiments import baselines
from experiments.benchmarks.utility import shown
from experiments.compare import Bench, exact_auc, mean_sd, open_bench
from experiments.config import Study, compose, read
from experiments.run import log_to_file
from federation.experiment import Experiment
from federation.server.card import score_tables
from federation.server.checkpoint import Checkpoint, read_last
from models.scores import ScoreTable, true_positive_rate

MEASURES = ("accuracy", "auc", "parity_gap", "tpr_gap", "fpr_gap", "worst_accuracy")
GROUPS: Mapping[str, Mapping[str, Any]] = {
    "compas": {"column": "race", "levels": {"Caucasian": ["Caucasian"]}},
    "adult": {"column": "sex", "levels": {"male": ["Male"]}},
}
"""The two groups of FAIR-FATE: one level, and everybody else."""
LINES: Mapping[str, tuple[str, ...]] = {
    "compas": ("experiment=compas", "data.options.sites=dirichlet", "local.learning_rate=1.0"),
    "adult": ("experiment=adult", "data.options.sites=dirichlet", "+data.options.by=sex"),
}
COMMON = ("rounds=36", "evaluation.checkpoints=6", "tracking=none")
PRIVACY: Mapping[str, tuple[str, ...]] = {
    "none": ("privacy=none",),
    "own noise, ε = 3": ("privacy=local", "privacy.epsilon=3"),
    "shared noise, ε = 3": ("privacy=shared", "privacy.epsilon=3", "strategy=dp_fedsgd"),
}
PLAIN, INPUT = "plain", "plain, the attribute an input"
METHODS: Mapping[str, tuple[str, ...]] = {
    PLAIN: (),
    INPUT: (),
    "group multipliers": ("fairness=group_multipliers",),
    "group multipliers, pushed": ("fairness=group_multipliers", "fairness.rate=4", "fairness.floor=0.9"),
    "group multipliers, the attribute an input": ("fairness=group_multipliers",),
    "q-FFL, q = 1": ("fairness=qffl",),
}
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "own noise, ε = 3": ("group multipliers, pushed", INPUT),
    "shared noise, ε = 3": ("group multipliers, pushed", "q-FFL, q = 1"),
}
CUTOFFS = "plain, cutoffs by group"


def study(line: str, privacy: str, method: str, seed: int, folder: Path, more: Sequence[str]) -> Study:
    """One run of one seed, which deals the agencies too."""
    shared = ("strategy.optimizer=fedavgm", "strategy.server_momentum=0.8") if "shared" in privacy else ()
    asked = [*LINES[line], *COMMON, *PRIVACY[privacy], *shared, *METHODS[method]]
    asked += [f"seed={seed}", f"+data.options.seed={seed}", f"output={folder}", *more]
    config = compose(asked)
    _two_groups(config, line, as_input=method.endswith("an input"))
    return read(config)


def _two_groups(config: DictConfig, line: str, *, as_input: bool) -> None:
    group, config.fairness.by = GROUPS[line], GROUPS[line]["column"]
    config.contract.groups = {group["column"]: dict(group)}
    if as_input:
        levels = [name for names in group["levels"].values() for name in names]
        OmegaConf.update(
            config,
            f"contract.columns.{group['column']}",
            {"type": "category", "levels": levels},
            force_add=True,
        )


def run(bench: Bench, experiment: Experiment) -> Checkpoint:
    """The last state of `experiment` on the bench's nodes."""
    from clients.app import make_app, node_from_config
    from experiments.engines import LocalGrid
    from federation.server.result import RunFacts
    from federation.server.rounds import run_federation

    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)} for folder in bench.nodes])
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        run_federation(grid, experiment, RunFacts("run", "local", simulation=True), Path(folder))
        state = read_last(Path(folder) / "checkpoints")
    assert state is not None  # the run has just finished
    return state


def trial(line: str, privacy: str, seed: int, folder: Path, more: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every method's measures, once."""
    from clients.node import open_node

    found: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        if method in LEFT_OUT.get(privacy, ()):
            continue
        made = study(line, privacy, method, seed, folder, more)
        with open_bench(made.experiment, made.data, made.agencies, folder) as bench:
            state = run(bench, made.experiment)
            found[method] = measures(bench, state, (0.5, 0.5)) | {"stopped": _stopped(state)}
            if method == PLAIN:
                cutoffs = by_group(made.experiment, state)
                found[CUTOFFS] = measures(bench, state, cutoffs) | {"cutoffs": cutoffs, "stopped": False}
        open_node.cache_clear()
        print(f"{line}, {privacy}, seed {seed}: {method} done", file=sys.stderr, flush=True)
    return found


def _stopped(state: Checkpoint) -> bool:
    return bool((state.history["fairness"] or {}).get("stopped"))


def by_group(experiment: Experiment, state: Checkpoint) -> tuple[float, float]:
    """For each group the edge at which its TPR in the newest (noised) tune tables is nearest to everyone's at 0.5.

    They are of the weights a few rounds before the last ones: those of the end come after the state is kept.
    """
    plan = experiment.plan("cutoffs", simulation=True)
    measured = max(int(name.split("/")[1]) for name in state.tables)
    table = reduce(add, score_tables(plan, "tune", measured, state.tables).values())
    of_all = true_positive_rate(table, 0.5).value or 0.0

    def nearest(group: ScoreTable) -> float:
        edges = [float(edge) for edge in table.edges[1:-1]]
        return min(edges, key=lambda edge: abs((true_positive_rate(group, edge).value or 0.0) - of_all))

    return nearest(table.pick([0])), nearest(table.pick([1]))


def measures(bench: Bench, state: Checkpoint, cutoffs: tuple[float, float]) -> dict[str, float | None]:
    """Of everybody's test people; a gap is the difference between the two groups, `worst_accuracy` the lower of theirs."""
    score = bench.model(state.weights)
    parts = [parts["test"] for parts in bench.people.values()]
    x, y = (np.concatenate(each) for each in zip(*map(baselines.latest, parts), strict=True))
    group = np.concatenate([part.group for part in parts])
    risk = score(x)
    flagged = risk >= np.asarray(cutoffs)[group]
    gap = {name: _gap(flagged[at], group[at]) for name, at in (("tpr", y == 1), ("fpr", y == 0))}
    right = flagged == y
    return {
        "accuracy": float(right.mean()),
        "auc": exact_auc(risk, y),
        "parity_gap": _gap(flagged, group),
        "tpr_gap": gap["tpr"],
        "fpr_gap": gap["fpr"],
        "worst_accuracy": float(min(right[group == g].mean() for g in (0, 1))),
        "flagged": float(flagged.mean()),
    }


def _gap(flagged: np.ndarray, group: np.ndarray) -> float:
    return float(abs(flagged[group == 0].mean() - flagged[group == 1].mean()))


def table(line: str, privacy: str, trials: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """One data set and kind of privacy as Markdown."""
    head = "accuracy | AUC | SP gap | TPR gap | FPR gap | worst group's accuracy | flagged | stopped by the floor"
    lines = [f"| {line}, {privacy} | {head} |", "|---" * 9 + "|"]
    for method in trials[0]:
        values = [shown(mean_sd([t[method][name] for t in trials])) for name in (*MEASURES, "flagged")]
        stops = sum(t[method]["stopped"] for t in trials)
        lines.append(f"| {method} | {' | '.join(values)} | {stops} of {len(trials)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.fairness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(LINES), help="data sets; default: all")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/fairness.json"))
    parser.add_argument("overrides", nargs="*", help="further settings, as fairness.rate=1")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="fedrisk-fairness-") as name:
        folder = Path(name)
        log_to_file(folder)
        for seed in range(options.seeds):
            for line in options.only or LINES:
                for privacy in PRIVACY:
                    trials = found.setdefault(line, {}).setdefault(privacy, [])
                    trials.append(trial(line, privacy, seed, folder, options.overrides))
                    options.out.write_text(json.dumps(found, indent=1))
    for line, kinds in found.items():
        for privacy, trials in kinds.items():
            print(table(line, privacy, trials), end="\n\n")


if __name__ == "__main__":
    main()
