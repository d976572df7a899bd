"""A demand map, a cohort or early signs as MLflow gets them: one run that is finished when it begins, and one for each agency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.server.archive.names import estimates, finite, part

KINDS = ("map", "cohort", "signs")
SIZES = ("unit", "by", "buckets", "areas", "months", "max_lag", "match", "workload", "disclosure", "privacy")


def is_demand(found: Mapping[str, Any]) -> bool:
    """Whether it is one of them, not the result of a training."""
    return found.get("kind") in KINDS


def header_of(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What `Tracker.start` takes: tags, what was asked and how as params, and the agencies."""
    scalars = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
    agencies = {
        name: {"kind": facts["kind"], "public_size": facts["public_size"]}
        for name, facts in agency_facts(found).items()
    }
    sizes = {name: facts["public_size"] for name, facts in agencies.items()}
    config = {key: found[key] for key in SIZES if found.get(key) is not None}
    return {
        "run_id": folder.name,
        **scalars,
        "config": {"kind": found["kind"], **config, "public_size": sizes},
        "agencies": agencies,
    }


def demand_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """What it cost, how much of it can be told, and the few numbers that one asks of several runs. {} for a training."""
    if not is_demand(found):
        return {}
    spent = {"privacy/epsilon_busiest": _busiest(found["privacy"]["epsilon"])}
    match found["kind"]:
        case "map":
            own = _map(found)
        case "cohort":
            own = _cohort(found)
        case _:
            verdicts = [sign["verdict"] for sign in found["signs"]]
            own = {
                "signs/looked_at": len(verdicts),
                **{
                    f"signs/{name}": verdicts.count(verdict)
                    for name, verdict in (("leads", "leads"), ("untold", "cannot be told"))
                },
            }
    return finite(spent | own)


def agency_metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """Of one agency: how many people it counted."""
    return estimates("demand", {"people": facts["people"]} if "people" in facts else None)


def demand_files(found: Mapping[str, Any], folder: Path) -> list[tuple[Path, str | None]]:
    """(file, folder among the artifacts): the tables that `found` names, nothing outside of the run's `folder`."""
    named = (found.get("files") or {}).get("tables")
    if not is_demand(found) or named is None:
        return []
    place = (folder / str(named)).resolve()
    if not place.is_relative_to(folder.resolve()):
        return []
    return [(path, str(named)) for path in sorted(place.glob("*")) if path.suffix in (".csv", ".txt")]


def agency_facts(found: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What is known of each agency; early signs only name them."""
    agencies = found.get("agencies")
    return agencies if isinstance(agencies, Mapping) else {}


def _busiest(epsilon: Any) -> float | None:
    """The largest ε, of signs that of several maps; None where one of them has none to give."""
    each = epsilon if isinstance(epsilon, list) else [epsilon]
    return None if not each or None in each else max(each)


def _map(found: Mapping[str, Any]) -> dict[str, Any]:
    cells = [
        cell
        for query in found["queries"]
        for part_ in ((query["together"] or {}).get("cells", ()), *query["agencies"].values())
        for cell in part_
    ]
    told = sum(cell["publishable"] is True for cell in cells)
    return {
        "demand/cells": len(cells),
        "demand/told": told,
        "demand/share_told": told / len(cells) if cells else None,
        **estimates("demand", {"people": found["people"]}),
    }


def _cohort(found: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {"cohort/least": found["least"]}
    for pair in found["pairs"]:
        name = "_and_".join(map(part, pair["agencies"]))
        own |= estimates(f"cohort/{name}", {"shared": pair["shared"]}, ("shared",))
    if found["core"] is not None:
        own |= estimates("cohort/core", {"shared": found["core"]["shared"]}, ("shared",))
    return own
