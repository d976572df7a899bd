"""A panel's folder: panel.toml says who its members are; history.jsonl and drafts/ what they said.

`PanelError` is what any command of a panel says where something does not fit.
"""

import os
import secrets
import tomllib
from pathlib import Path

import tomli_w
from pydantic import ValidationError

from federation.decision import Panel
from federation.durable import sync_folder, write_whole
from federation.plan import sentences

# What reading a file that somebody else wrote may raise, where it is nested too deeply or holds other types.
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,  # PydanticSerializationError and DecisionError are too
)
PANEL, HISTORY, DRAFTS = "panel.toml", "history.jsonl", "drafts"


class PanelError(ValueError):
    """What is wrong, which rule, what to do; a line for each problem."""


def make_folder(folder: Path, panel: Panel) -> None:
    """A new panel's folder; nothing that is there is changed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DRAFTS).mkdir(exist_ok=True)
    if (folder / HISTORY).exists():
        raise PanelError(
            f"{folder / HISTORY} exists: what a panel said stays with its members; name another folder"
        )
    write_new(folder / PANEL, tomli_w.dumps(panel.model_dump()).encode())


def read_panel(folder: Path) -> Panel:
    """Who decides here; `PanelError` has every problem."""
    path = folder / PANEL
    try:
        return Panel.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PanelError(
            f"{path} is not there: name the panel's folder with --folder, or make one with fedrisk-panel init"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PanelError(f"{path} is not TOML ({error}): correct it") from None
    except ValidationError as error:
        raise PanelError("\n".join(f"{path.name}: {line}" for line in sentences(error))) from None
    except RecursionError:
        raise PanelError(f"{path} is nested too deeply: correct it") from None


def node_section(panel: Panel) -> str:
    """The lines that an agency puts into its node.toml."""
    return tomli_w.dumps({"panel": panel.model_dump()})


def write_new(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put `content` into the new file `path`: whole, on the disk, and never in place of another."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_whole(beside, content, mode=mode)
    try:
        os.link(beside, path)
    except FileExistsError:
        raise PanelError(f"{path} exists and stays as it is: name another, or remove it first") from None
    finally:
        beside.unlink()
    sync_folder(path.parent)
