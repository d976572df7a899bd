"""What `fedrisk plan` shows: tables and a chart on the terminal, and a picture of the curves."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.planning import Cost, Plan
from experiments.planning_noise import Cell, Grid, Noise, TableNoise
from federation.release import VIEWERS, Viewer

BAR = 50  # characters of the longest bar
ROWS = 10  # of the chart
COLOURS: Mapping[Viewer, str] = {"public": "#009e73", "coordinator": "#0072b2", "everybody": "#d55e00"}
STYLES: Mapping[Viewer, str] = {"public": ":", "coordinator": "-", "everybody": "-."}


def show(plan: Plan, plot: Path | None = None) -> None:
    """Everything, in the order in which one decides: cost, noise, choices, curve, limits, next."""
    console = Console(highlight=False)
    console.print(_header(plan))
    if plan.cost is None or plan.noise is None or plan.meets is None or plan.policy is None:
        console.print(
            "[red]privacy=none adds no noise, so there is no bound on what a person loses[/]: in simulations only."
        )
    else:
        _show_cost(console, plan, plan.cost)
        _show_noise(console, plan, plan.noise)
        _show_choices(console, plan)
        _show_curve(console, plan)
        _show_limits(console, plan.policy.toml)
    _title(console, "Next")
    console.print(f"  {plan.next}", markup=False, soft_wrap=True)
    if plot is not None and plan.curve:
        console.print(f"  the curves are in {plot}", markup=False, soft_wrap=True)


def _title(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]")


def _header(plan: Plan) -> str:
    what = {
        "local": "each agency's own noise",
        "shared": "noise shared between agencies, behind masks",
        "none": "no privacy",
    }[plan.mechanism]
    n = _count(len(plan.agencies), "agency holds", "agencies hold")
    lines = [f"[bold]{plan.experiment}[/]: {what} (privacy={plan.mechanism}); {n} the label and so train."]
    if plan.shared is not None:
        s = plan.shared
        lines.append(
            f"Of these n = {len(plan.agencies)}: c = {s.colluders} may tell the coordinator all they know, "
            f"d = {s.dropouts} may fail in a round, h = {s.honest} carry the noise that counts, t = {s.threshold} "
            "must be in every sum."
        )
    guarantee = "" if plan.cost is None else f"; δ = {plan.delta:g}; accountant: {plan.accountant}"
    lines.append(f"Unit: one {plan.unit}; adjacency: {plan.adjacency}{guarantee}.")
    return "\n".join(lines)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


# --- what it costs a person ---------------------------------------------------------------------------


def _show_cost(console: Console, plan: Plan, cost: Mapping[Viewer, Cost]) -> None:
    _title(console, "What it costs a person (ε, at most)")
    table = Table()
    table.add_column("against")
    columns = (
        "training",
        "tune\ntables",
        "test\ntables" if plan.noise is not None and plan.noise.users.tables else "test\ntable",
        "whole\nrun",
        "known to\n2 agencies",
        "known to\n3 agencies",
    )
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    viewers = VIEWERS if plan.shared is not None else ("public",)
    for viewer in viewers:
        c = cost[viewer]
        several = (_epsilon(c.at_agencies.get(m)) for m in ("2", "3"))
        table.add_row(
            _who(plan, viewer),
            *map(_epsilon, (c.train, c.tune, c.test)),
            f"[bold]{_epsilon(c.total)}[/]",
            *several,
        )
    console.print(table)
    console.print(
        "People of the three parts are different people, so the whole run costs the largest of the parts, not the "
        "sum. A person whom several agencies know loses more, if all of them take part in everything."
    )
    if plan.pld_epsilon is not None:
        console.print(
            f"ε = {_epsilon(plan.pld_epsilon)} by a tighter accountant (PLD), non-adaptive: valid only if the whole "
            "experiment was fixed beforehand."
        )


def _who(plan: Plan, viewer: Viewer) -> str:
    if plan.shared is None:
        return "anyone: the public, the\ncoordinator, everybody else"
    c = plan.shared.colluders
    helped = f",\ntold all by {_count(c, 'other agency', 'other agencies')}" if c else ""
    return {
        "public": "the public (sums and results)",
        "coordinator": f"the coordinator{helped}",
        "everybody": "everybody else together\n(an agency's own share alone)",
    }[viewer]


def _epsilon(value: float | None) -> str:
    """ε, rounded up; a dash where there are not so many agencies."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{math.ceil(100 * value - 1e-6) / 100:,.2f}" if value < 1000 else f"{math.ceil(value):,}"


# --- the noise ----------------------------------------------------------------------------------------


