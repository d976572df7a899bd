"""What each strategy survives when an agency poisons the training, and what that costs when none does.

    python -m experiments.benchmarks.poison --seeds 3 --out outputs/bench/poison.json

For each line of data, each strategy and each attack: a whole private run in this process in which one or two
agencies send what the attack says, every round; then the exact AUC on the test people of the honest
agencies, mean ± sd over the seeds. Prints the tables of docs/poisoned.md. Nothing here runs in a federation.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clients.node import open_node
from clients.records.data import PartName
from experiments import baselines
from experiments.agencies import DataError
from experiments.benchmarks.attacks import (
    ATTACKS,
    BENCHED,
    MASKED,
    PoisonedGrid,
    labels_flipped,
    sums_flipped,
)
from experiments.benchmarks.utility import parser, shown
from experiments.compare import Bench, can_share, mean_sd, measure, open_bench, with_shared_noise
from experiments.config import compose, read
from experiments.run import log_to_file
from federation.experiment import ROBUST, Experiment
from federation.plan import sentences
from federation.server import checkpoint
from federation.server.result import RunFacts
from federation.server.rounds import RunError, run_federation

# --- runs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One run: the AUC on honest people's records, and in how many rounds attackers were rejected or bounded.

    `auc` is None where the run ended before its last round; `why` then says it.
    """

    auc: float | None
    rejected: int = 0
    bounded: int = 0
    bounded_honest: int = 0
    why: str = ""


def poisoned_run(
    bench: Bench, experiment: Experiment, attack: str, attackers: Sequence[str], run_id: str
) -> Outcome:
    """Run `experiment` on the nodes of `bench` while `attackers` carry out `attack`."""
    bad = [node for node in bench.nodes if node.name in attackers]
    masked = experiment.settings.privacy.mechanism == "shared"
    grid = PoisonedGrid(bench.nodes, attackers, ATTACKS[attack])
    with (
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
        labels_flipped(bad if attack == "labels flipped" else (), experiment),
        sums_flipped(bad if masked and attack == "sign flip x 10" else ()),
    ):
        facts = RunFacts(run_id, "local", simulation=True)
        try:
            result = run_federation(grid, experiment, facts, Path(folder))
        except RunError as error:
            return Outcome(None, why=str(error))
        state = checkpoint.read_last(Path(folder) / "checkpoints")
    assert state is not None  # the run has just finished
    judges = {name: parts[bench.part] for name, parts in bench.people.items() if name not in attackers}
    score = baselines.torch_score(experiment, state.weights)
    agencies = result["agencies"]
    return Outcome(
        measure(experiment, score, judges)["auc"],
        sum(agencies[name]["rejected"] for name in attackers),
        sum(agencies[name]["bounded"] for name in attackers),
        sum(facts["bounded"] for name, facts in agencies.items() if name not in attackers),
    )


@dataclass(frozen=True)
class Line:
    """A data set with its settings, and the agencies that attack."""

    overrides: tuple[str, ...]
    attackers: tuple[str, ...]


PLAIN = {"averaged, no bound": "none", "averaged, bound from the plan": "plan"}
DEMO, IOWA = (("experiment=" + name, "privacy.epsilon=3") for name in ("demo", "iowa"))
LINES: Mapping[str, Line] = {
    "demo": Line(DEMO, ("children",)),
    "demo, one of two that hold a block": Line(DEMO, ("probation",)),
    "iowa": Line(IOWA, ("1jd",)),
    "iowa, two attack": Line(IOWA, ("1jd", "2jd")),
    "demo without privacy": Line(("experiment=demo", "privacy=none"), ("children",)),
}
BEHIND_MASKS = "averaged, behind masks"


def strategies_of(experiment: Experiment, malicious: int) -> dict[str, Experiment | str]:
    """The rows of a line: the experiment under each strategy, or the sentence that refuses it.

    All of them move the weights as the experiment's own strategy does, momentum included.
    """
    settings = experiment.settings
    own = settings.strategy
    optimizer = own.optimizer if own.name == "dp_fedsgd" else own.name
    robust = {n: {"name": n, "optimizer": optimizer, "malicious": malicious} for n in ROBUST}
    changes: dict[str, dict[str, Any]] = {row: {"norm_bound": bound} for row, bound in PLAIN.items()}
    changes |= robust
    kinds = {member.kind for member in experiment.members}
    contract = experiment.data_contract
    if any(not contract.holds(kind, block.name) for kind in kinds for block in contract.blocks):
        combine = {"thin_blocks": "combine"}
        changes |= {f"{name}, thin blocks too": change | combine for name, change in robust.items()}
    found: dict[str, Experiment | str] = {}
    for row, change in changes.items():
        try:
            found[row] = experiment.but(settings=settings.but(strategy=own.but(**change)))
        except ValidationError as error:
            found[row] = "; ".join(sentences(error))
    if settings.privacy.epsilon is not None and can_share(experiment):
        found[BEHIND_MASKS] = with_shared_noise(experiment, settings.privacy.epsilon)
    return found


