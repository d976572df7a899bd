"""What federation and privacy cost: pooled, federated, private at several ε, each agency alone, side by side.

Everything here is measured exactly, on the same held-out people of all agencies together. Only a simulation
can do that: a real federation sees noised tables.
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clients.records.data import Part, PartName
from experiments import baselines
from experiments.agencies import Agency
from experiments.baselines import People, Score
from experiments.config import Data, Study, compose, read
from federation.experiment import ROBUST, Experiment, SettingsError
from federation.protocol import Weights
from federation.server.rounds import RunError
from models import disclosure
from models.benefit import net_benefit
from models.fairness import worst_gap
from models.scores import default_edges, tally

SHOWN = ("auc", "brier", "worst_gap", "net_benefit")
NOTE = (
    "These rows are measured without noise, on the held-out people of all agencies together: only a simulation "
    "can do that. Pooled puts everybody's rows in one place, federated leaves them where they are; both, and "
    "each agency alone, are without privacy, so they have no ε. With shared noise ε is to the coordinator and the "
    "agencies that may collude with it. Worst gap: the largest equalised-odds gap "
    "between groups at the cutoff; groups that are too small are left out."
)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One way to learn, measured: auc, brier, worst_gap, net_benefit, accuracy, agency_accuracy; None where undefined.

    net_benefit and accuracy are of everybody at the cutoff; agency_accuracy the plain mean of the agencies' own accuracies.
    """

    name: str
    kind: str
    epsilon: float | None
    measures: Mapping[str, float | None]


# --- at the end of `fedrisk run` ----------------------------------------------------------------------


def reference(
    experiment: Experiment, data: Data, agencies: Sequence[Agency], result: Mapping[str, Any], screen: object
) -> dict[str, Any]:
    """`reference` of result.json: what the run's own people could have learned in other ways, one seed."""
    from federation.server import checkpoint

    folder = Path(experiment.settings.output) / str(result["run_id"])
    state = checkpoint.read_last(folder / "checkpoints")
    assert state is not None  # the run has just finished
    with open_bench(experiment, data, agencies, folder) as bench:
        entries = [bench.pooled(), bench.federated()]
        if experiment.settings.privacy.mechanism != "none":
            cost = math.ceil(1000 * result["privacy"]["epsilon_busiest"]) / 1000  # upwards
            entries.append(bench.entry("private federated", "private", cost, bench.model(state.weights)))
            entries += bench.other_mechanism()
        entries += bench.alone()
    return {"note": NOTE, "rows": summary([entries])}


# --- `fedrisk compare` --------------------------------------------------------------------------------


def compare_from(overrides: Sequence[str], *, quiet: bool) -> dict[str, Any]:
    """Compare over `compare.seeds` seeds; writes compare.json and report.html into a new folder.

    `SettingsError` where the settings are not a private experiment on the local engine, `RunError` when it is
    stopped.
    """
    from rich.console import Console

    from experiments.run import log_to_file, new_run_id
    from experiments.screen import reference_table
    from federation.panel.report import write_compare
    from federation.server.app import write_json

    study = read(compose([*overrides, "tracking=none"]))
    _check(study)
    settings = study.experiment.settings
    folder = Path(settings.output) / new_run_id(f"{settings.name}-compare")
    folder.mkdir(parents=True)
    log_to_file(folder)
    console = Console()
    try:
        with _progress(console, study, quiet=quiet) as tell:
            found = compare(study, folder, tell)
    except KeyboardInterrupt:
        raise RunError("stopped; a comparison is not kept half done: start it again") from None
    write_json(found, folder / "compare.json")
    write_compare(found, folder / "report.html")
    if not quiet:
        title = f"{settings.name}: mean ± sd over {len(found['seeds'])} seeds"
        console.print(reference_table(found["rows"], title))
        console.print(NOTE, highlight=False)
    console.print(
        f"result  {folder}/compare.json\nreport  {folder}/report.html", highlight=False, soft_wrap=True
    )
    return found


