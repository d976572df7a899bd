"""One order is one draw: what a node remembers so that a crash, or an order that comes twice, costs nothing.

Before an order is charged, a fresh key for all its randomness is on the disk; once the reply is on the disk too, the
key is gone, and only then does the reply leave. So an order whose node was killed half way is computed again with
the same randomness, under the same charge (the first draw was never seen), and an order that is known gets the reply
that was made, which is no new release. A key is good for the records that it was made for and no others: with the
same noise on two tables, their difference would show. (Whoever reads a key here can read the records beside it.)
"""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from clients.randomness import Stream
from federation.durable import write_whole

KEY_BYTES, DIGEST_BYTES = 32, 32
REPLIES = 32  # that are kept: an order is asked again soon, or never


@dataclass(frozen=True)
class Draw:
    """The randomness of one order. `again`: it was begun before, with the same records, and never left."""

    key: bytes
    again: bool = False

    def stream(self, purpose: str) -> Stream:
        """One stream for each purpose: none depends on how much of another was used."""
        return Stream(hashlib.blake2b(purpose.encode(), key=self.key, digest_size=32).digest())


def fresh_draw() -> Draw:
    """A draw that nothing remembers."""
    return Draw(secrets.token_bytes(KEY_BYTES))


class Draws:
    """The files in `folder` (mode 0700, made when needed), one or two for each order of the last few."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reply(self, order: str) -> bytes | None:
        """The reply that `order` got, if it is still kept."""
        try:
            return self._path(order, "reply").read_bytes()
        except FileNotFoundError:
            return None

    def begin(self, order: str, records: bytes) -> Draw:
        """The draw of `order` on records with the digest `records` (32 bytes); on the disk when this returns."""
        path = self._path(order, "key")
        try:
            kept = path.read_bytes()
        except FileNotFoundError:
            kept = b""
        if len(kept) == KEY_BYTES + DIGEST_BYTES and kept[KEY_BYTES:] == records:
            return Draw(kept[:KEY_BYTES], again=True)
        draw = fresh_draw()
        self._write(path, draw.key + records)
        return draw

    def keep(self, order: str, reply: bytes) -> None:
        """Keep the reply, then forget the key; the reply may leave when this returns."""
        self._write(self._path(order, "reply"), reply)
        self._path(order, "key").unlink(missing_ok=True)
        self._prune()

    def _prune(self) -> None:
        kept = sorted(self.folder.glob("*.reply"), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-REPLIES]:
            path.unlink(missing_ok=True)

    def _path(self, order: str, what: str) -> Path:
        return self.folder / f"{hashlib.sha256(order.encode()).hexdigest()[:40]}.{what}"

    def _write(self, path: Path, content: bytes) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, content)
