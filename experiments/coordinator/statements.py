"""An agency's word that it has left (`left.json`, signed with its node's key), checked and kept as evidence."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from clients.desk.leaving import verify_statement
from experiments.coordinator.folder import CoordinatorError, Enrolled, Folder, write_whole
from experiments.coordinator.registry import fingerprint
from federation.server.joining import Departures


def read(path: Path, agency: Enrolled) -> dict[str, Any]:
    """The statement in `path`; `CoordinatorError` unless this agency's enrolled key signed it."""
    try:
        statement = json.loads(path.read_text())
        key = load_ssh_public_key(str(statement["key"]).encode())
        fits = isinstance(key, ec.EllipticCurvePublicKey) and fingerprint(key) == agency.fingerprint
        fits = fits and statement["agency"] == agency.name and verify_statement(statement, key)  # type: ignore[arg-type]
    except (OSError, KeyError, TypeError, ValueError):
        raise CoordinatorError(
            f"{path} is no statement: ask {agency.name} for its left.json, as `fedrisk-node stop --leave` wrote it"
        ) from None
    if not fits:
        raise CoordinatorError(
            f"{path} is not signed by {agency.name}'s enrolled key ({agency.fingerprint}), or was changed: ask for it anew"
        )
    return dict(statement)


def keep(folder: Folder, agency: Enrolled, statement: dict[str, Any]) -> Path:
    """Put it with the coordinator's evidence; results and reports say from now on that the agency is gone."""
    kept = folder.at("statements")
    kept.mkdir(mode=0o700, exist_ok=True)
    path = kept / f"left-{agency.name}-{str(statement['at'])[:10]}.json"
    write_whole(path, json.dumps(statement, indent=1).encode(), mode=0o600)
    folder.at("outputs").mkdir(mode=0o700, exist_ok=True)
    Departures(folder.at("outputs")).note({agency.name: {"status": "left"}}, "", 0)
    return path
