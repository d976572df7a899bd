"""Reading a contract's YAML form: what each key may be, and the rules that tie the parts together.

Nothing stops at the first mistake: `read` gives a contract (with neutral values where something was
wrong) and every problem as a sentence. Used by `Contract.from_dict` alone.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from models.contract import (
    MAX_GROUPS,
    MAX_USER_CELLS,
    NOTHING_SAID,
    About,
    Block,
    Category,
    Column,
    Contract,
    Flag,
    Group,
    Intensity,
    Label,
    LeadTime,
    Level,
    Match,
    MatchRule,
    Number,
    Ordinal,
    Practice,
    Unit,
)
from models.section import Section
from models.table import MISSING_TEXT

INDICATOR: tuple[Literal["indicator"]] = ("indicator",)
LEVEL: tuple[Literal["level"]] = ("level",)
TYPES: tuple[Literal["number", "ordinal", "category", "flag"], ...] = (
    "number",
    "ordinal",
    "category",
    "flag",
)
MATCH_RULES: Mapping[MatchRule, tuple[str, ...]] = MappingProxyType(
    {
        "identifier": ("identifier",),
        "initial-surname-born": ("name", "born"),
        "name-born-postcode": ("name", "born", "postcode"),
    }
)
"""Rule -> the settings that it reads, all of them."""
UNITS: tuple[Literal["person", "row"], ...] = ("person", "row")


def read(values: Mapping[str, Any]) -> tuple[Contract, tuple[str, ...]]:
    """The contract in `values`, and every problem it has; usable only where there is none."""
    top = Section(values, "", [])
    contract = Contract(
        name=top.slug("name"),
        version=top.whole("version", 1),
        description=top.optional_text("description") or "",
        purpose=top.slug("purpose"),
        unit=_unit(top.section("unit")),
        columns=tuple(_columns(top)),
        label=_label(top.section("label")),
        groups=tuple(
            _group(name, Section(value, path, top.problems)) for name, value, path in top.named("groups")
        ),
        blocks=tuple(
            _block(name, Section(value, path, top.problems)) for name, value, path in top.named("blocks")
        ),
        kinds=top.texts("kinds") if "kinds" in top else (),
        site=top.optional_text("site"),
        split=_split(top),
        intensity=_intensity(top),
        lead_time=_lead_time(top),
        practice=_practice(top),
        match=_match(top),
    )
    top.close()
    return contract, tuple(dict.fromkeys((*top.problems, *_rules(contract))))


def _columns(top: Section) -> Iterator[Column]:
    for name, value, path in top.named("columns"):
        section = Section(value, path, top.problems)
        match section.choice("type", TYPES):
            case "number":
                yield _number(name, section)
            case "ordinal":
                levels, missing = _levels(section, at_least=2), section.choice("missing", INDICATOR)
                if "other" in levels:
                    section.say("levels", "may not list 'other', which has no place in an order")
                yield Ordinal(name, levels, missing, section.optional_text("block"), _about(section))
                section.close()
            case "category":
                levels, allowed = _levels(section, at_least=1), section.choice("missing", LEVEL)
                yield Category(name, levels, allowed, section.optional_text("block"), _about(section))
                section.close()
            case "flag":
                missing = section.choice("missing", INDICATOR)
                yield Flag(name, missing, section.optional_text("block"), _about(section))
                section.close()
            case None:
                if "type" not in section:
                    section.say("type", f"is required: {', '.join(TYPES)}")
                yield Flag(
                    name, None, section.optional_text("block")
                )  # stands in, so the rest can be checked


def _number(name: str, section: Section) -> Number:
    column = Number(
        name,
        min=section.number("min"),
        max=section.number("max"),
        unit=section.optional_text("unit") or "",
        log=section.boolean("log", False),
        center=section.optional_number("center"),
        scale=section.optional_number("scale"),
        missing=section.choice("missing", INDICATOR),
        block=section.optional_text("block"),
        about=_about(section),
    )
    section.close()
    if column.min >= column.max:
        section.say("min", f"must be below max, got {column.min:g} and {column.max:g}")
    elif column.center is not None and not column.range[0] <= column.center <= column.range[1]:
        where = "on the logged scale from 0 to 1" if column.log else "from min to max"
        section.say("center", f"must be {where}, got {column.center:g}")
    if column.scale is not None and column.scale <= 0:
        section.say("scale", f"must be above 0, got {column.scale:g}")
    return column


def _about(column: Section) -> About:
    """`about: {description, proxy_for, actionable}`, each of which may be left out."""
    if "about" not in column:
        column.take("about")
        return NOTHING_SAID
    section = column.section("about")
    about = About(
        section.optional_text("description") or "",
        section.optional_text("proxy_for"),
        section.boolean("actionable", True),
    )
    section.close()
    return about


def _levels(section: Section, at_least: int) -> tuple[str, ...]:
    levels = section.texts("levels")
    _no_missing_text(section, "levels", levels)
    if 0 < len(levels) < at_least:
        section.say("levels", f"must list at least {at_least}")
    return levels


def _no_missing_text(section: Section, key: str, values: Iterable[str]) -> None:
    for value in values:
        if value in MISSING_TEXT:
            section.say(key, f"may not list {value!r}: a cell that says so is read as missing")
        elif value != value.strip():
            section.say(key, f"may not list {value!r}: spaces around a cell are not read")


def _group(name: str, section: Section) -> Group:
    edges = section.numbers("edges")
    levels = tuple(
        _group_level(item, path, value, section, bool(edges)) for item, value, path in section.named("levels")
    )
    group = Group(name, section.text("column"), levels, edges, section.boolean("other", True))
    section.close()
    if not levels:
        section.say("levels", "is required: which levels does the audit compare?")
    _fit(levels, edges, section)
    return group


def _fit(levels: tuple[Level, ...], edges: tuple[float, ...], section: Section) -> None:
    """Say where levels and edges do not go together."""
    if levels and edges and len(levels) != len(edges) + 1:
        section.say("levels", f"must be one more than edges, got {len(levels)} levels and {len(edges)} edges")
    if any(low >= high for low, high in itertools.pairwise(edges)):
        section.say("edges", "must ascend")
    uses = Counter(value for level in levels for value in level.values)
    for value in sorted(value for value, count in uses.items() if count > 1):
        section.say("levels", f"list the value {value!r} twice")


def _group_level(name: str, path: str, value: object, group: Section, cut: bool) -> Level:
    """A level: `female: [F, Female]`, a name alone (its own value, or a band between edges), or canonical."""
    if not isinstance(value, Mapping):
        value = {"values": value}
    listed = "values" in value
    section = Section(value, path, group.problems)
    if cut:
        if listed:
            section.say("values", "may not be listed where edges cut numbers")
        return Level(name)
    values = section.texts("values") if listed else (name,)
    section.close()
    _no_missing_text(section, "values", values)
    return Level(name, values)


def _intensity(top: Section) -> Intensity | None:
    if top.take("intensity") is None:
        return None
    section = top.section("intensity")
    edges = section.numbers("edges")
    levels = tuple(
        _group_level(item, path, value, section, bool(edges)) for item, value, path in section.named("levels")
    )
    found = Intensity(section.text("column"), levels, edges, section.optional_text("description") or "")
    section.close()
    if len(levels) < 2:
        section.say("levels", "must list at least 2, the least intensive first and the most intensive last")
    if "other" in {level.name for level in levels}:
        section.say("levels", "may not list 'other', which is for people whose use is not known")
    _fit(levels, edges, section)
    return found


def _lead_time(top: Section) -> LeadTime | None:
    if top.take("lead_time") is None:
        return None
    section = top.section("lead_time")
    edges = section.numbers("edges")
    found = LeadTime(
        section.text("column"), edges, section.text("unit"), section.optional_text("description") or ""
    )
    section.close()
    if not edges:
        section.say("edges", "is required: numbers above 0 where bands of time end")
    elif not edges[0] > 0 or any(low >= high for low, high in itertools.pairwise(edges)):
        section.say("edges", "must be above 0 and ascend")
    return found


def _practice(top: Section) -> Practice | None:
    if top.take("practice") is None:
        return None
    section = top.section("practice")
    found = Practice(
        section.text("column"), section.texts("positive"), section.optional_text("description") or ""
    )
    section.close()
    _no_missing_text(section, "positive", found.positive)
    return found


def _match(top: Section) -> Match | None:
    """`match: {identifier: COLUMN}`, or `{name: [COLUMN, ...], born: COLUMN}` with a postcode or without."""
    if top.take("match") is None:
        return None
    section = top.section("match")
    said = section.choice("rule", tuple(MATCH_RULES))
    rule: MatchRule = said or (
        "identifier"
        if "identifier" in section
        else "name-born-postcode"
        if "postcode" in section
        else "initial-surname-born"
    )
    found = Match(
        rule,
        section.optional_text("identifier"),
        section.texts("name") if "name" in section else (),
        section.optional_text("born"),
        section.optional_text("postcode"),
    )
    section.close()
    if said is None and not found.columns:
        top.say("match", "must name an identifier, or name and born, with a postcode or without")
        return None
    for key in ("identifier", "name", "born", "postcode"):
        if key in MATCH_RULES[rule] and not getattr(found, key):
            section.say(key, f"is required by the rule {rule}, which reads {', '.join(MATCH_RULES[rule])}")
        elif key not in MATCH_RULES[rule] and getattr(found, key):
            section.say(key, f"must be left out: the rule {rule} reads {', '.join(MATCH_RULES[rule])} alone")
    if len(found.name) > 2:
        section.say("name", "must list two columns, forenames and surname, or one that has both")
    return found


def _block(name: str, section: Section) -> Block:
    block = Block(name, section.texts("held_by"))
    section.close()
    return block


def _label(section: Section) -> Label:
    label = Label(
        column=section.text("column"),
        positive=section.texts("positive"),
        horizon=section.text("horizon"),
        description=section.optional_text("description") or "",
        held_by=section.texts("held_by") if "held_by" in section else None,
    )
    section.close()
    _no_missing_text(section, "positive", label.positive)
    return label


def _unit(section: Section) -> Unit:
    kind = section.choice("kind", UNITS)
    if "kind" not in section:
        section.say("kind", "is required: person, or row where the data has no person key")
    unit = Unit(
        kind or "person",
        section.optional_text("column"),
        section.whole("rows", 1),
        section.optional_text("order_by"),
    )
    section.close()
    if kind == "person" and not unit.column:
        section.say("column", "is required where the unit is a person")
    if kind == "row" and unit != Unit("row"):
        section.say("kind", "is row, so column, rows and order_by must be left out")
    return unit


def _split(top: Section) -> str | None:
    """`split: {column: split}`, or the column's name alone."""
    if isinstance(top.take("split"), Mapping):
        section = top.section("split")
        name = section.text("column")
        section.close()
        return name or None
    return top.optional_text("split")