def compare(study: Study, folder: Path, tell: Tell = lambda _: None) -> dict[str, Any]:
    """The comparison as JSON-clean values; works in folders under `folder` that it removes."""
    settings = study.experiment.settings
    seeds = [settings.seed + i for i in range(study.compare.seeds)]
    found = [trial(study, seed, folder, tell) for seed in seeds]
    return {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_sha256": study.experiment.sha256,
        "experiment": settings.name,
        "seeds": seeds,
        "note": NOTE,
        "rows": summary(found),
    }


def trial(
    study: Study, seed: int, folder: Path, tell: Tell = lambda _: None, part: PartName = "test"
) -> list[Entry]:
    """Every way to learn, once, with `seed`: it deals people into parts and draws samples and noise.

    `part` is who judges: `test`, or `tune` while settings are still being chosen.
    """
    from clients.node import open_node

    experiment = study.experiment.but(settings=study.experiment.settings.but(seed=seed))
    with open_bench(experiment, study.data, study.agencies, folder, tell, part) as bench:
        epsilons = sorted(set(study.compare.epsilons))
        private = [bench.private(epsilon) for epsilon in epsilons]
        shared = [
            bench.shared(epsilon) for epsilon in epsilons if study.compare.shared and can_share(experiment)
        ]
        entries = [bench.pooled(), bench.federated(), *private, *shared, *bench.alone()]
        entries += bench.sklearn() if study.compare.sklearn else []
    open_node.cache_clear()  # this seed's nodes are closed and their folders gone
    return entries


def _check(study: Study) -> None:
    settings = study.experiment.settings
    if settings.engine.name != "local":
        raise SettingsError(f"compare runs on engine=local, got engine={settings.engine.name}")
    if not np.isfinite(settings.privacy.max_grad_norm):
        raise SettingsError("compare needs a finite privacy.max_grad_norm (privacy=local has one), got inf")


def _steps(study: Study) -> int:
    """How often `trial` tells of something done."""
    labelled = sum(study.experiment.data_contract.holds_label(agency.kind) for agency in study.agencies)
    sklearn = len(baselines.SKLEARN) * (1 + labelled) if study.compare.sklearn else 0
    shares = study.compare.shared and can_share(study.experiment)
    return 2 + (1 + shares) * len(set(study.compare.epsilons)) + labelled + sklearn


@contextmanager
def _progress(console: Any, study: Study, *, quiet: bool) -> Iterator[Tell]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("compare", total=study.compare.seeds * _steps(study))
        yield lambda name: bar.update(task, advance=1, description=name)


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder, prefix="inner-") as inner:
        yield Path(inner)


# --- the bench: one seed's people, and the ways to learn from them ------------------------------------


