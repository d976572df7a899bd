"""What a run shows on the terminal: a bar while it works, a row for each checkpoint, a table at the end."""

from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Screen:
    """Watches a run. `quiet` shows nothing but what `summary` prints at the end."""

    def __init__(self, console: Console, rounds: int, *, quiet: bool) -> None:
        self.console = console
        self._quiet = quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=quiet)
        self._task = self._bar.add_task("rounds", total=rounds)
        self._headed = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, header: Mapping[str, Any]) -> None:
        absent = {name: facts for name, facts in header["status"].items() if facts["status"] != "trained"}
        self._say(
            f"{len(header['status']) - len(absent)} agencies take part; plan {header['plan_sha256'][:12]}"
        )
        for name, facts in sorted(absent.items()):
            self._say(f"  [yellow]{name} does not take part[/]: {facts['reason']}")
        if header["resumed_at"]:
            self._say(f"resumed after round {header['resumed_at']}")
        self._bar.update(self._task, completed=header["resumed_at"])

    def round(self, record: Mapping[str, Any]) -> None:
        for name in record["late"]:
            self._say(f"round {record['round']}: [yellow]{name} did not answer in time[/]")
        for name, reason in {**record["refused"], **record["rejected"]}.items():
            self._say(f"round {record['round']}: [yellow]{name}[/]: {reason}")
        for name, times in record["bounded"].items():
            self._say(
                f"round {record['round']}: [yellow]{name}[/]: its change was {times:.3g} x as long as its norm bound, "
                "and was scaled down to it"
            )
        self._bar.update(self._task, completed=record["round"])

    def checkpoint(self, record: Mapping[str, Any]) -> None:
        if not self._headed:
            self._say(
                f"[bold]{'part':<6}{'round':>6}{'AUC':>22}{'Brier':>9}{'worst gap':>11}{'ε (busiest)':>13}[/]"
            )
            self._headed = True
        self._say(checkpoint_line(record))

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._bar.console.print(text, highlight=False)


def checkpoint_line(record: Mapping[str, Any]) -> str:
    """One checkpoint: AUC with its interval, Brier, worst group gap, ε of the busiest agency."""
    metrics = record["metrics"]
    if metrics is None:
        return f"{record['part']:<6}{record['round']:>6}  no agency's table arrived"
    auc = metrics["overall"]["auc"]
    interval = f"{shown(auc)} ({shown(auc, 'low')}–{shown(auc, 'high')})"
    return (
        f"{record['part']:<6}{record['round']:>6}{interval:>22}{shown(metrics['overall']['brier']):>9}"
        f"{shown(metrics['worst_gap']):>11}{epsilon_text(record['epsilon_busiest']):>13}"
    )


def shown(estimate: Mapping[str, Any], key: str = "value") -> str:
    """A published value, or a dash where there are too few people or too much noise."""
    value = estimate[key] if estimate["publishable"] else None
    return "–" if value is None else f"{value:.3f}"


def epsilon_text(value: float | None) -> str:
    """ε, or that there is none."""
    return "no privacy" if value is None else f"{value:.2f}"


def privacy_line(privacy: Mapping[str, Any]) -> str:
    """The guarantee with its unit, adjacency, δ and accountant next to it."""
    if privacy["epsilon_busiest"] is None:
        return "[red]none: noise was off; nothing here is private[/]"
    several = privacy["epsilon_at_several_agencies"]
    others = "".join(f", {several[m]:.2f} if known to {m} agencies" for m in ("2", "3") if several.get(m))
    whom, shared = "", privacy.get("shared")
    if shared is not None:
        to, c = privacy["epsilon_to"], shared["colluders"]
        colluding = f" and {c} colluding {'agency' if c == 1 else 'agencies'}" if c else ""
        whom = (
            f"; that is to the coordinator{colluding}: {to['public']:.2f} to the public, {to['everybody']:.2f} to "
            f"all other agencies and the coordinator together"
        )
    return (
        f"ε = {privacy['epsilon_busiest']:.2f} at most for one {privacy['unit']}{others}{whom} "
        f"({privacy['adjacency']}, δ = {privacy['delta']:g}, {privacy['accountant']}, {privacy['ledger']})"
    )


def reference_table(rows: list[Mapping[str, Any]], title: str) -> Table:
    """Pooled, federated, private federated and each agency alone, side by side."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("", "AUC", "Brier", "worst gap", "ε per agency"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        cost = "–" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        table.add_row(row["name"], *(_mean_sd(row[key]) for key in ("auc", "brier", "worst_gap")), cost)
    return table


def _mean_sd(value: Mapping[str, float | None]) -> str:
    if value["mean"] is None:
        return "–"
    return f"{value['mean']:.3f}" + ("" if value["sd"] is None else f" ± {value['sd']:.3f}")
