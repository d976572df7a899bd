"""A demand map's release beside separate ones, and how often its intervals hold the truth after fitting.

`release`: all one- and two-way tables of ten flags (`conf/map/bench.yaml`), and the two-way tables of five columns of
four levels: root-mean-square error of the one release over that of a Gaussian release for each table at the same noise
multiplier in all, with real draws of discrete noise.

`intervals`: two agencies, of which one lacks a column, count people and rows in cells of 0, 3, 12 and more people.
Coverage is of every interval, shown or not, and of those that are shown; `width` is the mean width of the intervals as
published, `before` that of the same counts before they were fitted: twice 1.96 standard deviations.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clients.randomness import Stream, discrete_gaussian
from experiments.config import CONF
from models.contract import Contract
from models.design import Counted, Design, Reading, answer, design, merged
from models.disclosure import Disclosure, profile
from models.marginals import count
from models.scores import quantile
from models.workload import Workload, read

PEOPLE, SIGMA, SEEDS = 20_000, 20.0, 5
NONE, UK = profile("none"), profile("uk-default")
CASES = ((0.5, NONE), (0.5, UK), (2.0, NONE), (2.0, UK), (6.0, NONE), (6.0, UK))
SIZES = (0, 3, 12)  # people in a cell, told apart


def contract(columns: Mapping[str, Any], **more: Any) -> Contract:
    """A contract of these columns."""
    return Contract.from_dict(
        {
            "name": "bench",
            "purpose": "benchmark",
            "unit": {"kind": "person", "column": "id", "rows": 2, "order_by": "seen"},
            "columns": columns,
            "label": {"column": "label", "positive": ["1"], "horizon": "a year"},
            **more,
        }
    )


# --- one release beside separate ones -----------------------------------------------------------------


def flags() -> Workload:
    """The workload of conf/map/bench.yaml."""
    text = (CONF / "map" / "bench.yaml").read_text()
    columns = {f"a{i}": {"type": "flag"} for i in range(10)}
    return read(yaml.safe_load(text)["workload"], contract(columns))


def five() -> Workload:
    """All two-way tables of five columns of four levels."""
    columns = {f"b{i}": {"type": "ordinal", "levels": ["0", "1", "2"]} for i in range(5)}  # and "other"
    queries = [{"crosstab": list(pair)} for pair in itertools.combinations(columns, 2)]
    return read({"name": "five-columns", "queries": queries}, contract(columns))


def errors(workload: Workload, seed: int) -> tuple[float, float]:
    """Mean squared error of the tables from one release and from separate ones, people squared."""
    found, rng = design(workload), np.random.default_rng(seed)
    codes = {name: rng.integers(0, size, PEOPLE) for name, size in workload.sizes.items()}
    variance = math.ceil((SIGMA * found.sensitivity) ** 2)
    noise = discrete_gaussian(Stream.seeded(f"bench {seed}"), found.numbers, variance)
    released = found.measure(Counted(codes, PEOPLE, {}, 0)) + noise
    tables = found.read(released, variance).tables["person"]
    asked = workload.tables("person")
    apart = SIGMA * math.sqrt(len(asked))  # the noise of each table where all together cost as much
    ours, theirs = [], []
    for of in asked:
        exact = count(codes, of, workload.sizes, PEOPLE)
        ours.append(float(((tables.table(of) - exact) ** 2).mean()))
        drawn = discrete_gaussian(Stream.seeded(f"apart {of} {seed}"), exact.size, math.ceil(apart**2))
        theirs.append(float((drawn.astype(np.float64) ** 2).mean()))
    return float(np.mean(ours)), float(np.mean(theirs))


def releases(seeds: int = SEEDS) -> Iterator[dict[str, Any]]:
    """Each workload: the measured ratio of root-mean-square errors, the planned one, and its bound."""
    for workload in (flags(), five()):
        ours, theirs = np.mean([errors(workload, seed) for seed in range(seeds)], axis=0)
        planned = design(workload)
        yield {
            "workload": workload.name,
            "tables": len(workload.tables("person")),
            "ratio": math.sqrt(ours / theirs),
            "planned": planned.ratio,
            "bound": planned.ratio_bound,
        }


# --- intervals ----------------------------------------------------------------------------------------

COLUMNS = {
    "need": {"type": "category", "levels": ["housing", "health", "debt", "work"]},
    "area": {"type": "ordinal", "levels": ["north", "south", "east", "west", "centre"]},
    "offender": {"type": "flag"},
    "visits": {"type": "ordinal", "levels": ["few", "many"], "block": "care"},
}
QUERIES: list[dict[str, Any]] = [
    {"count": {"need": ["housing", "debt"]}, "by": ["area"], "name": "count"},
    {
        "rate": {"of": {"offender": True}, "among": {"need": ["housing", "health"]}},
        "by": ["area"],
        "name": "rate",
    },
    {"histogram": "area", "where": {"offender": True}, "name": "histogram"},
    {"crosstab": ["need", "area"], "name": "cross-tab"},
    {"crosstab": ["need", "visits"], "name": "cross-tab of one agency"},
    {"series": {"by": "month", "of": {"need": "debt"}}, "name": "series of rows"},
    {"crosstab": ["need", "month"], "each": "row", "name": "cross-tab of rows"},
    {"rate": {"of": {"need": "health"}}, "by": ["month"], "each": "row", "name": "rate of rows"},
]
IN_CELLS = (0, 3, 12, 0, 40, 150, 1, 12, 3, 400)  # people of both agencies in a cell of need x area


@dataclass(frozen=True)
class Row:
    """Intervals of one kind of query in cells of `people` people ("more": others), noise of `sigma` sensitivities.

    covered: of all intervals.  shown: share of them that are published.  covered_shown: of these.
    """

    query: str
    people: str
    sigma: float
    profile: str
    cells: int
    covered: float
    shown: float
    covered_shown: float | None
    before: float
    width: float


def agencies() -> list[tuple[Design, Counted]]:
    """Police, who lack `visits`, and a health service: the people of each cell are at one or the other."""
    blocks, kinds = {"care": {"held_by": ["health"]}}, ["police", "health"]
    rules = contract(COLUMNS, blocks=blocks, kinds=kinds)
    month = {"month": {"column": "seen", "first": "2024-01", "months": 6}}
    workload = read({"name": "coverage", "attributes": month, "queries": QUERIES}, rules)
    sizes, rng = workload.sizes, np.random.default_rng(0)
    cells = np.resize(IN_CELLS, sizes["need"] * sizes["area"])
    at = np.repeat(np.arange(len(cells)), cells)
    codes = {name: np.minimum(rng.geometric(0.5, len(at)) - 1, size - 1) for name, size in sizes.items()}
    codes["need"], codes["area"] = np.unravel_index(at, (sizes["need"], sizes["area"]))
    police = rng.random(len(at)) < 0.4
    found = []
    for kind, here in (("police", police), ("health", ~police)):
        asked = design(workload.held_by(rules, kind), rules.unit.rows)
        own = {name: codes[name][here].astype(np.int64) for name in asked.workload.sizes}
        rows = {name: np.repeat(levels, 1 + np.arange(len(levels)) % 2) for name, levels in own.items()}
        found.append((asked, Counted(own, int(here.sum()), rows, len(rows["need"]))))
    return found


def intervals(sigma: float, rule: Disclosure, draws: int, seed: int = 0) -> Iterator[Row]:
    """Each kind of query over `draws` maps."""
    rng, both = np.random.default_rng((seed, int(10 * sigma), rule.rounding)), agencies()
    exact = [asked.measure(counted) for asked, counted in both]
    truth = _answers([asked.read(each, 0.0) for (asked, _), each in zip(both, exact, strict=True)], NONE)
    drawn = []
    for _ in range(draws):
        readings = []
        for (asked, _counted), each in zip(both, exact, strict=True):
            noise = np.rint(rng.normal(0, sigma * asked.sensitivity, asked.numbers)).astype(np.int64)
            readings.append(asked.read(each + noise, (sigma * asked.sensitivity) ** 2))
        drawn.append(_answers(readings, rule))
    for query, true in truth.items():
        classes: dict[str, list[Sequence[float]]] = {}
        for place, cell in enumerate(true):
            value = cell.estimate.value
            if value is None:
                continue
            size = round(value)
            name = "shares" if "rate" in query else str(size) if size in SIZES else "more"
            for one in drawn:
                here = one[query][place]
                low, high = here.estimate.low, here.estimate.high
                if low is None or high is None or here.sd is None:
                    continue
                inside = low - 1e-6 <= value <= high + 1e-6
                before = 2 * quantile(0.95) * here.sd
                classes.setdefault(name, []).append(
                    (place, inside, here.estimate.publishable, before, high - low)
                )
        for name, rows in classes.items():
            table = np.array(rows, np.float64)
            shown = table[table[:, 2] == 1]
            yield Row(
                query,
                name,
                sigma,
                rule.profile,
                len(np.unique(table[:, 0])),
                float(table[:, 1].mean()),
                len(shown) / len(table),
                float(shown[:, 1].mean()) if len(shown) else None,
                float(table[:, 3].mean()),
                float(table[:, 4].mean()),
            )


def _answers(readings: Sequence[Reading], rule: Disclosure) -> dict[str, Any]:
    together = merged(readings)
    queries = {query.name: query for each in readings for query in each.design.workload.queries}
    return {name: answer(query, together, disclosure=rule) for name, query in queries.items()}


def measure(folder: Path, *, draws: int = 200, seeds: int = SEEDS) -> dict[str, Any]:
    """Both, with their targets."""
    found = list(releases(seeds))
    rows = [row for case in CASES for row in intervals(*case, draws)]
    worst = min(rows, key=lambda row: row.covered)
    seen = sum(row.shown * row.cells for row in rows)
    right = sum(row.shown * row.cells * (row.covered_shown or 0.0) for row in rows)
    return {
        "draws": draws,
        "releases": found,
        "rows": [asdict(row) for row in rows],
        "targets": [
            {
                "target": f"error of {found[0]['tables']} tables of ten flags over that of separate releases",
                "value": found[0]["ratio"],
                "most": 0.6,
            },
            {
                "target": f"95% intervals of a map cover at least 0.93 ({worst.query}, {worst.people} people, sigma = "
                f"{worst.sigma:g}, {worst.profile})",
                "value": worst.covered,
                "least": 0.93,
            },
            {"target": "and at least 0.93 of those that are shown", "value": right / seen, "least": 0.93},
        ],
    }


def shown(result: Mapping[str, Any]) -> list[str]:
    """The ratios; and of each kind of query and size of cell the lowest coverage, and widths before and after fitting."""
    lines = [
        f"  {row['workload']}: {row['tables']} tables, {row['ratio']:.3f} of the error of separate releases "
        f"(planned {row['planned']:.3f}, bound {row['bound']:.3f})"
        for row in result["releases"]
    ]
    lines.append(
        f"  {'':<34}{'covered, lowest':>16}{'mean':>8}{'of those shown':>16}{'width before':>14}{'after':>8}"
    )
    for kind in dict.fromkeys((row["query"], row["people"]) for row in result["rows"]):
        own = [row for row in result["rows"] if (row["query"], row["people"]) == kind]
        covered = [row["covered"] for row in own]
        published = sum(row["shown"] * row["cells"] for row in own)
        right = sum((row["covered_shown"] or 0) * row["shown"] * row["cells"] for row in own)
        widths = [float(np.mean([row[name] for row in own])) for name in ("before", "width")]
        lines.append(
            f"  {f'{kind[0]}: {kind[1]}':<34}{min(covered):>16.3f}{np.mean(covered):>8.3f}"
            f"{right / published if published else math.nan:>16.3f}{widths[0]:>14.2f}{widths[1]:>8.2f}"
        )
    return lines
