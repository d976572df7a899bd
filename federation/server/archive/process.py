"""The writer process: JSON lines in, one answer each. A run is never held up by MLflow, nor ended by it."""

import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from federation.server.archive.writer import Writer


def serve(lines: Iterable[bytes], answer: Callable[[str | None, str | None], None]) -> None:
    """The writer's loop: a JSON line in; out, the trouble in a sentence or None, and the page of the charts once it is known.

    No more lines: the run was killed.
    """
    messages = map(json.loads, lines)
    opening = next(messages, None)
    if opening is None:
        return
    state = None if opening["state"] is None else Path(opening["state"])
    writer = Writer(opening["uri"], opening["experiment"], artifacts=opening["artifacts"], state=state)
    ended = False
    for message in itertools.chain([opening], messages):
        ended = message["do"] in ("finish", "fail")
        try:
            _act(writer, message)
            answer(None, writer.page)
        except Exception as error:
            logging.getLogger("fedrisk.tracking").exception("%s failed", message["do"])
            answer(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}", writer.page)
    if not ended:
        writer.fail("the run was killed; fedrisk resume continues it", status="KILLED")


def _act(writer: Writer, message: Mapping[str, Any]) -> None:
    match message["do"]:
        case "open":
            writer.connect()
        case "start":
            writer.start(message["header"])
        case "round":
            writer.round(message["record"], message["at"])
        case "checkpoint":
            writer.checkpoint(message["record"], message["at"])
        case "finish":
            writer.finish(message["result"], Path(message["folder"]), message["at"])
        case "fail":
            writer.fail(message["reason"])


def main() -> None:
    """The writer process. Answers go to the real stdout; whatever MLflow prints goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(
            sys.stdin.buffer,
            lambda trouble, page: print(
                json.dumps({"trouble": trouble, "page": page}), file=answers, flush=True
            ),
        )
    sys.stderr.flush()
    os._exit(0)  # all is committed, and taking MLflow's modules down takes longer than the last batch
