"""`cohort.html`: how many people agencies share, for the manager of a service. It reads cohort.json and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any

from federation.panel.demand.about import agency, at, cost
from federation.panel.demand.pictures import shared_bar
from federation.panel.demand.said import SENSIBLE, down, hundred, told, up, words
from federation.panel.sections.numbers import join, real, shown

Json = Mapping[str, Any]


def view(found: Json) -> dict[str, Any]:
    """Everything that the page shows, as texts, tables and pictures."""
    counted = [name for name, each in found["agencies"].items() if each["status"] == "counted"]
    core = found["core"]
    return {
        "found": found,
        "created": at(found["created"]),
        "counted": join(counted),
        "cost": cost(found),
        "pairs": [_pair(pair, found) for pair in found["pairs"]],
        "core": None
        if core is None
        else {"agencies": join(core["agencies"]), "shared": told(shown(core["shared"]), share=False)},
        "by": None if found["by"] is None else words(found["by"]),
        "agencies": [agency(name, each) for name, each in found["agencies"].items()],
        "match": None
        if found["match"] is None
        else {**found["match"], "columns": join(found["match"]["columns"])},
        "level": f"{100 * found['level']:.10g}",
        "private": found["privacy"]["mechanism"] != "none",
        "buckets": f"{found['buckets']:,}",
    }


def cannot(least: float, needs: Json | None = None) -> str:
    """Why an overlap is not told, and what it would take. needs: the ε at which one of so many people could be told."""
    enough = f"an overlap of about {up(least, 0):,.0f} people"
    if needs is not None and real(needs["epsilon"]) and needs["epsilon"] <= SENSIBLE:
        more = f"ε\u00a0=\u00a0{up(needs['epsilon'], 2):.2f} at each to tell one of {up(needs['overlap'], 0):,.0f} people"
        enough = f"{more}, or {enough}"
    return f"cannot be told at this budget: it would take {enough}"


def _pair(pair: Json, found: Json) -> dict[str, Any]:
    """Two agencies: how many they share, as a number, of each agency's people, as a picture and by group."""
    names = list(pair["agencies"])
    sizes = {name: shown(found["agencies"][name]["people"]) for name in names}
    shared = shown(pair["shared"])
    groups = list(_groups(pair))
    top = max((size.value for size in sizes.values() if size is not None), default=0.0)
    return {
        "agencies": join(names),
        "names": names,
        "shared": told(shared, share=False),
        "shares": [
            (name, hundred(mark)) for name in names if (mark := shown(pair["share_of"][name])) is not None
        ],
        "bars": [
            (name, shared_bar(sizes[name], shared, top), told(sizes[name], share=False)) for name in names
        ],
        "groups": groups,
        "kept": any(each is None for _, both, of in groups for each in (both, *of)),
        "cannot": cannot(pair.get("least", found["least"]), pair.get("needs")),
        "wider": None if shared is None else _wider(pair.get("with_missed")),
    }


def _wider(with_missed: Json | None) -> dict[str, str] | None:
    """The interval that allows for shared people who are written differently."""
    if with_missed is None:
        return None
    low, high = down(with_missed["low"], 0), up(with_missed["high"], 0)
    return {"low": f"{low:,.0f}", "high": f"{high:,.0f}", "missed": f"{100 * with_missed['missed']:.0f}"}


def _groups(pair: Json) -> Iterator[tuple[str, Any, list[Any]]]:
    for level, each in (pair["groups"] or {}).items():
        shares = [told(shown(each["share_of"][name]), share=True) for name in pair["agencies"]]
        yield str(level), told(shown(each["shared"]), share=False), shares