def _rules(contract: Contract) -> Iterator[str]:
    """What must hold between the parts."""
    yield from _column_rules(contract)
    yield from _kind_rules(contract)
    yield from _group_rules(contract)
    yield from _user_rules(contract)
    yield from _match_rules(contract)


def _column_rules(contract: Contract) -> Iterator[str]:
    unit, label = contract.unit, contract.label
    features = Counter(name for column in contract.columns for name in column.features)
    yield from (f"columns: two features would be called {name!r}" for name, n in features.items() if n > 1)
    if not contract.columns:
        yield "columns must have at least one column"
    names = {column.name for column in contract.columns}
    roles = {"label.column": label.column, "unit.column": unit.column, "split": contract.split}
    for role, name in roles.items():
        if name in names:
            yield f"{role} {name!r} must not be a feature too: remove it from columns"
    used = Counter(name for name in roles.values() if name)
    yield from (
        f"label, unit and split must have columns of their own, got {name!r} twice"
        for name in used - Counter(set(used))
    )
    blocks = {block.name for block in contract.blocks}
    for column in contract.columns:
        if column.block is not None and column.block not in blocks:
            yield f"columns.{column.name}.block must be one of the blocks, got {column.block!r}"
        proxy = column.about.proxy_for
        if proxy is not None and proxy not in {group.name for group in contract.groups}:
            yield f"columns.{column.name}.about.proxy_for must be one of the groups, got {proxy!r}"
        if column.block is not None and column.name == unit.order_by:
            yield f"unit.order_by {column.name!r} must not be in a block: every agency needs it"