def measure_line(
    line: Line, seeds: Sequence[int], folder: Path, attacks: Sequence[str], part: PartName = "test"
) -> dict[str, Any]:
    """Every strategy under every attack on one line: row -> attack -> what the seeds gave."""
    study = read(compose([*line.overrides, "tracking=none", f"output={folder}", "evaluation.checkpoints=0"]))
    found: dict[str, dict[str, list[Outcome]]] = {}
    refused: dict[str, str] = {}
    for seed in seeds:
        experiment = study.experiment.but(settings=study.experiment.settings.but(seed=seed, reference=False))
        with open_bench(experiment, study.data, study.agencies, folder, part=part) as bench:
            for row, chosen in strategies_of(experiment, len(line.attackers)).items():
                if isinstance(chosen, str):
                    refused[row] = chosen
                    continue
                for attack in (a for a in attacks if row != BEHIND_MASKS or a in MASKED):
                    run_id = f"{seed}-{list(found).index(row) if row in found else len(found)}-{attacks.index(attack)}"
                    outcome = poisoned_run(bench, chosen, attack, line.attackers, run_id)
                    found.setdefault(row, {}).setdefault(attack, []).append(outcome)
        open_node.cache_clear()  # this seed's nodes are closed and their folders gone
        print(f"{', '.join(line.overrides)}: seed {seed} done", file=sys.stderr)
    return {
        "agencies": len(study.experiment.members),
        "rows": {row: {attack: _summary(each) for attack, each in by.items()} for row, by in found.items()},
        "refused": refused,
    }


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Over the seeds: AUC as mean and sd, rounds in which attackers were rejected or bounded, and runs that ended early."""
    ended = sorted({outcome.why for outcome in outcomes if outcome.auc is None})
    counts = {k: [getattr(o, k) for o in outcomes] for k in ("rejected", "bounded", "bounded_honest")}
    return {"auc": mean_sd([o.auc for o in outcomes]), **counts, "ended_early": ended}


# --- the tables -----------------------------------------------------------------------------------------


def table(name: str, line: Mapping[str, Any]) -> str:
    """One line as Markdown: a row for each strategy, a column for each attack."""
    attacks = list(next(iter(line["rows"].values())))
    head = f"| {name} | " + " | ".join("no attack" if a == "none" else a for a in attacks) + " |"
    rows = [
        f"| {row} | " + " | ".join(cell(by.get(attack)) for attack in attacks) + " |"
        for row, by in line["rows"].items()
    ]
    rows += [f"| {row} | refused" + " |" * len(attacks) for row in line["refused"]]
    return "\n".join([head, "|---" * (len(attacks) + 1) + "|", *rows])


def cell(found: Mapping[str, Any] | None) -> str:
    """AUC as mean ± sd; or that a run did not get to its end."""
    if found is None:
        return "–"
    return "the run ended" if found["auc"]["mean"] is None else shown(found["auc"])


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parser("Poisoned agencies: see docs/poisoned.md", LINES, "outputs/bench/poison.json")
    options.set_defaults(seeds=3)
    arguments = options.parse_args(words)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    found, left_out = {}, {}
    with tempfile.TemporaryDirectory(prefix="fedrisk-poison-") as folder:
        log_to_file(Path(folder))
        for name in arguments.only or LINES:
            try:
                found[name] = measure_line(LINES[name], seeds, Path(folder), BENCHED, arguments.part)
            except DataError as error:
                left_out[name] = str(error)
    lines = {name: asdict(LINES[name]) | line for name, line in found.items()}
    result = {"seeds": list(seeds), "part": arguments.part, "lines": lines, "left_out": left_out}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1))
    for name, line in found.items():
        print(table(name, line), end="\n\n")
    print("\n".join(f"left out: {why}" for why in left_out.values()) + f"written to {arguments.out}")
    if left_out:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
