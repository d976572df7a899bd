"""What it is for, whom it is about, and what exactly was made."""

from federation.panel.facts import REGISTRATION, at, pointer, table
from federation.panel.findings.finding import Finding, Json, listed
from federation.panel.registered import registration_of
from federation.panel.sections.numbers import real


def purpose(result: Json) -> Finding | None:
    """The agreed purpose."""
    if not result.get("purpose"):
        return None
    return Finding(f"The agreed purpose is {result['purpose']}.", ("/purpose",))


def outcome(result: Json) -> Finding | None:
    """The outcome as the panel registered it, else as the data contract calls it; with its horizon."""
    registration = registration_of(result)
    if registration is not None:
        text = f"Registered outcome: {registration.outcome.rstrip('.')}, within {registration.horizon}."
        return Finding(text, (f"{REGISTRATION}#/outcome", f"{REGISTRATION}#/horizon"))
    contract = table(result.get("contract"))
    if not contract.get("label"):
        return None
    if not contract.get("horizon"):
        return Finding(f"The outcome is {contract['label']}.", ("/contract/label",))
    text = f"The outcome is {contract['label']}, within {contract['horizon']}."
    return Finding(text, ("/contract/label", "/contract/horizon"))


def description(result: Json) -> Finding | None:
    """What the data contract says of itself."""
    said = table(result.get("contract")).get("description")
    return Finding(str(said), ("/contract/description",)) if said else None


def experiment(result: Json) -> Finding | None:
    """What the use case is called."""
    return Finding(str(result["experiment"]), ("/experiment",)) if result.get("experiment") else None


def agencies(result: Json) -> Finding | None:
    """Who was asked, of which kind, and which blocks of columns each holds beside what all hold."""
    parts = []
    for name, facts in table(result.get("agencies")).items():
        holds = [str(block) for block in table(facts).get("holds") or ()]
        more = f", holds {listed(holds)}" if holds else ""
        parts.append(f"{name} ({table(facts).get('kind') or 'kind not given'}{more})")
    return Finding(f"Agencies of the plan: {listed(parts)}.", ("/agencies",)) if parts else None


def sizes(result: Json) -> Finding | None:
    """The agreed size of each agency, by which changes are weighted."""
    found = {
        name: facts["public_size"]
        for name, facts in table(result.get("agencies")).items()
        if real(table(facts).get("public_size"))
    }
    if not found:
        return None
    said = listed(f"{name} {size:,}" for name, size in found.items())
    return Finding(
        f"Agreed public sizes, which are no counts of records: {said}.",
        tuple(pointer("agencies", name, "public_size") for name in found),
    )


def data_contract(result: Json) -> Finding | None:
    """By what records are read."""
    contract = table(result.get("contract"))
    if not contract.get("sha256"):
        return None
    text = (
        f"Every agency's records are read, checked and encoded by one data contract: {contract.get('name')}, version "
        f"{contract.get('version')}, SHA-256 {contract['sha256']}. Encoding uses declared bounds and fits nothing to anybody."
    )
    return Finding(text, ("/contract/name", "/contract/version", "/contract/sha256"))


def records_stay(result: Json) -> Finding | None:
    """Where records are; of real agencies alone."""
    if not table(result.get("agencies")) or result.get("simulation") is not False:
        return None
    text = (
        "Records stay with the agency that holds them; weights, changes and tables of counts leave it, with noise where the "
        "run has privacy. No data set was pooled or handed over."
    )
    return Finding(text, ("/agencies", "/simulation", "/privacy/mechanism"))


def model(result: Json) -> Finding | None:
    """What kind of model, how large."""
    spec = table(result.get("model"))
    if not spec.get("name"):
        return None
    layers = spec.get("hidden")
    hidden = f"hidden layers of {listed(layers)}" if layers else "no hidden layers"
    text = f"{spec['name']}, {hidden}, {spec.get('features')} encoded features, {spec.get('parameters')} learned numbers."
    return Finding(text, ("/model/name", "/model/hidden", "/model/features", "/model/parameters"))


