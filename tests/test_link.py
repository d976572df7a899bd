"""The node's line, against a SuperLink that a test plays: parts that come late, orders that are too large, lost replies."""

from collections.abc import Callable
from types import SimpleNamespace as Said
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node

from clients.flower import link as links
from clients.flower.envelope import Answer
from clients.flower.link import Link, LinkError, RunIsOver

PART = "ab" * 32


class Fleet:
    """What a SuperLink answers; `calls` are what it was asked."""

    def __init__(self, **answers: Callable[[Any], Any]) -> None:
        self.calls: list[str] = []
        self._answers = answers

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        def answer(request: Any) -> Any:
            self.calls.append(name)
            return self._answers[name](request)

        return answer


def link_to(fleet: Fleet) -> Link:
    found = Link("127.0.0.1:1", ec.generate_private_key(ec.SECP384R1()), certificate=None, insecure=True)
    found.close()
    found._client = fleet  # type: ignore[assignment]
    found._node = Node(node_id=7)
    return found


def an_order(_: Any) -> Any:
    message = MessageProto()
    message.metadata.run_id = 3
    return Said(messages_list=[message], message_object_trees=[ObjectTree(object_id=PART)])


def a_part(content: bytes, waits: int = 0) -> Callable[[Any], Any]:
    left = [waits]

    def answer(_: Any) -> Any:
        left[0] -= 1
        return Said(object_found=True, object_available=left[0] < 0, object_content=content)

    return answer


def a_run(_: Any) -> Any:
    return Said(run=Said(fab_hash="cd" * 32, fab_version="1"))


def test_a_part_that_is_on_its_way_is_waited_for_and_the_bundle_is_never_asked_for() -> None:
    fleet = Fleet(
        PullMessages=an_order, PullObject=a_part(b"x", 2), ConfirmMessageReceived=lambda _: None, GetRun=a_run
    )
    task = link_to(fleet).pull()
    assert task is not None
    assert (task.run_id, task.node_id, task.message_id, task.fab_hash) == (3, 7, PART, "cd" * 32)
    assert task.objects == {PART: b"x"}
    assert fleet.calls.count("PullObject") == 3
    assert "GetFab" not in fleet.calls


def test_an_order_that_is_too_large_is_left_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LARGEST_ORDER", 10)
    fleet = Fleet(PullMessages=an_order, PullObject=a_part(b"x" * 11))
    with pytest.raises(LinkError, match="an order is larger than") as refused:
        link_to(fleet).pull()
    assert refused.value.is_open
    assert "ConfirmMessageReceived" not in fleet.calls


def test_a_part_that_nobody_has_is_one_sentence() -> None:
    fleet = Fleet(PullMessages=an_order, PullObject=lambda _: Said(object_found=False))
    with pytest.raises(LinkError, match="a part of an order is not there"):
        link_to(fleet).pull()


ANSWER = Answer(
    3, MessageProto().SerializeToString(), ObjectTree(object_id=PART).SerializeToString(), {PART: b"x"}
)


def test_a_reply_is_pushed_whole_and_says_nothing_about_how_long_it_took() -> None:
    sent: list[Any] = []

    def push(request: Any) -> Any:
        sent.append(request)
        return Said(objects_to_push=[PART], session_id="s")

    def part(request: Any) -> Any:
        sent.append(request)
        return Said(stored=True)

    link_to(Fleet(PushMessages=push, PushObject=part)).push(ANSWER)
    assert list(sent[0].clientapp_runtime_list) == [0.0]
    assert (sent[1].object_id, sent[1].object_content) == (PART, b"x")


def refused(status: int, text: str = "", **headers: str) -> Callable[[Any], Any]:
    def answer(_: Any) -> Any:
        request = httpx.Request("POST", "https://host/v1/fleet/pull-messages")
        response = httpx.Response(status, text=text, headers=headers, request=request)
        raise httpx.HTTPStatusError("no", request=request, response=response)

    return answer


def broken(error: Exception) -> Callable[[Any], Any]:
    def answer(_: Any) -> Any:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "says", "is_open"),
    [
        (refused(502), "answers with HTTP status 502", True),
        (refused(404), "does not answer as a SuperLink", True),
        (refused(401, date="Wed, 25 Nov 2026 10:00:00 GMT"), "clock is wrong .*25 Nov 2026 10:00:00", False),
        (refused(412, '{"code": 2004, "detail": ""}'), "its key is not enrolled there", False),
        (broken(httpx.ConnectError("[Errno 111] Connection refused")), "cannot be reached", True),
        (broken(httpx.ReadTimeout("")), r"cannot be reached \(no answer\)", True),
        (broken(ValueError("Invalid protobuf response payload")), "does not answer as a SuperLink", True),
        (broken(SystemExit(1)), "does not answer as a SuperLink", True),
    ],
)
def test_whatever_breaks_is_one_sentence(answer: Callable[[Any], Any], says: str, is_open: bool) -> None:
    with pytest.raises(LinkError, match=says) as told:
        link_to(Fleet(PullMessages=answer)).pull()
    assert told.value.is_open == is_open
    assert "\n" not in str(told.value)


def test_a_reply_for_a_run_that_is_over_is_not_sent_again() -> None:
    fleet = Fleet(PushMessages=refused(412, '{"code": 2007, "detail": ""}'))
    with pytest.raises(RunIsOver):
        link_to(fleet).push(ANSWER)
