"""`fedrisk signs`: which counts of finished maps go ahead of which. Nobody is asked and nothing further is spent.

It reads two files of each map's folder: map.json for what the map was, and series.json, the noised counts by month as they
came, which are released and not withheld as the map's are. series.json is a working file of the coordinator's and not for
publication; what is written here has no count in it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from federation import installed
from federation.durable import write_whole
from federation.experiment import SettingsError
from models.scores import LEVEL
from models.signs import MARGIN, MAX_LAG, Series, Sign, Signs, SignsError, find_signs, months_needed

MAP, SERIES, SIGNS = "map.json", "series.json", "signs.json"
PAGES = "federation.panel.demand.pages"
SHOWN = 12  # pairs on the screen, the clearest first


@final
@dataclass(frozen=True)
class Map:
    """A finished map: what it was, and its series."""

    folder: Path
    run_id: str
    epsilon: float | None
    series: tuple[Series, ...]


def signs_from(
    paths: Sequence[Path], *, max_lag: int = MAX_LAG, output: Path | None = None, as_json: bool = False
) -> dict[str, Any]:
    """Read the maps in `paths`, write signs.json and its page, show them. `SettingsError`.

    paths: folders of maps, or their map.json.  output: where to; None: the folder of the first map
    """
    maps = [read_map(path) for path in paths]
    if len({one.run_id for one in maps}) < len(maps):
        raise SettingsError("a map is named twice: name each once")
    series, left_out = long_enough(in_common(maps), max_lag)
    try:
        signs = find_signs(series, max_lag=max_lag)
    except SignsError as error:
        raise SettingsError(str(error)) from None
    found = written(maps, series, signs, max_lag) | {"left_out": left_out}
    folder = output or maps[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    found["files"] = _page(found, folder)
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(folder / SIGNS, f"{text}\n".encode(), mode=0o644)
    if as_json:
        print(text)
    else:
        show(found, folder, labels(series))
    return found


# --- what is read ---------------------------------------------------------------------------------------


def read_map(path: Path) -> Map:
    """The map in a folder, or whose map.json `path` is; `SettingsError` where there is none."""
    folder = path if path.is_dir() else path.parent
    found = _json(folder / MAP)
    run_id, privacy = found.get("run_id"), found.get("privacy")
    whole = isinstance(run_id, str) and isinstance(privacy, dict)
    if found.get("kind") != "map" or found.get("schema") != 1 or not whole:
        raise SettingsError(f"{folder / MAP} is not a demand map of schema 1, as `fedrisk map` writes it")
    assert isinstance(privacy, dict)
    return Map(folder, str(run_id), privacy.get("epsilon"), tuple(series_of(folder)))


def series_of(folder: Path) -> list[Series]:
    """The series in a map's folder (schema 1 of series.json: docs/signs.md); `SettingsError` where there are none."""
    path = folder / SERIES
    listed = _json(path).get("series")
    if not isinstance(listed, list):
        raise SettingsError(f"{path} has no list of series")
    found = []
    for number, each in enumerate(listed, 1):
        try:
            found.append(_series(each))
        except (AttributeError, KeyError, TypeError):
            raise SettingsError(f"{path}: series {number} is not as `fedrisk map` writes it") from None
        except ValueError as error:
            raise SettingsError(f"{path}: series {number} cannot be read: {error}") from None
    if len({each.name for each in found}) < len(found):
        raise SettingsError(f"{path} has two series of one name")
    return found


def _series(each: Mapping[str, Any]) -> Series:
    counts = [[math.nan if count is None else float(count) for count in row] for row in each["counts"]]
    sd = [[math.nan if one is None else float(one) for one in row] for row in each["sd"]]
    name, agency, query = (str(each[key]) for key in ("name", "agency", "query"))
    if odd := [month for month in each["months"] if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month)]:
        raise ValueError(f"months must be as 2024-01, got {odd[0]!r}")
    return Series(name, agency, query, each["areas"], each["months"], counts, sd)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SettingsError(
            f"{path} cannot be read: name the folder of a finished map (fedrisk map), which has {MAP} and {SERIES}"
        ) from None
    except ValueError:
        raise SettingsError(f"{path} is not JSON") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{path} is not a JSON object")
    return found