def _kind_rules(contract: Contract) -> Iterator[str]:
    label = contract.label
    lists = {f"blocks.{block.name}.held_by": block.held_by for block in contract.blocks}
    lists["label.held_by"] = label.held_by or ()
    for path, kinds in lists.items():
        for kind in kinds:
            if contract.kinds and kind not in contract.kinds:
                yield f"{path} names {kind!r}, which is not one of kinds"
    used = {column.block for column in contract.columns}
    for block in contract.blocks:
        if block.name not in used:
            yield f"blocks.{block.name} has no column: give one `block: {block.name}` or remove it"
        if block.held_by and not any(map(contract.holds_label, block.held_by)):
            yield f"blocks.{block.name} is held by no kind that holds the label, so nothing learns from it"


def _group_rules(contract: Contract) -> Iterator[str]:
    columns = {column.name: column for column in contract.columns}
    for group in contract.groups:
        column = columns.get(group.column)
        if group.column and group.column in (contract.label.column, contract.unit.column, contract.split):
            yield f"groups.{group.name}.column must not be the label, the person or the split"
        if group.edges and column is not None and not isinstance(column, Number):
            yield f"groups.{group.name}.edges needs a number, but columns.{column.name} is a {column.type}"
        if column is not None and column.block is not None and not group.other:
            yield f"groups.{group.name}.other must not be false: not every agency holds its column"
    cells = math.prod(len(group.level_names) for group in contract.groups)
    if cells > MAX_GROUPS:
        yield f"groups must have at most {MAX_GROUPS} combinations of levels, got {cells}"


