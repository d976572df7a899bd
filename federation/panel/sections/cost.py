"""Section 5, what it cost: ε in words and numbers, an audit beside the claim, and the rule for small numbers."""

from typing import Any

from federation.panel.registered import evidence_of
from federation.panel.sections.numbers import Json, certainty, epsilon, given, join, number, real

PROFILES = {
    "none": "No rule of a statistics office was set",
    "uk-default": "The usual rule for small numbers in UK official statistics was set",
    "custom": "A rule of the agencies' own was set",
}
TABLES = {
    "per_agency": "Each agency's counts had noise of their own, so that they could be read one by one.",
    "summed": "The agencies' counts were hidden by masks: only their sum could be read, so nothing is known of one agency.",
}
SETTINGS = (
    ("noise_multiplier", "training noise, in clipping norms"),
    ("max_grad_norm", "clipping norm of one person's gradient"),
    ("sample_rate", "chance that a person is in a step"),
    ("steps_per_round", "steps in a round"),
    ("tune_sigma", "noise on each count of a checkpoint, in people"),
    ("test_sigma", "noise on each count of the test, in people"),
)


def cost(result: Json) -> dict[str, Any]:
    """Everything that section 5 says."""
    privacy = result.get("privacy") or {}
    rows = []
    for name, facts in (result.get("agencies") or {}).items():
        spent = (facts or {}).get("epsilon") or {}
        each = [epsilon(spent.get(kind)) for kind in ("train", "evaluate", "total")]
        rows.append((name, *each, certainty(spent.get("total"))))
    several = privacy.get("epsilon_at_several_agencies") or {}
    busiest, shared, delta = privacy.get("epsilon_busiest"), privacy.get("shared"), privacy.get("delta")
    return {
        "shared": shared,
        "who": "someone who sees everything that an agency sent" if shared is None else _colluders(shared),
        "viewers": _viewers(privacy, shared),
        "private": privacy.get("mechanism") in ("local", "shared"),
        "known": "mechanism" in privacy,
        "rows": rows,
        "several": [
            (count, epsilon(value), certainty(value)) for count, value in several.items() if real(value)
        ],
        "busiest": epsilon(busiest) if real(busiest) else "not given",
        "busiest_certainty": f"{certainty(busiest)}" if real(busiest) else "(not given) in 100",
        "delta": f"{delta:.12f}".rstrip("0") if real(delta) else "not given",
        "one_in": f"{1 / delta:,.0f}" if real(delta) and delta > 0 else None,
        "unit": str(privacy.get("unit") or "not given"),
        "adjacency": given(privacy.get("adjacency")),
        "accountant": given(privacy.get("accountant")),
        "whom": _whom(shared),
        "ledger": str(privacy.get("ledger") or ""),
        "audit": _audit(result),
        "disclosure": _disclosure(result),
        "settings": [
            (words, number(privacy.get(name), gone="none" if name in privacy else "not given"))
            for name, words in SETTINGS
        ],
    }


def _colluders(shared: Json) -> str:
    count = int(shared.get("colluders") or 0)
    told = f"{count} {'agency' if count == 1 else 'agencies'} that {'tells' if count == 1 else 'tell'} it everything"
    return f"the coordinator, together with {told}" if count else "the coordinator"


def _whom(shared: Json | None) -> str:
    if shared is None:
        return "everyone who sees what leaves an agency, the coordinator included"
    return f"{_colluders(shared)}; what it is against others is in the table below"


def _viewers(privacy: Json, shared: Json | None) -> list[tuple[str, str, str]]:
    """Against whom, ε, and what an even bet becomes."""
    if not shared:
        return []
    words = {
        "public": "whoever sees the sums and results",
        "coordinator": _colluders(shared),
        "everybody": "all other agencies and the coordinator together",
    }
    spent = privacy.get("epsilon_to") or {}
    return [(words[to], epsilon(spent[to]), certainty(spent[to])) for to in words if real(spent.get(to))]


def _audit(result: Json) -> dict[str, Any] | None:
    """What an attack on this kind of noise could show, beside what is claimed; None where none was attached."""
    found = evidence_of(result).get("audit")
    if not found:
        return None
    lower, claimed, confidence = (found.get(k) for k in ("lower_bound", "claimed_epsilon", "confidence"))
    both = real(lower) and real(claimed)
    return {
        "lower": number(lower, ".2f"),
        "claimed": number(claimed, ".2f"),
        "confidence": f"{100 * confidence:g} in 100" if real(confidence) else "not given",
        "attack": given(found.get("attack")),
        "what": given(found.get("what")),
        "sha256": given(found.get("sha256")),
        "broken": both and lower > claimed,
        "held": both and lower <= claimed,
        "failed": [str(each) for each in found.get("failed") or ()],
        "other_noise": _other_noise(result, found),
    }


def _other_noise(result: Json, audit: Json) -> str | None:
    """Whose noise was attacked, where it was not that of this run."""
    mechanism, tried = (result.get("privacy") or {}).get("mechanism"), audit.get("mechanisms")
    return None if not tried or mechanism in tried else join(map(str, tried))


def _disclosure(result: Json) -> dict[str, Any] | None:
    """Which small numbers are kept back, in words; None where the result does not say."""
    found = result.get("disclosure")
    tables = TABLES.get(str(result.get("tables")))
    if not found:
        return {"rule": None, "tables": tables}
    profile = PROFILES.get(str(found.get("profile")), given(found.get("profile")))
    minimum, rounding = found.get("minimum"), found.get("rounding")
    least = (
        f"Numbers about fewer than {minimum:g} people are not shown (people are counted with the noise)"
        if real(minimum)
        else "From how many people on a number is shown is not given"
    )
    rounded = "how counts are rounded is not given"
    if real(rounding):
        rounded = (
            f"counts of people are rounded to the nearest {rounding:g}"
            if rounding > 1
            else "counts are not rounded"
        )
    return {"rule": f"{profile}. {least}; {rounded}.", "tables": tables}
