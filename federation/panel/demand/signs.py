"""`signs.html`: which counts go ahead of which, for the manager of a service. It reads signs.json and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation.panel.demand.about import at
from federation.panel.demand.pictures import lags
from federation.panel.demand.said import words
from federation.panel.sections.numbers import join, mark_of, real
from federation.panel.svg import Mark

Json = Mapping[str, Any]
PICTURES = 6  # pairs that have one
VERDICTS = ("leads", "no sign", "cannot be told")


def view(found: Json) -> dict[str, Any]:
    """Everything that the page shows, as texts, tables and pictures."""
    rows = [_row(sign) for sign in found["signs"]]
    rows.sort(key=lambda row: (VERDICTS.index(row["verdict"]), -row["size"]))
    return {
        "found": found,
        "created": at(found["created"]),
        "maps": join(map(str, found["maps"])),
        "epsilon": _epsilon(found["privacy"]["epsilon"]),
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
    }


def _row(sign: Json) -> dict[str, Any]:
    mark = _mark(sign)
    return {
        "leads": words(sign["leads"]),
        "follows": words(sign["follows"]),
        "key": (sign["leads"], sign["follows"]),
        "lag": f"{sign['lag']} month{'' if sign['lag'] == 1 else 's'}" if real(sign["lag"]) else "–",
        "value": _signed(mark.value) if mark else "",
        "between": f"{_signed(mark.low)} to {_signed(mark.high)}"
        if mark and mark.low is not None and mark.high is not None
        else "",
        "verdict": sign["verdict"],
        "size": abs(mark.value) if mark else 0.0,
        "down": mark is not None and mark.value < 0,
    }


def _untold(rows: Sequence[Json]) -> list[tuple[str, str, str]]:
    """Pairs that cannot be told, with their lags in one line."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found.setdefault((row["leads"], row["follows"]), []).append(row["lag"].split(" ")[0])
    return [
        (leads, follows, "any lag" if known == ["–"] else f"{join(known)} months")
        for (leads, follows), known in found.items()
    ]


def _mark(sign: Json) -> Mark | None:
    """What the noise lets one read: a sign that cannot be told has no number."""
    return None if sign["verdict"] == "cannot be told" else mark_of(sign["partial_correlation"])


def _pictures(rows: Sequence[Json], found: Json) -> list[str]:
    """A picture for each of the clearest pairs: what was found at each lag."""
    pairs = list(dict.fromkeys(row["key"] for row in rows if row["verdict"] == "leads"))[:PICTURES]
    return [
        lags(
            f"lags-{number}",
            f"{words(leads)} → {words(follows)}",
            [
                (sign["lag"], _mark(sign))
                for sign in found["signs"]
                if (sign["leads"], sign["follows"]) == (leads, follows) and real(sign["lag"])
            ],
            found["max_lag"],
        )
        for number, (leads, follows) in enumerate(pairs)
    ]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _epsilon(value: Any) -> str:
    """ε of the maps: one number, or one for each."""
    if isinstance(value, Mapping):
        value = list(value.values())
    each = value if isinstance(value, Sequence) else [value]
    return join(f"{one:.2f}" for one in each if real(one)) or "no limit"