def additive(result: Json) -> Finding | None:
    """Whether each factor's part in a score can be said."""
    if at(result, "/model/name") != "logistic":
        return None
    text = "The model is additive: what each factor adds to a person's score, and in which direction, can be said exactly."
    return Finding(text, ("/model/name",))


def model_input(result: Json) -> Finding | None:
    """What the model reads of a person."""
    features, contract = at(result, "/model/features"), table(result.get("contract"))
    if features is None or not contract.get("name"):
        return None
    text = f"{features} numbers for each person, encoded from the columns of the data contract {contract['name']}."
    return Finding(text, ("/model/features", "/contract/name"))


def model_output(result: Json) -> Finding | None:
    """What the model says of a person."""
    label, horizon = (at(result, f"/contract/{key}") for key in ("label", "horizon"))
    if not label:
        return None
    within = f" within {horizon}" if horizon else ""
    bands = [str(table(band).get("name")) for band in at(result, "/scoring/bands") or ()]
    more = f" Bands: {listed(bands)}." if bands else ""
    sources = [
        "/contract/label",
        *(["/contract/horizon"] if horizon else []),
        *(f"/scoring/bands/{number}/name" for number in range(len(bands))),
    ]
    return Finding(f"A probability from 0 to 1 of {label}{within}.{more}", tuple(sources))


def training(result: Json) -> Finding | None:
    """By which strategy, over how many rounds."""
    rounds, name = result.get("rounds_planned"), at(result, "/strategy/name")
    if rounds is None or not name:
        return None
    done = len(result.get("rounds") or ())
    text = f"Trained across the agencies by {name}: {done} of {rounds} rounds."
    return Finding(text, ("/strategy/name", "/rounds", "/rounds_planned"))


def size(result: Json) -> Finding | None:
    """How small the training was, as far as anybody measured."""
    parameters, done = at(result, "/model/parameters"), result.get("rounds")
    if parameters is None or not isinstance(done, list):
        return None
    text = f"{parameters} numbers were learned in {len(done)} rounds. Nobody measured what energy that took."
    return Finding(text, ("/model/parameters", "/rounds"))


def version(result: Json) -> Finding | None:
    """Which run, made when."""
    run = result.get("run_id")
    return Finding(f"Run {run}, made on {result.get('created')}.", ("/run_id", "/created")) if run else None


def simulation(result: Json) -> Finding | None:
    """That the agencies were played, where they were."""
    if not result.get("simulation"):
        return None
    text = "A simulation: one computer played all agencies, so nothing here shows that it works in practice."
    return Finding(text, ("/simulation",))


def identity(result: Json) -> Finding | None:
    """The hashes of settings, plan and code."""
    hashes = {
        name: result.get(f"{name}_sha256")
        for name in ("config", "plan", "code")
        if result.get(f"{name}_sha256")
    }
    if not hashes:
        return None
    said = ", ".join(f"{name} {value}" for name, value in hashes.items())
    text = f"fedrisk {result.get('fedrisk_version')}, engine {result.get('engine')}; SHA-256: {said}."
    return Finding(text, ("/fedrisk_version", "/engine", *(f"/{name}_sha256" for name in hashes)))


def cautions(result: Json) -> Finding | None:
    """Known flaws of the data."""
    said = [str(each) for each in result.get("cautions") or ()]
    return Finding(" ".join(said), ("/cautions",)) if said else None


def groups(result: Json) -> Finding | None:
    """By which attributes it was audited: registered, else those measured."""
    registration = registration_of(result)
    if registration is not None and registration.groups:
        return Finding(f"Audited by {listed(registration.groups)}.", (f"{REGISTRATION}#/groups",))
    measured = list(table(at(result, "/final/metrics/groups")))
    return Finding(f"Audited by {listed(measured)}.", ("/final/metrics/groups",)) if measured else None
