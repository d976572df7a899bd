"""`signs.html`: which counts go ahead of which, for the manager of a service. It reads signs.json and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation.panel.demand.about import at
from federation.panel.demand.pictures import lags
from federation.panel.demand.said import words
from federation.panel.sections.numbers import epsilon, join, mark_of, real
from federation.panel.svg import Mark

Json = Mapping[str, Any]
PICTURES = 6  # pairs that have one
LEVEL = 0.95  # of all intervals together, where signs.json does not say
VERDICTS = ("leads", "no sign", "cannot be told")


def view(found: Json) -> dict[str, Any]:
    """Everything that the page shows, as texts, tables and pictures."""
    names = _names(found["series"])
    rows = [_row(sign, names) for sign in found["signs"]]
    rows.sort(key=lambda row: (VERDICTS.index(row["verdict"]), -row["size"]))
    questions = {words(each["query"]) for each in found["series"]}
    return {
        "found": found,
        "created": at(found["created"]),
        "maps": join(map(str, found["maps"])),
        "epsilon": _epsilon(found["privacy"]["epsilon"]),
        "conclusion": f"{found['conclusion'][:1].upper()}{found['conclusion'][1:]}",
        "question": next(iter(questions)) if len(questions) == 1 else "",
        "pairs": len({(sign["leads"], sign["follows"]) for sign in found["signs"]}),
        "level": f"{100 * found.get('level', LEVEL):.10g}",
        "leads": [row for row in rows if row["verdict"] == "leads"],
        "rest": [row for row in rows if row["verdict"] == "no sign"],
        "untold": _untold([row for row in rows if row["verdict"] == "cannot be told"]),
        "pictures": _pictures(rows, found),
        "series": [
            (
                words(each["name"]),
                each["agency"],
                words(each["query"]),
                f"{100 * each['noise_share']:.0f}%" if real(each["noise_share"]) else "not given",
            )
            for each in found["series"]
        ],
        "left_out": [(join(names), why) for why, names in _left_out(found).items()],
    }


def _left_out(found: Json) -> dict[str, list[str]]:
    """Why -> the series that were not compared."""
    reasons: dict[str, list[str]] = {}
    for each in found.get("left_out", ()):
        reasons.setdefault(each["why"], []).append(words(each["name"]))
    return reasons


def _names(series: Sequence[Json]) -> dict[str, str]:
    """A series' name -> its agency, where every agency has one series of the same question; else the name itself."""
    agencies = {each["agency"] for each in series}
    alike = len({each["query"] for each in series}) == 1 and len(agencies) == len(series)
    return {each["name"]: each["agency"] if alike else words(each["name"]) for each in series}


def _row(sign: Json, names: Mapping[str, str]) -> dict[str, Any]:
    mark = _mark(sign)
    value, between = ("", "") if mark is None else _texts(mark)
    return {
        "leads": names.get(sign["leads"], words(sign["leads"])),
        "follows": names.get(sign["follows"], words(sign["follows"])),
        "key": (sign["leads"], sign["follows"]),
        "lag": f"{sign['lag']} month{'' if sign['lag'] == 1 else 's'}" if real(sign["lag"]) else "–",
        "value": value,
        "between": between,
        "why": sign.get("why") or "too much noise, or too few months",
        "verdict": sign["verdict"],
        "size": abs(mark.value) if mark else 0.0,
        "down": mark is not None and mark.value < 0,
    }


def _untold(rows: Sequence[Json]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Pairs that cannot be told, by the reason why: what would lead, and what would follow."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        follows = found.setdefault(row["why"], {}).setdefault(row["leads"], [])
        if row["follows"] not in follows:
            follows.append(row["follows"])
    return [(why, [(leads, join(follows)) for leads, follows in of.items()]) for why, of in found.items()]


def _mark(sign: Json) -> Mark | None:
    """What the noise lets one read: a sign that cannot be told has no number."""
    return None if sign["verdict"] == "cannot be told" else mark_of(sign["partial_correlation"])


def _lags(pair: tuple[str, str], signs: Sequence[Json]) -> list[tuple[int, Mark | None]]:
    """What was found of a pair at each lag: beside its sign, or in a sign for each."""
    own = [sign for sign in signs if (sign["leads"], sign["follows"]) == pair]
    beside = next((sign["lags"] for sign in own if sign.get("lags")), None)
    if beside is not None:
        return [(int(each["lag"]), mark_of(each)) for each in beside]
    return [(int(sign["lag"]), _mark(sign)) for sign in own if real(sign["lag"])]


def _pictures(rows: Sequence[Json], found: Json) -> list[dict[str, Any]]:
    """Each of the clearest pairs: what was found at each lag, as a picture and as numbers."""
    pairs = {row["key"]: f"{row['leads']} → {row['follows']}" for row in rows if row["verdict"] == "leads"}
    made = []
    for number, (pair, title) in enumerate(list(pairs.items())[:PICTURES]):
        known = _lags(pair, found["signs"])
        made.append(
            {
                "title": title,
                "picture": lags(f"lags-{number}", title, known, found["max_lag"]),
                "rows": [(lag, None if mark is None else _texts(mark)) for lag, mark in known],
            }
        )
    return made


def _texts(mark: Mark) -> tuple[str, str]:
    between = "" if mark.low is None or mark.high is None else f"{_signed(mark.low)} to {_signed(mark.high)}"
    return _signed(mark.value), between


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _epsilon(value: Any) -> str:
    """ε of the maps: one number, or one for each; of a map without noise, that there is no limit."""
    return join(map(epsilon, value if isinstance(value, list) else [value]))
