"""What it cost in privacy, and who checked that."""

from federation.panel.facts import REGISTRATION, at, table
from federation.panel.findings.finding import Finding, Json, listed
from federation.panel.sections.numbers import real


def privacy(result: Json) -> Finding | None:
    """ε of the agency that was asked most, with all that gives it a meaning."""
    facts = table(result.get("privacy"))
    spent, delta = facts.get("epsilon_busiest"), facts.get("delta")
    if facts.get("mechanism") == "none":
        text = "The run has no differential privacy: nothing limits what may be learned of a person."
        return Finding(text, ("/privacy/mechanism",))
    if not real(spent) or not real(delta) or not facts.get("unit"):
        return None
    text = (
        f"ε at most {spent:.2f} with δ {delta:g}, for one {facts['unit']} ({facts.get('adjacency')}), by "
        f"{facts.get('accountant')}; ledger: {facts.get('ledger')}."
    )
    keys = ("epsilon_busiest", "delta", "unit", "adjacency", "accountant", "ledger")
    return Finding(text, tuple(f"/privacy/{key}" for key in keys))


def several(result: Json) -> Finding | None:
    """ε of a person known to several agencies."""
    spent = table(at(result, "/privacy/epsilon_at_several_agencies"))
    known = {count: value for count, value in spent.items() if real(value)}
    if not known:
        return None
    said = listed(f"{count}: {value:.2f}" for count, value in known.items())
    return Finding(
        f"ε of a person known to so many agencies: {said}.",
        tuple(f"/privacy/epsilon_at_several_agencies/{count}" for count in known),
    )


def audit(result: Json) -> Finding | None:
    """What an attack could show, beside what is claimed."""
    source = f"{REGISTRATION}#/evidence/audit"
    found = table(at(result, source))
    if not real(found.get("lower_bound")):
        return None
    text = (
        f"An audit by {found.get('attack')} found an ε of at least {found['lower_bound']:.2f} where "
        f"{found.get('claimed_epsilon')} is claimed, with a confidence of {found.get('confidence')}."
    )
    return Finding(
        text, tuple(f"{source}/{key}" for key in ("attack", "lower_bound", "claimed_epsilon", "confidence"))
    )


def disclosure(result: Json) -> Finding | None:
    """By which rules numbers are published."""
    found = table(result.get("disclosure"))
    if not found:
        return None
    text = (
        f"Published by the profile {found.get('profile')}: nothing of fewer than {found.get('minimum')} (noised) people, "
        f"counts rounded to {found.get('rounding')}."
    )
    return Finding(text, ("/disclosure/profile", "/disclosure/minimum", "/disclosure/rounding"))


def robustness(result: Json) -> Finding | None:
    """What agencies that send wrong changes can do."""
    found = table(result.get("robustness"))
    if not found:
        return None
    if found.get("masked"):
        text = "Not defended against an agency that sends wrong changes: behind masks only their sum is seen."
    elif found.get("malicious"):
        text = f"It holds while at most {found['malicious']} agencies send wrong changes."
    else:
        text = "The strategy averages: one agency that sends wrong changes pulls the model as far as its norm bound lets it."
    return Finding(text, ("/robustness/masked", "/robustness/malicious"))
