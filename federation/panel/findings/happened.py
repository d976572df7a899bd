"""What was agreed before the run, what became of it, and what comes next."""

from federation.panel.facts import REGISTRATION, pointer, table
from federation.panel.facts import at as at_source
from federation.panel.findings.finding import Finding, Json, listed
from federation.panel.registered import gates as judged
from federation.panel.registered import registered as registered_facts


def registered(result: Json) -> Finding | None:
    """Who signed the registration, and when."""
    facts = registered_facts(result)
    if not facts["signed"]:
        return None
    when = "before" if facts["before"] else "AFTER"
    text = f"{facts['panel']} registered it on {facts['at']}, {when} the result, signed by {listed(facts['by'])}; SHA-256 {facts['sha256']}."
    return Finding(text, (REGISTRATION, "/registration/sha256"))


def gates(result: Json) -> Finding | None:
    """Whether the registered gates are passed, and which are not."""
    found = judged(result)
    if found is None:
        return None
    failed = [row[4] for row in found["rows"] if not row[3]]
    text = "Every registered gate is passed." if not failed else f"Gates that failed: {' '.join(failed)}"
    return Finding(text, (f"{REGISTRATION}#/gates",))


def took_part(result: Json) -> Finding | None:
    """Who trained, and who did not."""
    status = {name: table(facts).get("status") for name, facts in table(result.get("agencies")).items()}
    if not status:
        return None
    others = [f"{name} ({told})" for name, told in status.items() if told != "trained"]
    text = f"Took part: {listed(name for name, told in status.items() if told == 'trained')}."
    more = f" Did not: {listed(others)}." if others else ""
    return Finding(text + more, tuple(pointer("agencies", name, "status") for name in status))


def incidents(result: Json) -> Finding | None:
    """In which rounds something went wrong."""
    rounds = result.get("rounds")
    if not isinstance(rounds, list):
        return None
    kinds = {
        kind: [r.get("round") for r in rounds if r.get(kind)]
        for kind in ("late", "refused", "rejected", "void")
    }
    said = [f"{kind} in {listed(at)}" for kind, at in kinds.items() if at]
    text = (
        f"Rounds with an agency or a sum that was {'; '.join(said)}." if said else "No round had an incident."
    )
    return Finding(text, ("/rounds",))


def departures(result: Json) -> Finding | None:
    """Who left the federation."""
    gone = [str(table(entry).get("agency")) for entry in result.get("departures") or ()]
    sources = tuple(f"/departures/{number}/agency" for number in range(len(gone)))
    return Finding(f"Left the federation: {listed(gone)}.", sources) if gone else None


def changed(result: Json) -> Finding | None:
    """Which approved model it would replace, and on which settings the two differ."""
    source = f"{REGISTRATION}#/evidence/replaces"
    found = table(at_source(result, source))
    if not found:
        return None
    before, after = table(found.get("terms")), table(at_source(result, f"{REGISTRATION}#/terms"))
    differ = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    text = f"It would replace the model of run {found.get('run_id')}; settings that differ: {listed(differ)}."
    return Finding(text, (f"{source}/run_id", f"{source}/terms", f"{REGISTRATION}#/terms"))