def in_common(maps: Sequence[Map]) -> list[Series]:
    """All series with names of their own, in the months that all of them have; `SettingsError` where that is none."""
    series = [each for one in maps for each in one.series]
    if not series:
        raise SettingsError(
            f"{maps[0].folder / SERIES} has no series: signs need a map with a query by month, or by area and month"
        )
    months = sorted(set[str].intersection(*({*each.months} for each in series)))
    if not months:
        spans = sorted({f"{min(each.months)} to {max(each.months)}" for each in series})
        raise SettingsError(
            f"the series have no month in common: {', '.join(spans)}; draw the maps over the same months"
        )
    places = [int(month[:4]) * 12 + int(month[5:7]) for month in months]
    if places != list(range(places[0], places[0] + len(places))):
        raise SettingsError("the months that all series have are not in a row: signs need every month")
    counted = Counter(each.name for each in series)
    return [
        each.within(each.areas, months).called(
            each.name if counted[each.name] == 1 else f"{each.name} ({one.run_id})"
        )
        for one in maps
        for each in one.series
    ]


def long_enough(series: Sequence[Series], max_lag: int) -> tuple[list[Series], list[dict[str, str]]]:
    """The series that have months enough for their areas, and why the others are left out; all of them where none has."""
    need = {each.name: months_needed(len(each.areas), max_lag) for each in series}
    kept = [each for each in series if len(each.months) >= need[each.name]]
    if not kept:
        return list(series), []
    return kept, [
        {
            "name": each.name,
            "why": f"has {len(each.months)} months in {areas(len(each.areas))} and needs {need[each.name]}",
        }
        for each in series
        if len(each.months) < need[each.name]
    ]


def areas(count: int) -> str:
    """1 area, 2 areas."""
    return f"{count} area{'s' * (count > 1)}"


# --- what is written ------------------------------------------------------------------------------------


def written(maps: Sequence[Map], series: Sequence[Series], signs: Signs, max_lag: int) -> dict[str, Any]:
    """signs.json, schema 1 (docs/signs.md), without its files."""
    agencies = sorted({each.agency for each in series})
    epsilons = [one.epsilon for one in maps]
    return {
        "schema": 1,
        "kind": "signs",
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "fedrisk_version": installed.version(),
        "maps": [one.run_id for one in maps],
        "privacy": {
            "epsilon": epsilons[0] if len(epsilons) == 1 else epsilons,
            "costs": "nothing further",
        },
        "areas": len({area for each in series for area in each.areas}),
        "months": len(series[0].months),
        "between": [series[0].months[0], series[0].months[-1]],
        "agencies": agencies,
        "max_lag": max_lag,
        "level": LEVEL,
        "margin": MARGIN,
        "series": [
            {
                "name": each.name,
                "agency": each.agency,
                "query": each.query,
                "noise_share": signs.noise_share[each.name],
            }
            for each in series
        ],
        "signs": [_sign(sign) for sign in signs.signs],
        "conclusion": conclusion(signs.signs, labels(series)),
        "files": {},
    }


def _sign(sign: Sign) -> dict[str, Any]:
    best = sign.best
    numbers = {end: None if best is None else getattr(best, end) for end in ("value", "low", "high")}
    return {
        "leads": sign.leads,
        "follows": sign.follows,
        "lag": None if best is None else best.lag,
        "partial_correlation": numbers,
        "verdict": sign.verdict,
        "why": sign.why,
        "lags": [asdict(lag) for lag in sign.lags],
    }


def labels(series: Sequence[Series]) -> dict[str, str]:
    """What a person calls each series: its agency, where each has one and all are of one query; else its name."""
    plain = len({each.query for each in series}) == 1 and len({each.agency for each in series}) == len(series)
    return {each.name: each.agency if plain else each.name for each in series}


