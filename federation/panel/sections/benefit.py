"""Section 2, is it worth it: net benefit beside simple rules, current practice and each agency alone, per 1,000 people."""

from typing import Any

from federation.panel.sections.compared import mean_sd
from federation.panel.sections.numbers import UNMEASURED, Cell, Json, cell, number, real, shown

NOT_HERE = Cell(UNMEASURED, hidden=True)


def benefit(metrics: Json, result: Json) -> dict[str, Any]:
    """A row for each way of deciding whom to flag; what nobody measured says so."""
    overall, capacity = metrics.get("overall") or {}, metrics.get("capacity") or {}
    constant = metrics.get("constant") or {}
    practice = (result.get("users") or {}).get("practice") or {}
    everybody = (constant.get("everybody") or {}).get("net_benefit") or overall.get("net_benefit_all")
    cutoff, share = metrics.get("cutoff"), capacity.get("share")
    listed = f"at most {100 * share:g} in 100" if real(share) else "the chosen capacity"
    rows = [
        (f"This model, from a score of {number(cutoff, '.2f')}", overall.get("net_benefit")),
        (f"This model, {listed}", (capacity.get("overall") or {}).get("net_benefit")),
        ("Flagging everybody", everybody),
        ("Flagging nobody", (constant.get("nobody") or {}).get("net_benefit")),
        ("Today's practice", practice.get("net_benefit")),
    ]
    gain = shown(overall.get("net_benefit_gain"))
    return {
        "price": _price(cutoff),
        "gain": cell(overall.get("net_benefit_gain"), "benefit", UNMEASURED),
        "useful": None if gain is None or gain.low is None else gain.low > 0,
        "rows": [(name, cell(estimate, "benefit", UNMEASURED)) for name, estimate in rows] + _alone(result),
    }


def _price(cutoff: Any) -> str | None:
    """How many people wrongly flagged weigh as much as one rightly flagged: (1 - cutoff) / cutoff."""
    return f"{(1 - cutoff) / cutoff:.2g}" if real(cutoff) and 0 < cutoff < 1 else None


def _alone(result: Json) -> list[tuple[str, Cell]]:
    """Each agency by itself, where the run was compared with that."""
    rows = [row for row in (result.get("reference") or {}).get("rows") or () if row.get("kind") == "alone"]
    if not rows:
        return [("Each agency alone", NOT_HERE)]
    return [(str(row.get("name")), _mean(row.get("net_benefit"))) for row in rows]


def _mean(value: Json | None) -> Cell:
    return Cell(mean_sd(value, "benefit")) if value and real(value.get("mean")) else NOT_HERE
