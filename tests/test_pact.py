"""A secret agreed over a carrier that never has it: everybody has the same, nobody chose it, and nothing else passes."""

import dataclasses
import itertools
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import pact
from federation.pact import Circle, Greeting, Own
from federation.plan import Reason, Refused

NAMES = ("health", "housing", "police")
PLAN = "ab" * 32


class Agency:
    """One side of a set-up, with the pins of the others."""

    def __init__(
        self, name: str, root: bytes, attempt: int = 0, run_id: str = "run-1", plan: str = PLAN
    ) -> None:
        self.signing = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"-"))
        self.own = Own(run_id, plan, name, attempt, root)
        self.greeting = pact.greet(self.own, self.signing)

    def check(self, greetings: list[Greeting], asked: tuple[str, ...] = NAMES) -> Circle:
        return pact.check(greetings, self.own, asked=asked, pins=PINS)


def agency(name: str, **more: Any) -> Agency:
    return Agency(name, name.encode().ljust(32, b"r"), **more)


PINS = {name: agency(name).signing.public_key().public_bytes_raw() for name in NAMES}


def set_up(names: tuple[str, ...]) -> tuple[dict[str, Agency], Circle, dict[str, dict[str, bytes]]]:
    members = {name: agency(name) for name in names}
    greetings = [member.greeting for member in members.values()]
    circles = [member.check(greetings) for member in members.values()]
    assert len({circle.transcript for circle in circles}) == 1
    sealed = {name: pact.seal(member.own, circles[0]) for name, member in members.items()}
    return members, circles[0], sealed


def boxes_to(name: str, sealed: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    return {giver: boxes[name] for giver, boxes in sealed.items() if giver != name}


# --- laws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [NAMES, NAMES[:2], NAMES[1:]])
def test_all_members_have_one_secret(names: tuple[str, ...]) -> None:
    members, circle, sealed = set_up(names)
    found = {pact.agree(members[n].own, circle, boxes_to(n, sealed)) for n in names}
    assert len(found) == 1
    assert len(found.pop()) == 32


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=3, unique=True), st.integers(0, 31))
def test_every_byte_of_every_contribution_is_in_it(roots: list[bytes], place: int) -> None:
    def secret(roots: list[bytes]) -> bytes:
        members = [Agency(name, root) for name, root in zip(NAMES, roots, strict=False)]
        greetings = [member.greeting for member in members]
        circle = members[0].check(greetings)
        sealed = {m.own.agency: pact.seal(m.own, circle) for m in members}
        return pact.agree(members[0].own, circle, boxes_to(members[0].own.agency, sealed))

    last = bytearray(roots[-1])
    last[place] ^= 1
    assert secret(roots) == secret(roots) != secret([*roots[:-1], bytes(last)])


def test_no_message_has_the_secret_or_a_contribution() -> None:
    members, circle, sealed = set_up(NAMES)
    secret = pact.agree(members["police"].own, circle, boxes_to("police", sealed))
    sent = b"".join(part for boxes in sealed.values() for part in boxes.values())
    sent += b"".join(g.key + g.commitment + g.signature for g in circle.greetings)
    for name in NAMES:
        own = members[name].own
        for hidden in (secret, own.root, own.contribution(), own.key().private_bytes_raw()):
            assert hidden not in sent
    assert members["police"].own.root.hex() not in repr(members["police"].own)


def test_what_is_kept_reads_back() -> None:
    own, greeting = agency("police").own, agency("police").greeting
    assert Own.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert Greeting.from_dict(json.loads(json.dumps(greeting.to_dict()))) == greeting


# --- what does not pass -------------------------------------------------------------------------------

SMALL = bytes.fromhex(
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
)  # of order 8 (RFC 7748)


def resigned(greeting: Greeting, **changes: Any) -> Greeting:
    """`greeting` with `changes`, signed by its agency's own key: what a member that cheats can send."""
    changed = dataclasses.replace(greeting, **changes)
    signed = agency(greeting.agency).signing.sign(changed.signed("run-1", PLAN))
    return dataclasses.replace(changed, signature=signed)


