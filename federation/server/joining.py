"""Who comes, and who goes for good: agencies join a running federation at the next round, and leave it by saying so."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from federation import wire
from federation.experiment import Experiment
from federation.plan import TrainPlan
from federation.protocol import Ready, Refusal
from federation.server.exchange import Federation, read, status_of

MAY_JOIN = {"late", "unavailable", "not yet", "closed", "busy"}  # of an agency that is not in: its status
KNOCK = 5  # rounds until a node that is not in is asked once more


class Door:
    """Between two rounds: lets in whoever has become ready, and asks those who may become so. It waits for nobody.

    Behind masks nobody joins a run: who shares the noise is part of its plan.
    """

    def __init__(self, grid: Grid, experiment: Experiment, federation: Federation) -> None:
        self._grid, self._federation = grid, federation
        contract = experiment.data_contract
        self._expected = {p.name for p in federation.plan.participants if contract.holds_label(p.kind)}
        self._fixed = federation.plan.circle is not None
        self._asked = dict.fromkeys(federation.ids.values(), 1)  # at the start, just now
        self._waiting: set[str] = set()

    def open(self, round_: int) -> list[str]:
        """Who joins at this round."""
        if self._fixed or not self._expected - set(self._federation.nodes):
            return []
        joined = self._let_in(round_)
        self._knock(round_)
        return joined

    def _let_in(self, round_: int) -> list[str]:
        found = list(self._grid.pull_messages(sorted(self._waiting))) if self._waiting else []
        self._waiting -= {message.metadata.reply_to_message_id for message in found}
        return [name for message in found for name in self._meet(message, round_)]

    def _meet(self, message: Message, round_: int) -> list[str]:
        reply, federation = None if message.has_error() else read(message), self._federation
        if not isinstance(reply, Ready | Refusal) or reply.agency not in self._expected - set(
            federation.nodes
        ):
            return []
        name = reply.agency
        federation.ids[name] = message.metadata.src_node_id
        if isinstance(reply, Refusal):
            federation.drop(name, status_of(reply.reason), reply.reason.value)
            return []
        federation.nodes = dict(sorted({**federation.nodes, name: message.metadata.src_node_id}.items()))
        federation.status[name] = {"status": "trained", "reason": f"joined at round {round_}"}
        federation.saw({name: reply.head})
        return [name]

    def _knock(self, round_: int) -> None:
        federation = self._federation
        out = {name for name, facts in federation.status.items() if facts["status"] not in MAY_JOIN}
        settled = {
            *federation.nodes.values(),
            *(federation.ids[name] for name in out if name in federation.ids),
        }
        nodes = [
            node
            for node in self._grid.get_node_ids()
            if node not in settled and round_ - self._asked.get(node, -KNOCK) >= KNOCK
        ]
        self._asked |= dict.fromkeys(nodes, round_)
        orders = [wire.pack_ready_order(federation.plan, node, federation.heads) for node in nodes]
        self._waiting |= {sent for sent in (self._grid.push_messages(orders) if orders else ()) if sent}


class Departures:
    """`departures.json`: which agencies have left, over all runs of this coordinator, when, and whether they came back."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "departures.json"

    def read(self) -> list[dict[str, Any]]:
        """Oldest first; nothing where there is no file or it does not decode."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return []
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def note(self, status: Mapping[str, Mapping[str, Any]], run_id: str, round_: int) -> None:
        """Add who has newly left, and mark who is back."""
        entries, now = self.read(), datetime.now(UTC).isoformat(timespec="seconds")
        away = {entry["agency"]: entry for entry in entries if entry["back"] is None}
        left = {name for name, facts in status.items() if facts["status"] == "left"}
        back = {name for name, facts in status.items() if facts["status"] == "trained"} & set(away)
        new = sorted(left - set(away))
        for name in back:
            away[name]["back"] = now
        entries += [
            {"agency": name, "at": now, "run_id": run_id, "round": round_, "back": None} for name in new
        ]
        if new or back:
            beside = self._path.with_suffix(".writing")
            beside.write_text(json.dumps(entries, indent=1))
            beside.replace(self._path)

    def of(self, plan: TrainPlan) -> list[dict[str, Any]]:
        """Those of the plan's participants."""
        names = {participant.name for participant in plan.participants}
        return [entry for entry in self.read() if entry["agency"] in names]


def away_of(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Who has left and is not back."""
    return sorted(str(entry["agency"]) for entry in entries if entry["back"] is None)


__all__ = ["Departures", "Door", "away_of"]
