"""Steady seconds of one deployed round: real processes over the loopback, TLS, authenticated nodes, three agencies.

    python -m experiments.benchmarks.deployed                     about ten minutes
    python -m experiments.benchmarks.deployed --quick             few rounds, to see that all of it runs

Stock Flower does empty work, with the two messages a round of its FedAvg and with one. fedrisk trains a logistic model
privately on the demo's tables behind its proxy: one message a round, and three behind masks. Block by block, each from
new processes; a median is over all rounds from a run's third on.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from experiments.agencies import Agency, read_agencies
from experiments.benchmarks import hosting
from experiments.benchmarks.work import spread
from experiments.coordinator.proxy import NO_NGINX, find_nginx
from experiments.datasets import prepare
from models.contract import Contract
from models.features import layout

TWO = "stock Flower, empty work, train and evaluate"
ONE = "stock Flower, empty work, one message"
OURS = "fedrisk, DP training, one message"
MASKED = "fedrisk behind masks, three messages"
AGENCIES, WARM_UP, ASKED = 3, 2, 1.5
COMMON = ("tracking=none", "evaluation.checkpoints=0", "join_timeout=120", f"min_agencies={AGENCIES}")
SHARED = ("strategy=dp_fedsgd", "privacy=shared", "privacy.colluders=1", "privacy.dropouts=0")
NODES_NEED = "without it fedrisk's coordinator hosts nobody but this machine, so its rounds are left out"


def measure(folder: Path, *, rounds: Mapping[str, int], blocks: int) -> dict[str, Any]:
    """Rows of name and seconds a round; `rounds` of each run by name. Without nginx only Flower's, and why."""
    contract, agencies = tables(folder / "data")
    columns = len(layout(Contract.from_dict(yaml.safe_load(contract.read_text()))).names)
    seconds: dict[str, list[float]] = {}
    set_up: list[float] = []
    for block in range(blocks):
        with hosting.stock(folder / f"stock-{block}", AGENCIES) as flower:
            for name, evaluate in {TWO: True, ONE: False}.items():
                found = flower.rounds(rounds[name], columns=columns, evaluate=evaluate)
                seconds.setdefault(name, []).extend(found[WARM_UP:])
        if find_nginx() is None:
            continue
        with hosting.hosted(folder / f"hosted-{block}", agencies, contract) as ours:
            run = ours.rounds(rounds[OURS], *COMMON)
            seconds.setdefault(OURS, []).extend(run.seconds[WARM_UP - 1 :])
            run = ours.rounds(rounds[MASKED], *COMMON, *SHARED)
            seconds.setdefault(MASKED, []).extend(run.seconds[WARM_UP - 1 :])
            set_up.append(run.set_up)
    return _found(seconds, set_up)


def _found(seconds: Mapping[str, list[float]], set_up: Sequence[float]) -> dict[str, Any]:
    rows = [{"name": name, **spread(values)} for name, values in seconds.items()]
    if OURS not in seconds:
        return {"rows": rows, "missing": {OURS: f"{NO_NGINX}; {NODES_NEED}"}, "targets": []}
    value = median(seconds[OURS])
    target = {"target": f"{OURS}: at most {ASKED} s", "value": value, "most": ASKED}
    return {"rows": rows, "set_up": median(set_up), "missing": {}, "targets": [target]}


def tables(folder: Path) -> tuple[Path, list[Agency]]:
    """The contract and the first agencies of `fedrisk run experiment=demo`, about 3,000 people each."""
    contract, agencies = read_agencies(prepare("synthetic", {"people": 1.0, "seed": 7}, folder))
    return contract, list(agencies[:AGENCIES])


def shown(result: Mapping[str, Any]) -> list[str]:
    """The lines of the table."""
    lines = [f"  {'':<50}{'median':>9}{'quartiles':>16}{'rounds':>8}"]
    for row in result["rows"]:
        quartiles = f"{row['low']:.2f}-{row['high']:.2f} s"
        lines.append(f"  {row['name']:<50}{row['median']:>7.2f} s{quartiles:>16}{row['count']:>8}")
    if "set_up" in result:
        lines.append(f"  mask keys, once a run: {result['set_up']:.2f} s, in none of these rounds")
    return lines + [f"  {name}: {why}" for name, why in result["missing"].items()]


def options(*, quick: bool) -> dict[str, Any]:
    """How much `measure` measures."""
    if quick:
        return {"rounds": {TWO: 3, ONE: 3, OURS: 4, MASKED: 4}, "blocks": 1}
    return {"rounds": {TWO: 7, ONE: 9, OURS: 30, MASKED: 20}, "blocks": 2}


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: the numbers mean little")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/deployed.json"))
    arguments = parser.parse_args(words)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedrisk-deployed-") as folder:
        result = measure(Path(folder), **options(quick=arguments.quick))
    busy = {"cores": os.cpu_count(), "load": os.getloadavg()[1]}
    arguments.out.write_text(json.dumps({"machine": busy, **result}, indent=1))
    print("\n".join(shown(result)))
    for target in result["targets"]:
        met = "met" if target["value"] <= target["most"] else "MISSED"
        print(f"  {met}  {target['target']}: {target['value']:.2f}")
    print(f"  {busy['cores']} cores, load {busy['load']:.1f}; written to {arguments.out}")


if __name__ == "__main__":
    main()
