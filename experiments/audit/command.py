"""`fedrisk audit`: tries to break the privacy claim, on made-up people or on a copy, and says whether it could."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from experiments.agencies import DataError
from experiments.audit import membership, people
from experiments.audit.mechanisms import local_plan
from experiments.audit.settings import MODELS, MechanismName, described, examine, examine_table, setting

CANNOT_SEE = (
    "A bound that stays below its claim is no proof: it is what these attacks could show with these canaries.",
    "Keys of random streams are made from a seed here; that a deployed node's keys are fresh is not seen.",
    "Secure aggregation is taken as done: masks, dropouts and what they leak are not attacked.",
    "Canaries stay in the same place at fixed weights: faults that show only at special weights or shapes are not seen.",
    "One person is one row here; bounds on a person's rows, the split into parts and the ledger's arithmetic are not audited.",
    "Timing, logs, error texts and the floating-point noise of single numbers are not looked at.",
)
RARE, ROUNDS = 0.1, 200


@dataclass(frozen=True)
class AuditOptions:
    """What the command was asked. epsilon, delta: the claim that noise is chosen for. canaries: of each setting.

    confidence: of each bound by itself. copy: an agencies.yaml whose people are used for membership inference in
    place of made-up ones; only with `is_copy`. out: the JSON file.
    """

    epsilon: float = 4.0
    delta: float = 1e-5
    mechanism: Literal["local", "shared", "both"] = "both"
    model: Literal["logistic", "mlp"] = "logistic"
    sample_rate: float = RARE
    rounds: int = ROUNDS
    canaries: int = 2000
    confidence: float = 0.95
    seed: int = 0
    copy: Path | None = None
    is_copy: bool = False
    out: Path = Path("outputs/audit.json")
    quiet: bool = False

    def problems(self) -> Iterator[str]:
        """A sentence for each option that cannot be: which, the rule, what was found."""
        rules = {
            "epsilon": (0 < self.epsilon < math.inf, "above 0 and finite"),
            "delta": (0 < self.delta < 1, "in (0, 1)"),
            "mechanism": (self.mechanism in ("local", "shared", "both"), "local, shared or both"),
            "model": (self.model in MODELS, " or ".join(MODELS)),
            "sample_rate": (0 < self.sample_rate <= 1, "in (0, 1]"),
            "rounds": (self.rounds >= 1, "1 or more"),
            "canaries": (100 <= self.canaries <= 8000, "from 100 to 8000"),
            "confidence": (0.5 <= self.confidence < 1, "in [0.5, 1)"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                yield f"--{name.replace('_', '-')} must be {rule}, got {getattr(self, name)}"


def audit_command(options: AuditOptions) -> int:
    """Audit, print, write `options.out`. 0 where no bound exceeds its claim and no check fails, else 1.

    `DataError` for options that cannot be, for a copy that is not declared one, or that is a node's.
    """
    problems = list(options.problems())
    if problems:
        raise DataError(*problems)
    console = Console()
    with console.status("auditing", spinner="dots") as status:
        found = report(options, lambda what: status.update(f"auditing: {what}"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    if not options.quiet:
        for table in tables(found):
            console.print(table)
    console.print(found["verdict"], style="green" if found["ok"] else "bold red", highlight=False)
    console.print(f"result  {options.out}", highlight=False, soft_wrap=True)
    return 0 if found["ok"] else 1


def report(options: AuditOptions, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Everything that was tried, JSON-ready: the settings with claim and findings, membership, and the verdict."""
    split = (
        people.copied(options.copy, is_copy=options.is_copy) if options.copy else people.made_up(options.seed)
    )
    settings = [_examined(options, *each, tell=tell) for each in _asked(options)]
    tell("score tables")
    asked = (options.epsilon, options.delta, options.confidence, options.seed)
    settings += [examine_table(name, *asked) for name in _names(options)]
    tell("membership inference")
    attacks = _membership(options, split)
    too_much = exceeded(settings, attacks)
    return {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": "made-up people",
        "membership_data": "a copy, declared as such by the user" if options.copy else "made-up people",
        "confidence": options.confidence,
        "settings": settings,
        "membership": [each.to_dict() for each in attacks],
        "verdict": verdict(too_much),
        "exceeded": too_much,
        "ok": not too_much,
        "cannot_see": list(CANNOT_SEE),
    }