def _show_noise(console: Console, plan: Plan, noise: Noise) -> None:
    _title(console, "The noise, and what it means for learning")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(no_wrap=True)
    for name, value in _training_rows(plan, noise):
        table.add_row(name, value)
    table.add_section()
    each = (("tune", noise.tune), ("test", noise.test), ("users", noise.users))
    for part, found in [(part, found) for part, found in each if found.tables]:
        tables = _count(found.tables, f"{part} table", f"{part} tables")
        table.add_row(f"noise in a cell of {tables}", _table_row(plan, found))
    table.add_section()
    for name, value in _wire_rows(noise):
        table.add_row(name, value)
    console.print(table)
    console.print(
        "Noise is a standard deviation, if all agencies answer. One person moves a sum by C at most, and a cell of a "
        "table by 1."
    )


def _training_rows(plan: Plan, noise: Noise) -> list[tuple[str, str]]:
    rows = [
        ("noise multiplier", f"{noise.noise_multiplier:g}"),
        ("clipping norm C, the longest gradient", f"{noise.max_grad_norm:g}"),
        ("sample rate q, the chance to be in a step", f"{noise.sample_rate:g}"),
        ("rounds × local steps", f"{noise.rounds:,} × {noise.local_steps:,}"),
        ("noise on the sum of a step's gradients", f"{_digits(noise.sum_noise, 4)} C"),
        (
            f"noise on their mean, of q × {noise.people:,.0f} people",
            f"[bold]{_digits(noise.mean_noise)} C[/]",
        ),
    ]
    if plan.shared is not None:
        less = noise.own_mean_noise / noise.mean_noise
        own = f"{_digits(noise.own_mean_noise)} C: sharing leaves {_digits(less)} × less"
        rows.append(("the same with own noise, at the same ε", own))
    return rows


def _table_row(plan: Plan, found: TableNoise) -> str:
    whose = "an agency's share" if plan.shared is not None else "an agency alone"
    n = len(plan.agencies)
    return f"{whose} {_digits(found.own)}, all {n} together {_digits(found.summed)} people"


def _digits(value: float, count: int = 3) -> str:
    """`value` with `count` significant digits, zeros at its end included."""
    return f"{value:#.{count}g}".rstrip(".")


def _wire_rows(noise: Noise) -> list[tuple[str, str]]:
    grid = noise.grid
    if grid is None:
        return [("an agency sends in a round of training", f"{noise.round_bytes:,} bytes")]
    return [
        *_grid_rows(grid),
        (
            "an agency sends in a round of training",
            f"{noise.round_bytes:,} bytes, {grid.table_bytes:,} more with a table",
        ),
    ]


def _grid_rows(grid: Grid) -> list[tuple[str, str]]:
    return [
        ("grid of gradients", f"K = {grid.steps_per_norm:,} steps to C; γ = C/K = {_digits(grid.grain)}"),
        ("grid of counts", f"F = {grid.steps_per_person:,} steps to a person"),
        ("whole numbers that are masked", f"{grid.bits} bits"),
        ("an agency's number may be at most", f"{grid.limit:,} steps"),
        ("", f"= {grid.limit_norms:,.0f} C, or {grid.limit_people:,.0f} people"),
    ]


# --- what meets the budget ----------------------------------------------------------------------------


def _show_choices(console: Console, plan: Plan) -> None:
    meets, noise = plan.meets, plan.noise
    assert meets is not None  # the caller's case
    assert noise is not None
    if plan.target_epsilon is None:
        _title(console, f"What a noise multiplier of {noise.noise_multiplier:g} costs (ε of the training)")
    else:
        _title(console, f"What meets this budget: training within ε = {plan.target_epsilon:g}")
    table = Table(show_lines=True)
    table.add_column("rounds", justify="right", no_wrap=True)
    for rate in meets.sample_rates:
        table.add_column(f"q = {rate:g}{_now(rate == noise.sample_rate)}", justify="right", no_wrap=True)
    for number in meets.rounds:
        cells = (_cell(cell, plan.target_epsilon) for cell in meets.cells if cell.rounds == number)
        table.add_row(f"{number:,}{_now(number == noise.rounds)}", *cells)
    console.print(table)
    console.print(_choices_note(plan))


def _now(holds: bool) -> str:
    return "\n(now)" if holds else "\n "  # two lines each: headers then stand side by side


def _cell(cell: Cell, target: float | None) -> str:
    if cell.noise_multiplier is None or cell.average_noise is None:
        return "not\npossible"
    first = _epsilon(cell.epsilon) if target is None else _digits(cell.noise_multiplier, 4)
    noise = _digits(1000 * cell.average_noise)
    return f"[bold]{first}\n★ {noise}[/]" if cell.best else f"{first}\n{noise}"


