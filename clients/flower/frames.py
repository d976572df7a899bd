"""Frames between the node's two processes, over pipes: a length, a line of JSON, and bytes."""

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

from clients.flower.envelope import Answer, Task

HEAD = struct.Struct(">Q")
LARGEST = 2**31


class PipeEnded(EOFError):
    """The process at the other end is gone."""


def write(pipe: IO[bytes], facts: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None) -> None:
    """One frame; `PipeEnded` where nobody reads any more."""
    blobs = blobs or {}
    head = json.dumps({"facts": facts, "blobs": [[name, len(blob)] for name, blob in blobs.items()]}).encode()
    try:
        pipe.write(HEAD.pack(len(head)) + head)
        for blob in blobs.values():
            pipe.write(blob)
        pipe.flush()
    except (BrokenPipeError, ValueError):
        raise PipeEnded("nobody reads any more") from None


def read(pipe: IO[bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The next frame; `PipeEnded` where the other end closed, even in the middle of one."""
    (length,) = HEAD.unpack(_exactly(pipe, HEAD.size))
    head = json.loads(_exactly(pipe, length))
    return head["facts"], {name: _exactly(pipe, size) for name, size in head["blobs"]}


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = b"" if size > LARGEST else pipe.read(size)
    if len(data) != size:
        raise PipeEnded("the other end closed")
    return data


def of_task(task: Task) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A task as a frame."""
    facts = {
        "run_id": task.run_id,
        "node_id": task.node_id,
        "message_id": task.message_id,
        "fab_hash": task.fab_hash,
        "fab_version": task.fab_version,
    }
    return facts, dict(task.objects)


def task_of(facts: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Task:
    """The inverse of `of_task`."""
    return Task(
        run_id=facts["run_id"],
        node_id=facts["node_id"],
        message_id=facts["message_id"],
        fab_hash=facts["fab_hash"],
        fab_version=facts["fab_version"],
        objects=blobs,
    )


def of_answer(answer: Answer) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A reply as a frame."""
    blobs = {"message": answer.message, "tree": answer.tree}
    return {"run_id": answer.run_id}, blobs | {
        f"object/{name}": blob for name, blob in answer.objects.items()
    }


def answer_of(facts: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Answer:
    """The inverse of `of_answer`."""
    objects = {name.removeprefix("object/"): blob for name, blob in blobs.items() if "/" in name}
    return Answer(facts["run_id"], blobs["message"], blobs["tree"], objects)