def _user_rules(contract: Contract) -> Iterator[str]:
    """What intensity, lead time and practice may share a column with: lead time and practice with nothing at all."""
    columns = {column.name: column for column in contract.columns}
    groups = {group.column: group.name for group in contract.groups}
    unit = contract.unit
    roles = {"label": contract.label.column, "unit": unit.column, "split": contract.split}
    taken = {name: f"the column of {role}" for role, name in roles.items() if name}
    intensity, own = contract.intensity, {"lead_time": contract.lead_time, "practice": contract.practice}
    if intensity is not None:
        if intensity.column in taken:
            yield f"intensity.column {intensity.column!r} must not be {taken[intensity.column]}"
        column = columns.get(intensity.column)
        if intensity.edges and column is not None and not isinstance(column, Number):
            yield f"intensity.edges needs a number, but columns.{column.name} is a {column.type}"
        if not intensity.edges and intensity.column in contract.number_columns:
            yield f"intensity.edges is required, for {intensity.column!r} is read as a number"
        taken[intensity.column] = "the column of intensity"
    taken |= {name: f"the column of the group {group}" for name, group in groups.items()}
    if unit.order_by:
        taken[unit.order_by] = "the column of unit.order_by"
    why = {"lead_time": "it is known only once the outcome is", "practice": "it is compared with the model"}
    for key, declared in own.items():
        if declared is None or not declared.column:
            continue
        if declared.column in columns:
            yield f"{key}.column {declared.column!r} must not be a feature too, for {why[key]}: remove it from columns"
        elif declared.column in taken:
            yield f"{key}.column {declared.column!r} must not be {taken[declared.column]}, for {why[key]}"
        taken[declared.column] = f"the column of {key}"
    shape = contract.users_shape
    if shape is not None and math.prod(shape) > MAX_USER_CELLS:
        yield (
            f"intensity, lead_time and practice must have at most {MAX_USER_CELLS} combinations, got "
            f"{math.prod(shape)}: declare fewer levels or edges"
        )


def _match_rules(contract: Contract) -> Iterator[str]:
    """What names a person is for matching alone; only an identifier may be the column of the unit as well."""
    unit, match = contract.unit, contract.match
    if match is None:
        return
    taken = {name: "another part of it" for name, uses in Counter(match.columns).items() if uses > 1}
    taken |= {column.name: "a feature" for column in contract.columns}
    taken |= {group.column: f"the column of the group {group.name}" for group in contract.groups}
    taken |= dict.fromkeys(contract.user_columns, "a column of intensity, lead_time or practice")
    roles = {"label": contract.label.column, "unit.order_by": unit.order_by, "split": contract.split}
    roles |= {"site": contract.site, "unit": unit.column}
    taken |= {name: f"the column of {role}" for role, name in roles.items() if name}
    if unit.column and unit.column == match.identifier:
        del taken[unit.column]
    yield from (
        f"match: the column {name!r} must not be {taken[name]} too: it tells who a person is, and only a cohort reads it"
        for name in dict.fromkeys(match.columns)
        if name in taken
    )