def _choices_note(plan: Plan) -> str:
    above = "the noise multiplier" if plan.target_epsilon is not None else "ε to the coordinator"
    text = (
        f"In each field {above}, and below it the number to compare: the noise on the average step, in thousandths of C, "
        "which is the noise on the mean gradient × √steps / steps (steps = rounds × local steps). Less is better; "
        "whether so few rounds are enough to learn, it does not say."
    )
    return f"{text} ★ marks the least." if plan.target_epsilon is not None else text


# --- the curve ----------------------------------------------------------------------------------------


def _show_curve(console: Console, plan: Plan) -> None:
    target, last = plan.target_epsilon, plan.curve[-1]["epsilon"]["coordinator"]
    most = max(last, target or 0.0)
    _title(
        console, "ε of the training, round by round" + ("" if plan.shared is None else ", to the coordinator")
    )
    for point in _some(plan.curve):
        value = point["epsilon"]["coordinator"]
        bar = "█" * max(1, round(BAR * value / most)) if 0 < most < math.inf else ""
        console.print(f"  round {point['round']:>7,}  {_epsilon(value):>8}  {bar}")
    if target is not None:
        console.print(f"  {'target':>13}  {_epsilon(target):>8}  {'┄' * round(BAR * target / most)}┤")


def _some(points: tuple[Mapping[str, Any], ...]) -> list[Mapping[str, Any]]:
    """`ROWS` of `points`, evenly spaced, the last among them; all where they are fewer."""
    count = min(ROWS, len(points))
    return [points[math.ceil(len(points) * (i + 1) / count) - 1] for i in range(count)]


def _show_limits(console: Console, toml: str) -> None:
    _title(console, "What each node's policy.toml must allow, at least")
    console.print(
        "Enough where nothing was spent before. A node counts its budget at one order that is fixed beforehand, so "
        "this may be a little more than the ε above. [bold]\\[budget][/] goes last in the file.\n"
    )
    console.print(toml, markup=False, soft_wrap=True)


# --- the picture --------------------------------------------------------------------------------------


def draw(plan: Plan, path: Path) -> None:
    """Both curves as SVG or PNG: ε against rounds, and noise against ε."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "font.size": 10, "axes.spines.top": False}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(f"{plan.experiment}: privacy={plan.mechanism}, δ = {plan.delta:g}, {plan.unit}")
        _draw_rounds(left, plan)
        _draw_noise(right, plan)
        figure.savefig(path, dpi=150)


def _draw_rounds(axes: Any, plan: Plan) -> None:
    rounds = [point["round"] for point in plan.curve]
    names: dict[Viewer, str] = {"coordinator": "to anyone"}
    if plan.shared is not None:
        names = {viewer: _who(plan, viewer).replace("\n", " ") for viewer in reversed(VIEWERS)}
    for viewer, name in names.items():
        values = [point["epsilon"][viewer] for point in plan.curve]
        axes.plot(rounds, values, STYLES[viewer], color=COLOURS[viewer], linewidth=2, label=name)
    if plan.target_epsilon is not None:
        axes.axhline(plan.target_epsilon, color="black", linestyle="--", linewidth=1, label="target")
    axes.set(title="What the training costs", xlabel="rounds", ylabel="ε (of one person at one agency)")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.35 * axes.dataLim.ymax)  # the legend has its place above the lines
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")


def _draw_noise(axes: Any, plan: Plan) -> None:
    noise = plan.noise
    points = plan.noise_for_epsilon
    of = "" if noise is None else f" for {noise.rounds:,} rounds at q = {noise.sample_rate:g}"
    axes.loglog(
        [point["epsilon"] for point in points],
        [point["noise_multiplier"] for point in points],
        color=COLOURS["coordinator"],
        linewidth=2,
        label="least noise that keeps ε",
    )
    if noise is not None and plan.cost is not None:
        epsilon = plan.cost["coordinator"].train
        axes.plot([epsilon], [noise.noise_multiplier], "o", color="black", label="this plan")
    if plan.target_epsilon is not None:
        axes.axvline(plan.target_epsilon, color="black", linestyle="--", linewidth=1, label="target")
    axes.set(
        title=f"The noise that it takes{of}",
        xlabel="ε of the training, to the coordinator",
        ylabel="noise multiplier (noise std / clipping norm)",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25, which="both")
    axes.legend(edgecolor="none", framealpha=1, loc="lower left")  # no line runs through it
