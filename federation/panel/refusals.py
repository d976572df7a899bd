"""Whatever goes wrong at a panel's desk, in sentences: the command and the site say the same."""

from pydantic import ValidationError

from federation.decision import DecisionError
from federation.panel.files import UNREADABLE, PanelError
from federation.plan import sentences
from federation.server.registry import RegistryError

REFUSALS = (RegistryError, OSError, *UNREADABLE)  # all others are ValueErrors, which UNREADABLE has


def sentences_of(error: Exception) -> list[str]:
    """One of `REFUSALS` as what a person is told."""
    match error:
        case PanelError() | DecisionError() | RegistryError():
            return str(error).splitlines()
        case ValidationError():
            return sentences(error)
        case OSError():
            what = error.filename or "a file"
            return [f"{what} cannot be used ({error.strerror}): see to its permissions, and to free space"]
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return [
        f"something that was given cannot be read ({what}): it is not as fedrisk writes it; nothing more was done"
    ]