@dataclass(frozen=True)
class Bench:
    """One seed's agencies in folders of their own, whose ledgers no real budget is behind."""

    experiment: Experiment
    agencies: Sequence[Agency]
    nodes: Sequence[Path]
    people: People
    folder: Path
    tell: Tell
    part: PartName

    def pooled(self) -> Entry:
        """The model on everybody's train rows in one place, without privacy."""
        plain = without_privacy(self.experiment)
        sizes = [agency.public_size for agency in self.agencies if agency.name in self.people]
        weights = baselines.fit(plain, baselines.pool(self.people)["train"], sum(sizes))
        return self.entry("pooled", "pooled", None, self.model(weights))

    def alone(self) -> list[Entry]:
        """The model on each agency's own train rows, without privacy; judged on everybody's held-out people."""
        plain = without_privacy(self.experiment)
        sizes = {agency.name: agency.public_size for agency in self.agencies}
        return [
            self.entry(
                f"{name} alone", "alone", None, self.model(baselines.fit(plain, parts["train"], sizes[name]))
            )
            for name, parts in self.people.items()
        ]

    def federated(self) -> Entry:
        """The same plan without privacy."""
        weights = self.federate(without_privacy(self.experiment), "federated")
        return self.entry("federated", "federated", None, self.model(weights))

    def private(self, epsilon: float) -> Entry:
        """The same plan where no agency spends more than `epsilon`, each with its own noise."""
        weights = self.federate(at_epsilon(self.experiment, epsilon), "private")
        return self.entry(f"private, ε = {epsilon:g}", "private", epsilon, self.model(weights))

    def shared(self, epsilon: float) -> Entry:
        """The same plan behind masks, where no agency spends more than `epsilon` to the coordinator."""
        weights = self.federate(with_shared_noise(self.experiment, epsilon), "shared")
        return self.entry(f"shared noise, ε = {epsilon:g}", "shared", epsilon, self.model(weights))

    def other_mechanism(self) -> list[Entry]:
        """The same plan at the same ε with the other kind of noise, where it has a target and can be shared."""
        epsilon = self.experiment.settings.privacy.epsilon
        if epsilon is None or not can_share(self.experiment):
            return []
        if self.experiment.settings.privacy.mechanism == "shared":
            return [replace(self.private(epsilon), name="private, own noise")]
        return [replace(self.shared(epsilon), name="private, shared noise")]

    def sklearn(self) -> list[Entry]:
        """scikit-learn's baselines, pooled and for each agency."""
        sources = {"pooled": baselines.pool(self.people)["train"]}
        sources |= {f"{name} alone": parts["train"] for name, parts in self.people.items()}
        seed = self.experiment.settings.seed
        return [
            self.entry(f"{model}, {where}", "sklearn", None, train(part, seed))
            for where, part in sources.items()
            for model, train in baselines.SKLEARN.items()
        ]

    def model(self, weights: Weights) -> Score:
        """The experiment's model at `weights`."""
        return baselines.torch_score(self.experiment, weights)

    def entry(self, name: str, kind: str, epsilon: float | None, score: Score) -> Entry:
        """`score` measured on everybody's held-out people."""
        judges = {agency: parts[self.part] for agency, parts in self.people.items()}
        measures = measure(self.experiment, score, judges)
        self.tell(name)
        return Entry(name, kind, epsilon, measures)

    def federate(self, experiment: Experiment, name: str) -> Weights:
        """Run `experiment` on the nodes in this process; the last weights."""
        import torch

        from clients.app import make_app, node_from_config
        from experiments.engines import LocalGrid
        from federation.server import checkpoint
        from federation.server.result import RunFacts
        from federation.server.rounds import run_federation

        torch.set_num_threads(1)
        grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)} for folder in self.nodes])
        with _temporary(self.folder) as folder:
            run_federation(grid, experiment, RunFacts(name, "local", simulation=True), folder)
            state = checkpoint.read_last(folder / "checkpoints")
        assert state is not None  # the run has just finished
        return state.weights


@contextmanager
def open_bench(
    experiment: Experiment,
    data: Data,
    agencies: Sequence[Agency],
    folder: Path,
    tell: Tell = lambda _: None,
    part: PartName = "test",
) -> Iterator[Bench]:
    """A bench in a folder of its own under `folder`, removed at the end.

    `DataError` (experiments.agencies) where a table does not fit the contract.
    """
    from clients.node import open_node
    from experiments.engines import make_node_folders
    from experiments.run import check_tables

    seed, smallest = experiment.settings.seed, data.min_people
    with _temporary(folder) as inner:
        homes = inner / "nodes"
        nodes = make_node_folders(agencies, experiment.contract, homes, seed=seed, min_people=smallest)
        try:
            check_tables(nodes, experiment)
            people = baselines.read_people(experiment, agencies, homes, smallest)
            yield Bench(experiment, agencies, nodes, people, inner, tell, part)
        finally:
            for node in nodes:
                open_node(node).close()


def without_privacy(experiment: Experiment) -> Experiment:
    """The same plan with neither clipping nor noise, and no tables on the way."""
    settings = experiment.settings
    changes = {
        "mechanism": "none",
        "epsilon": None,
        "noise_multiplier": None,
        "evaluate_epsilon": None,
        "max_grad_norm": float("inf"),
    }
    return _changed(experiment, settings.privacy.but(**changes))


def at_epsilon(experiment: Experiment, epsilon: float) -> Experiment:
    """The same plan at `epsilon` for training and for the test table, and no tables on the way."""
    return _changed(experiment, _at(experiment, epsilon, mechanism="local"))


