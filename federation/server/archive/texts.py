"""What MLflow is told in words: params, tags and JSON, without a path, a host, a person or an unpublishable number."""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from federation.server.archive.names import part

LONGEST_PARAM = 6000  # characters; MLflow's own limit


def published(value: Any) -> Any:
    """A copy of result.json in which estimates that may not be published are empty; their flag stays."""
    if isinstance(value, Mapping):
        hidden = ("value", "low", "high", "attribute") if value.get("publishable") is False else ()
        return {key: None if key in hidden else published(entry) for key, entry in value.items()}
    return [published(entry) for entry in value] if isinstance(value, list | tuple) else value


def flat_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config as MLflow params, `privacy.noise_multiplier` -> "1.1"; a text too long for it by its hash."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flat_params(value, f"{prefix}{key}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=plain)
        if len(text) > LONGEST_PARAM:
            text = f"in config.json, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"
        out[re.sub(r"[^A-Za-z0-9_. -]", "_", f"{prefix}{key}")[:240]] = text
    return out


def environment() -> dict[str, Any]:
    """Python and package versions; nothing that names a machine or a person."""
    packages = {
        d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]
    }
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def neutral(value: Any) -> Any:
    """A copy in which absolute paths and addresses keep their last part: no user, no host, no password."""
    if isinstance(value, Mapping):
        return {key: neutral(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [neutral(entry) for entry in value]
    if not isinstance(value, str):
        return value
    scheme, is_address, rest = value.partition("://")
    if is_address and " " not in scheme:
        return f"{scheme}://.../{rest.rpartition('/')[2]}" if "/" in rest else f"{scheme}://..."
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~"):
        return f".../{PureWindowsPath(value).name}"
    return value


def plain(value: Any) -> Any:
    """JSON for what a record may hold: numpy, agreed values, paths."""
    for name in ("to_dict", "model_dump", "tolist"):
        if hasattr(value, name):
            return getattr(value, name)()
    return dict(value) if isinstance(value, Mapping) else str(value)


def as_json(value: Any) -> str:
    """JSON of `value`, one key a line, in the order of the alphabet."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def tags_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The scalars among `facts` as tags `fedrisk.NAME`."""
    scalars = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    return {f"fedrisk.{part(key)}": str(neutral(value))[:1000] for key, value in scalars.items()}
