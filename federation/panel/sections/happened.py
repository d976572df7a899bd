"""Section 6, what happened: rounds, agencies that came, left or failed, and exactly which model this is about."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from federation.panel.sections.about import REASONS
from federation.panel.sections.numbers import Json, given, join, real

EVIDENCE = {
    "report": "this page",
    "evidence": "all that this page says, as data",
    "model_card": "the model card",
    "atrs": "the transparency record",
    "model": "the weights",
    "checkpoints": "the weights of earlier rounds",
}


def events(result: Json) -> dict[str, Any]:
    """What happened in the rounds, agency by agency."""
    rounds = list(result.get("rounds") or ())
    seconds = [record["seconds"] for record in rounds if real(record.get("seconds"))]
    happened: dict[tuple[str, str], list[int]] = {}
    for record in rounds:
        number = record.get("round", 0)
        for name in record.get("joined") or ():
            happened.setdefault((name, "joined the run, after others had begun"), []).append(number)
        for name in record.get("late") or ():
            happened.setdefault((name, "was late; the round went on without it"), []).append(number)
        for name, reason in (record.get("refused") or {}).items():
            words = REASONS.get(str(reason).upper(), str(reason))
            happened.setdefault((name, f"refused: {words}"), []).append(number)
        for name, sentence in (record.get("rejected") or {}).items():
            happened.setdefault((name, f"its reply was not used: {sentence}"), []).append(number)
        for name in record.get("bounded") or ():
            words = "its change was longer than its norm bound, and was scaled down to it"
            happened.setdefault((name, words), []).append(number)
    return {
        "done": len(rounds),
        "planned": given(result.get("rounds_planned")),
        "total": _duration(sum(seconds)) if seconds else "",
        "median": _duration(median(seconds)) if seconds else "",
        "incidents": [(name, words, _numbers(at)) for (name, words), at in sorted(happened.items())],
        "void": [
            (given(record.get("round")), str(record["void"])) for record in rounds if record.get("void")
        ],
        "departures": [
            _departure(entry, str(result.get("run_id"))) for entry in result.get("departures") or ()
        ],
    }


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _departure(entry: Json, run_id: str) -> str:
    """Since when an agency is gone, and what of it is in this model."""
    name, day, round_ = str(entry["agency"]), str(entry["at"])[:10], int(entry["round"])
    here = entry["run_id"] == run_id
    if here and round_ > 1:
        what = f"this model was trained with it before round {round_}, and without it from then on"
    else:
        what = "this model was trained without it"
    if entry["back"] is not None:
        what = f"it came back on {str(entry['back'])[:10]}"
    return f"{name} left the federation on {day}; {what}. What it had released until then stays released."


def _numbers(rounds: Sequence[int]) -> str:
    listed = ", ".join(str(number) for number in rounds[:10])
    return f"{listed} and {len(rounds) - 10} more" if len(rounds) > 10 else listed


# ---- exactly which model ----


def identity(result: Json) -> list[tuple[str, str]]:
    """What must be the same for a model to be the one that this page is about."""
    contract, model, strategy = (result.get(name) or {} for name in ("contract", "model", "strategy"))
    layers = join(str(size) for size in model.get("hidden") or ()) or "none"
    server = [f"{name} {value}" for name, value in strategy.items() if name != "name" and value is not None]
    files = [
        f"{name} ({EVIDENCE.get(key, key)})" for key, name in (result.get("files") or {}).items() if name
    ]
    return [
        ("Run", given(result.get("run_id"))),
        ("Software", f"fedrisk {given(result.get('fedrisk_version'))}"),
        ("Engine and seed", f"{given(result.get('engine'))}, {given(result.get('seed'))}"),
        (
            "Model",
            f"{given(model.get('name'))}, hidden layers: {layers if 'hidden' in model else 'not given'}",
        ),
        ("Features; numbers learned", f"{given(model.get('features'))}; {given(model.get('parameters'))}"),
        ("Strategy", ", ".join([given(strategy.get("name")), *server])),
        ("Against agencies that send wrong changes", _robustness(result.get("robustness") or {})),
        ("Data contract", f"{given(contract.get('name'))}, version {given(contract.get('version'))}"),
        ("SHA-256 of the contract", given(contract.get("sha256"))),
        ("SHA-256 of the registration", (result.get("registration") or {}).get("sha256") or "not registered"),
        ("SHA-256 of the configuration", given(result.get("config_sha256"))),
        ("SHA-256 of the plan the agencies saw", given(result.get("plan_sha256"))),
        ("SHA-256 of the code", given(result.get("code_sha256"))),
        ("Files of the run", join(files) if files else "not given"),
    ]


def _robustness(facts: Json) -> str:
    """What the run would have survived."""
    if facts.get("masked"):
        return "not defended: behind masks only the sum of all changes is seen"
    bound = facts.get("norm_bound")
    limits = {"plan": "each is cut to the longest that the plan makes possible", "none": "no norm bound"}
    cut = (
        "to which length each is cut is not given" if bound is None else f"each is cut to a length of {bound}"
    )
    words = [limits.get(str(bound), cut)]
    if facts.get("malicious"):
        words.insert(0, f"the strategy holds while at most {facts['malicious']} agencies send any")
    else:
        words.insert(0, "the strategy averages, so one agency can pull the model as far as its bound lets it")
    if facts.get("thin_blocks"):
        left = facts.get("thin_blocks_are") == "leave"
        what = "nothing was learned from" if left else "it does not hold for"
        words.append(
            f"{what} the columns of {join(facts['thin_blocks'])}, which too few agencies hold for that"
        )
    return "; ".join(words) if facts else given(None)