def conclusion(signs: Sequence[Sign], called: Mapping[str, str]) -> str:
    """What was found, in a few sentences, the clearest pair first."""
    verdicts = Counter(sign.verdict for sign in signs)
    leading = sorted(
        ((sign, sign.best) for sign in signs if sign.verdict == "leads" and sign.best is not None),
        key=lambda each: -abs(each[1].value),
    )
    if not leading:
        told = "No count is seen to go ahead of another."
    else:
        told = " ".join(
            f"{called[sign.leads]} goes ahead of {called[sign.follows]} by {best.lag} month{'s' * (best.lag > 1)}: more of the one, "
            f"{'more' if best.value > 0 else 'fewer'} of the other (partial correlation {best.value:.2f}, "
            f"{best.low:.2f} to {best.high:.2f})."
            for sign, best in leading[:3]
        )
        told += f" So do {len(leading) - 3} pairs more." if len(leading) > 3 else ""
    rest = f"Of {len(signs)} pairs {verdicts['no sign']} show no sign and {verdicts['cannot be told']} cannot be told."
    return f"{told} {rest} A sign is no cause, and says nothing about a person."


def _page(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write the page, where this release has one."""
    try:
        pages = import_module(PAGES)
    except ModuleNotFoundError as error:
        if error.name is not None and PAGES.startswith(error.name):
            return {}
        raise
    files: dict[str, str] = pages.write_signs(found, folder)
    return files


# --- the screen -----------------------------------------------------------------------------------------


def show(found: Mapping[str, Any], folder: Path, called: Mapping[str, str]) -> None:
    """What was compared, the clearest pairs, what it cost, where the files are, and the conclusion last."""
    console = Console(highlight=False)
    first, last = found["between"]
    console.print(
        f"[bold]signs[/]: {len(found['series'])} series, {found['areas']} areas, {found['months']} months "
        f"({first} to {last}), lags up to {found['max_lag']} months; "
        f"{escape('; '.join(sorted({each['query'] for each in found['series']})))}",
        soft_wrap=True,
    )
    if len(found["agencies"]) == 1:
        console.print(
            f"  one agency alone ({escape(found['agencies'][0])}): signs among its own counts", soft_wrap=True
        )
    for why, names in _by_reason(found["left_out"]).items():
        console.print(f"  [yellow]not in it[/], as it {why}: {escape(', '.join(names))}", soft_wrap=True)
    order = {"leads": 0, "no sign": 1, "cannot be told": 2}
    told = [sign for sign in found["signs"] if sign["lag"] is not None]
    rows = sorted(told, key=lambda sign: (order[sign["verdict"]], -_size(sign)))
    if rows:
        console.print(_table(rows[:SHOWN], called))
    if len(found["signs"]) > len(rows[:SHOWN]):
        console.print(f"{len(found['signs'])} pairs were compared; all are in {SIGNS}")
    for why, pairs in Counter(sign["why"] for sign in found["signs"] if sign["why"]).most_common(5):
        console.print(f"cannot be told, {pairs} pair{'s' * (pairs > 1)}: {escape(why)}", soft_wrap=True)
    console.print(f"privacy made from what {_maps(found)} released: nothing further is spent", soft_wrap=True)
    console.print(f"result  {folder / SIGNS}", soft_wrap=True)
    if "report" in found["files"]:
        console.print(f"report  {folder / found['files']['report']}", soft_wrap=True)
    console.print(escape(found["conclusion"]), style="bold", soft_wrap=True)


def _by_reason(left_out: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in left_out:
        found.setdefault(each["why"], []).append(each["name"])
    return found


def _size(sign: Mapping[str, Any]) -> float:
    return abs(float(sign["partial_correlation"]["value"] or 0))


def _maps(found: Mapping[str, Any]) -> str:
    return escape(" and ".join(found["maps"]))


def _table(rows: Sequence[Mapping[str, Any]], called: Mapping[str, str]) -> Table:
    table = Table()
    for name in ("goes ahead", "of", "months", "partial correlation", "95% interval", ""):
        table.add_column(name, justify="right" if name in ("months", "partial correlation") else "left")
    for row in rows:
        at = row["partial_correlation"]
        numbers = (str(row["lag"]), f"{at['value']:.2f}", f"{at['low']:.2f} to {at['high']:.2f}")
        table.add_row(escape(called[row["leads"]]), escape(called[row["follows"]]), *numbers, row["verdict"])
    return table
