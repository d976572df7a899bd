"""Flower's messages as bytes: how an order crosses from the line to the worker, and the reply back.

The line handles bytes alone; here, in the worker, they become a `Message` and the reply becomes bytes. An object is
taken only under the hash that the message names it by. No pickle: Flower's own format, NumPy's for arrays.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity


@dataclass(frozen=True)
class Task:
    """One message as it came: the bytes of its objects by their hashes, and which bundle its run names."""

    run_id: int
    node_id: int
    message_id: str
    fab_hash: str
    fab_version: str
    objects: Mapping[str, bytes]


@dataclass(frozen=True)
class Answer:
    """One reply as it goes: Flower's two protobuf values, and the bytes of its objects by their hashes."""

    run_id: int
    message: bytes
    tree: bytes
    objects: Mapping[str, bytes]


class BadEnvelope(ValueError):
    """Bytes that are no message."""


def open_task(task: Task) -> Message:
    """The message of `task`, ready to be replied to; `BadEnvelope` where the bytes are not what their hashes say."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = task.run_id, task.node_id, 1
    for identifier, content in task.objects.items():
        if hashlib.sha256(content).hexdigest() != identifier:
            raise BadEnvelope("an object is not the one that its hash names")
    try:
        message = inflate_object_from_contents(task.message_id, dict(task.objects), keep_object_contents=True)
    except Exception:  # noqa: BLE001 - whatever Flower finds wrong with bytes from outside
        message = None
    if not isinstance(message, Message) or not message.has_content():
        raise BadEnvelope("the objects are no message")
    message.metadata.__dict__["_message_id"] = task.message_id
    return message


def seal(reply: Message, run_id: int) -> Answer:
    """The bytes of `reply`."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree = get_object_tree(reply)
        objects = {name: value.deflate() for name, value in get_all_nested_objects(reply).items()}
        head = message_to_proto(remove_content_from_message(reply))
    return Answer(run_id, head.SerializeToString(), tree.SerializeToString(), objects)