POLICE, HEALTH, HOUSING = (agency(name).greeting for name in ("police", "health", "housing"))
BAD: dict[str, tuple[list[Greeting], str]] = {
    "a key of small order": ([POLICE, resigned(HEALTH, key=SMALL)], "hides nothing"),
    "a key of zeros": ([POLICE, resigned(HEALTH, key=bytes(32))], "hides nothing"),
    "a key above the prime": ([POLICE, resigned(HEALTH, key=b"\xff" * 32)], "hides nothing"),
    "no commitment": ([POLICE, resigned(HEALTH, commitment=b"")], "commits to nothing"),
    "an unsigned key": ([POLICE, dataclasses.replace(HEALTH, key=HOUSING.key)], "not signed by it"),
    "another's signature": ([POLICE, dataclasses.replace(HEALTH, signature=HOUSING.signature)], "not signed"),
    "another plan": ([POLICE, agency("health", plan="cd" * 32).greeting], "not signed by it for this plan"),
    "another run": ([POLICE, agency("health", run_id="run-0").greeting], "not signed by it for this plan"),
    "one alone": ([POLICE], "two agencies or more"),
    "one twice": ([POLICE, HEALTH, HEALTH], "each once"),
    "without oneself": ([HEALTH, HOUSING], "not among those"),
    "one's own of before": ([agency("police", attempt=1).greeting, HEALTH], "another set-up"),
    "a key of another": ([POLICE, resigned(HEALTH, key=POLICE.key)], "used twice"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_greetings_that_do_not_check_are_refused(name: str) -> None:
    greetings, sentence = BAD[name]
    with pytest.raises(Refused, match=sentence) as refused:
        agency("police").check(greetings)
    assert refused.value.reason is Reason.MASKS
    agency("police").check([POLICE, HEALTH])  # the control


def test_a_stranger_and_one_without_a_pin_are_refused() -> None:
    with pytest.raises(Refused, match="the plan does not ask 'housing'"):
        agency("police").check([POLICE, HEALTH, HOUSING], asked=("health", "police"))
    pins = {name: pin for name, pin in PINS.items() if name != "health"}
    with pytest.raises(Refused, match="no key is pinned for 'health'"):
        pact.check([POLICE, HEALTH], agency("police").own, asked=NAMES, pins=pins)


def test_boxes_that_are_missing_too_many_changed_or_anothers_are_refused() -> None:
    members, circle, sealed = set_up(NAMES)
    police, good = members["police"].own, boxes_to("police", sealed)
    flipped = bytes([*good["health"][:-1], good["health"][-1] ^ 1])
    bad = {
        "missing": ({"health": good["health"]}, "one box from each"),
        "too many": (good | {"police": good["health"]}, "one box from each"),
        "changed": (good | {"health": flipped}, "does not open"),
        "cut": (good | {"health": good["health"][:9]}, "does not open"),
        "another's": (good | {"health": good["housing"]}, "does not open"),
        "for another": (good | {"health": sealed["health"]["housing"]}, "does not open"),
    }
    for boxes, sentence in bad.values():
        with pytest.raises(Refused, match=sentence) as refused:
            pact.agree(police, circle, boxes)
        assert refused.value.reason is Reason.MASKS


def test_boxes_of_another_circle_do_not_open_so_nobody_can_be_left_out_for_some_alone() -> None:
    """The coordinator tells police of two members and health of three."""
    police, health = agency("police"), agency("health")
    of_two = police.check([POLICE, HEALTH])
    of_three = health.check([POLICE, HEALTH, HOUSING])
    with pytest.raises(Refused, match="does not open"):
        pact.agree(police.own, of_two, {"health": pact.seal(health.own, of_three)["police"]})


def test_a_member_cannot_send_two_members_different_contributions() -> None:
    members, circle, sealed = set_up(NAMES)
    health = members["health"]
    box = pact._box(health.own, circle, "police", "health", "police")
    nonce = bytes(12)
    other = nonce + box.encrypt(nonce, b"x" * 32, pact._bound(circle, "health", "police"))
    with pytest.raises(Refused, match="did not commit to"):
        pact.agree(members["police"].own, circle, boxes_to("police", sealed) | {"health": other})


def test_other_members_other_secrets() -> None:
    secrets = set()
    for names in [NAMES, *itertools.combinations(NAMES, 2)]:
        members, circle, sealed = set_up(tuple(names))
        name = names[0]
        secrets.add(pact.agree(members[name].own, circle, boxes_to(name, sealed)))
    assert len(secrets) == 4