def _names(options: AuditOptions) -> tuple[MechanismName, ...]:
    return ("local", "shared") if options.mechanism == "both" else (options.mechanism,)


def _asked(options: AuditOptions) -> list[tuple[MechanismName, float, int]]:
    sampled = [(options.sample_rate, options.rounds)] if options.sample_rate < 1 else []
    return [(name, *batch) for name in _names(options) for batch in (*sampled, (1.0, 1))]


def _examined(
    options: AuditOptions,
    mechanism: MechanismName,
    sample_rate: float,
    rounds: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    what = setting(
        mechanism,
        options.model,
        sample_rate,
        rounds,
        target=options.epsilon,
        delta=options.delta,
        canaries=options.canaries,
        seed=options.seed,
    )
    tell(what.name)
    return described(what, examine(what, options.confidence, options.seed))


def _membership(options: AuditOptions, split: membership.Split) -> list[membership.Attack]:
    """On a model of the options' claim, with a clipping norm that suits people instead of canaries."""
    plan = local_plan(options.epsilon, options.delta, options.sample_rate, options.rounds).but(
        max_grad_norm=1.0
    )
    module = membership.train(split, MODELS[options.model], plan, options.rounds, options.seed)
    return membership.infer(module, split, options.epsilon, options.delta, options.confidence)


def exceeded(settings: Sequence[Mapping[str, Any]], attacks: Sequence[membership.Attack]) -> list[str]:
    """One sentence for each bound above its claim and each check that fails."""
    found = [
        f"{each['name']}: {finding['sentence']}"
        for each in settings
        for finding in each["findings"]
        if not finding["ok"]
    ]
    return found + [
        f"membership, {each.group}: AUC at least {each.auc_low:.3f}, {each.allowed_auc:.3f} is possible"
        for each in attacks
        if not each.ok
    ]


def verdict(too_much: Sequence[str]) -> str:
    """The last line on the screen."""
    return "\n".join(too_much) if too_much else "no bound exceeds its claim"


# --- the screen ---------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """One table of bounds, one of checks, one of membership inference."""
    at = f"{found['confidence']:.1%}"
    bounds = _table(
        f"ε is at least … ({at} confidence each)", "setting", "attack", "claim", "at least", "estimate"
    )
    checks = _table("what the proofs assume (99.9% or more)", "setting", "check", "")
    for each in found["settings"]:
        _add(
            each,
            "bound",
            bounds,
            lambda f: [f["method"], *map(_number, (f["claim"], f["epsilon"], f["estimate"]))],
        )
        _add(each, "check", checks, lambda f: [f["sentence"], "holds" if f["ok"] else "FAILS"])
    yield bounds
    yield checks
    yield _membership_table(found["membership"])


def _membership_table(attacks: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "membership inference on a final model", "group", "members", "AUC", "true positives at 1% false"
    )
    for each in attacks:
        auc = f"{each['auc']:.3f} ({each['auc_low']:.3f}–{each['auc_high']:.3f})"
        rate = f"{each['true_positives']:.1%} ({each['true_positives_low']:.1%}–{each['true_positives_high']:.1%})"
        table.add_row(each["group"], str(each["members"]), auc, rate, style=_style(each["ok"]))
    return table


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in names:
        words = name in ("setting", "attack", "check", "group", "")
        table.add_column(name, justify="left" if words else "right")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _add(
    setting: Mapping[str, Any], kind: str, table: Table, cells: Callable[[Mapping[str, Any]], list[str]]
) -> None:
    """A row for each finding of `kind`, the setting's name in the first."""
    name = str(setting["name"])
    for finding in setting["findings"]:
        if finding["kind"] == kind:
            table.add_row(name, *cells(finding), style=_style(finding["ok"]))
            name = ""
    table.add_section()


def _style(ok: bool) -> str:
    return "" if ok else "bold red"