def with_shared_noise(experiment: Experiment, epsilon: float) -> Experiment:
    """`at_epsilon` with shared noise, and as many dropouts as so few agencies can afford."""
    colluders, settings = experiment.settings.privacy.colluders, experiment.settings
    dropouts = min(settings.privacy.dropouts, (len(experiment.members) - colluders - 1) // 2)
    privacy = _at(experiment, epsilon, mechanism="shared", dropouts=dropouts)
    if settings.strategy.name != "dp_fedsgd":
        changes = {"name": "dp_fedsgd", "optimizer": settings.strategy.name}
        settings = settings.but(strategy=settings.strategy.but(**changes))
    return _changed(experiment.but(settings=settings), privacy)


def can_share(experiment: Experiment) -> bool:
    """Whether the plan is one linear sum a round, of enough agencies that weigh every person alike."""
    settings, members = experiment.settings, experiment.members
    weights = {member.weight / member.public_size for member in members}
    enough = len(members) >= max(3, settings.privacy.colluders + 1)
    one_sum = (
        settings.fairness.method != "qffl"
        and settings.local.steps == 1
        and settings.strategy.name not in ("fedprox", *ROBUST)
    )
    return enough and one_sum and len(weights) == 1


def _at(experiment: Experiment, epsilon: float, **changes: Any) -> Any:
    target = {"epsilon": epsilon, "noise_multiplier": None, "evaluate_epsilon": None}
    return experiment.settings.privacy.but(**target, **changes)


def _changed(experiment: Experiment, privacy: Any) -> Experiment:
    settings = experiment.settings
    # nothing is published of this run but what `measure` finds
    evaluation = settings.evaluation.but(disclosure="none")
    if settings.fairness.method == "none":  # else the tune tables are what it learns from
        evaluation = evaluation.but(checkpoints=0)
    return experiment.but(settings=settings.but(privacy=privacy, evaluation=evaluation, reference=False))


# --- measuring ----------------------------------------------------------------------------------------


def measure(experiment: Experiment, score: Score, judges: Mapping[str, Part]) -> dict[str, float | None]:
    """What `Entry.measures` holds, exactly, for `score` on the people of `judges` (by agency) together."""
    contract, evaluation = experiment.data_contract, experiment.settings.evaluation
    latest = {name: baselines.latest(part) for name, part in judges.items() if len(part.x)}
    if not latest:
        raise SettingsError("there is nobody to judge by: split.tune or split.test leaves no people")
    scores = {name: score(x) for name, (x, _) in latest.items()}
    risk = np.concatenate(list(scores.values()))
    y = np.concatenate([y for _, y in latest.values()])
    group = np.concatenate([judges[name].group for name in latest])
    edges = default_edges(evaluation.bins, (evaluation.cutoff,))
    table = tally(edges, group, risk, y, len(contract.group_names))
    smallest = disclosure.custom(evaluation.rule.minimum)
    attribute, gap = worst_gap(table, contract.group_margins, evaluation.cutoff, disclosure=smallest)
    right = [np.mean((scores[name] >= evaluation.cutoff) == y) for name, (_, y) in latest.items()]
    return {
        "auc": exact_auc(risk, y),
        "brier": float(np.mean((risk - y) ** 2)),
        "worst_gap": None if attribute is None else gap.value,
        "net_benefit": net_benefit(table, evaluation.cutoff).value,
        "accuracy": float(np.mean((risk >= evaluation.cutoff) == y)),
        "agency_accuracy": float(np.mean(right)),
    }


def exact_auc(score: np.ndarray, y: np.ndarray) -> float | None:
    """P(a positive scores above a negative) + P(they tie) / 2, from ranks; None where one of them is absent."""
    positives = int(y.sum())
    if positives in (0, len(y)):
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    below = rank[y == 1].sum() - positives * (positives + 1) / 2
    return float(below / (positives * (len(y) - positives)))


def summary(trials: Sequence[Sequence[Entry]], shown: Sequence[str] = SHOWN) -> list[dict[str, Any]]:
    """Rows of the table: each entry's measures as mean and sd over the trials (sd None for a single one)."""
    return [
        {"name": first.name, "kind": first.kind, "epsilon": _largest(e.epsilon for e in same)}
        | {key: mean_sd([entry.measures[key] for entry in same]) for key in shown}
        for first, *rest in zip(*trials, strict=True)
        for same in [[first, *rest]]
    ]


def mean_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the values that are there."""
    there = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(there) if there else None,
        "sd": statistics.stdev(there) if len(there) > 1 else None,
    }


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
