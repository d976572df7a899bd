"""Masks: the sum comes out whole, a vector never does, and no coordinator gets two lists signed."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF
from Crypto.Protocol.SecretSharing import Shamir, _Element
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import masks, secagg
from federation.plan import Reason, Refused
from federation.secagg import Advert, Roster, Sealed, Secrets, UnmaskError

RUN, PLAN = "run-1", "ab" * 32
BYTES_DF = 255  # degrees of freedom of a histogram of bytes
FAR = BYTES_DF + 6 * math.sqrt(2 * BYTES_DF)  # a chi-square beyond this has a chance below 1e-7


class Agency:
    """One side of the protocol, with what its node would remember."""

    def __init__(self, name: str, draws: int, kind: type[Secrets] = Secrets, salt: str = "") -> None:
        self.name = name
        self.signing = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"sign {name}".encode()).digest())
        root = hashlib.sha256(f"root {name} {salt}".encode()).digest()
        self.secrets = kind(RUN, PLAN, name, draws, root)

    @property
    def pin(self) -> bytes:
        return self.signing.public_key().public_bytes_raw()


@dataclasses.dataclass(frozen=True)
class Setup:
    """A set-up that everyone has seen alike; `dealt[sender][receiver][draw]`."""

    agencies: Mapping[str, Agency]
    roster: Roster
    dealt: Mapping[str, Mapping[str, Sequence[Sealed]]]

    @property
    def pins(self) -> dict[str, bytes]:
        return {name: agency.pin for name, agency in self.agencies.items()}

    def mask(self, name: str, draw: int, vector: np.ndarray) -> np.ndarray:
        return secagg.mask(self.agencies[name].secrets, self.roster, draw, vector)

    def sign(self, name: str, draw: int, survivors: Sequence[str]) -> bytes:
        return secagg.sign_survivors(self.agencies[name].signing, self.roster, draw, survivors)

    def open(
        self, name: str, draw: int, survivors: Sequence[str], signatures: Mapping[str, bytes] | None = None
    ) -> dict[str, bytes]:
        if signatures is None:
            signatures = {each: self.sign(each, draw, survivors) for each in survivors}
        sealed = {sender: each[name][draw] for sender, each in self.dealt.items()}
        secrets = self.agencies[name].secrets
        return secagg.open_shares(secrets, self.roster, draw, survivors, signatures, sealed, self.pins)

    def open_all(self, draw: int, survivors: Sequence[str]) -> dict[str, dict[str, bytes]]:
        return {name: self.open(name, draw, survivors) for name in survivors}


def names(n: int) -> list[str]:
    return [f"agency-{i}" for i in range(n)]


def checked(adverts: Iterable[Advert], n: int, threshold: int, draws: int, **changes: Any) -> Roster:
    pins = {name: Agency(name, 1).pin for name in names(n)}
    facts = {"run_id": RUN, "plan_sha256": PLAN, "agencies": names(n), "pins": pins}
    return secagg.check_adverts(adverts, **facts | {"threshold": threshold, "draws": draws} | changes)


def set_up(
    n: int, threshold: int, draws: int = 1, members: Sequence[str] | None = None, salt: str = ""
) -> Setup:
    agencies = {name: Agency(name, draws, salt=salt) for name in members or names(n)}
    adverts = [secagg.advert(agency.secrets, agency.signing) for agency in agencies.values()]
    roster = checked(adverts, n, threshold, draws)
    return bound(agencies, roster)


def bound(agencies: Mapping[str, Agency], roster: Roster) -> Setup:
    for agency in agencies.values():
        agency.secrets = secagg.bind(agency.secrets, roster)
    dealt = {name: secagg.deal(agency.secrets, roster) for name, agency in agencies.items()}
    return Setup(agencies, roster, dealt)


@functools.cache
def usual(n: int = 6, threshold: int = 4, draws: int = 2) -> Setup:
    """Never changed by a test."""
    return set_up(n, threshold, draws)


def vectors(who: Iterable[str], size: int, dtype: type[Any], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True) for name in who}


def add(some: Iterable[np.ndarray]) -> np.ndarray:
    """The sum modulo 2^bits."""
    return functools.reduce(np.add, some)


def refused(call: Any, *words: str) -> None:
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.reason is Reason.MASKS
    for word in words:
        assert word in caught.value.sentence


# --- the sum is exact ---------------------------------------------------------------------------------


@given(data=st.data(), dtype=st.sampled_from([np.uint32, np.uint64]), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_masks_cancel_for_any_survivors(data: st.DataObject, dtype: type[Any], seed: int) -> None:
    """Every subset of t or more, every vector, both widths: the sum is the plain sum modulo 2^bits."""
    setup, draw = usual(), data.draw(st.integers(0, 1))
    lists = st.lists(st.sampled_from(setup.roster.names), min_size=4, max_size=6, unique=True)
    survivors = sorted(data.draw(lists))
    x = vectors(setup.roster.names, data.draw(st.integers(0, 40)), dtype, seed)
    total = add(setup.mask(name, draw, x[name]) for name in survivors)
    got = secagg.unmask(total, setup.roster, draw, survivors, setup.open_all(draw, survivors))
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, masks.unwrap(add(x[name] for name in survivors)))


def test_any_t_of_the_shares_do() -> None:
    setup, survivors = usual(), names(5)
    x = vectors(survivors, 7, np.uint32)
    total, opened = add(setup.mask(u, 0, x[u]) for u in survivors), setup.open_all(0, survivors)
    for some in itertools.combinations(survivors, 4):
        got = secagg.unmask(total, setup.roster, 0, survivors, {name: opened[name] for name in some})
        np.testing.assert_array_equal(got, masks.unwrap(add(x.values())))


def test_an_agency_that_sent_no_keys_is_simply_not_there() -> None:
    setup = set_up(6, 4, members=names(6)[1:])
    x = vectors(setup.roster.names, 9, np.uint64)
    survivors = [*setup.roster.names[:3], setup.roster.names[4]]
    total = add(setup.mask(name, 0, x[name]) for name in survivors)
    got = secagg.unmask(total, setup.roster, 0, survivors, setup.open_all(0, survivors))
    np.testing.assert_array_equal(got, masks.unwrap(add(x[name] for name in survivors)))


@pytest.mark.parametrize("bits", [32, 64])
def test_sums_wrap_around(bits: masks.Bits) -> None:
    """Signed: -1 - 1 is -2, and the largest plus 1 is the smallest."""
    largest = 2 ** (bits - 1) - 1
    a, b = np.array([-1, largest, -largest - 1]), np.array([-1, 1, -1])
    wrapped = masks.wrap(a, bits)
    np.testing.assert_array_equal(masks.unwrap(wrapped), a)
    np.testing.assert_array_equal(masks.unwrap(wrapped + masks.wrap(b, bits)), [-2, -largest - 1, largest])


def test_a_share_that_does_not_decrypt_is_left_out_and_the_others_do() -> None:
    setup, survivors = usual(), names(5)
    signatures = {name: setup.sign(name, 0, survivors) for name in survivors}
    sealed = {sender: each["agency-0"][0] for sender, each in setup.dealt.items()}
    key, own = sealed["agency-1"]
    sealed["agency-1"] = (key, own[:-1] + bytes([own[-1] ^ 1]))  # a survivor: its self share is read
    sealed["agency-5"] = (sealed["agency-4"][0], b"")  # dropped: its key share, which is another's
    del sealed["agency-2"]
    secrets = setup.agencies["agency-0"].secrets
    mine = secagg.open_shares(secrets, setup.roster, 0, survivors, signatures, sealed, setup.pins)
    assert set(mine) == {"agency-0", "agency-3", "agency-4"}
    opened = setup.open_all(0, survivors) | {"agency-0": mine}
    x = vectors(survivors, 5, np.uint32)
    got = secagg.unmask(add(setup.mask(u, 0, x[u]) for u in survivors), setup.roster, 0, survivors, opened)
    np.testing.assert_array_equal(got, masks.unwrap(add(x.values())))


def test_an_encrypted_share_is_good_for_one_draw_one_kind_and_one_direction() -> None:
    setup, survivors = usual(), names(5)
    signatures = {name: setup.sign(name, 0, survivors) for name in survivors}
    dealt = {sender: each["agency-0"] for sender, each in setup.dealt.items()}
    swapped = {
        "agency-0": dealt["agency-0"][0],
        "agency-1": dealt["agency-1"][1],  # another draw
        "agency-2": dealt["agency-2"][0][::-1],  # its key share, though it survived
        "agency-3": setup.dealt["agency-3"]["agency-1"][0],  # to another
        "agency-4": setup.dealt["agency-0"]["agency-4"][0],  # from this agency
        "agency-5": dealt["agency-5"][0][::-1],  # its self share, though it dropped out
    }
    secrets = setup.agencies["agency-0"].secrets
    opened = secagg.open_shares(secrets, setup.roster, 0, survivors, signatures, swapped, setup.pins)
    assert set(opened) == {"agency-0"}


def test_a_dealer_cannot_have_something_else_than_a_share_opened() -> None:
    setup, survivors = usual(), names(5)
    signatures = {name: setup.sign(name, 0, survivors) for name in survivors}
    sealed = {sender: each["agency-0"][0] for sender, each in setup.dealt.items()}
    cheat, roster, bound_to = setup.agencies["agency-1"].secrets, setup.roster, ("agency-1", "agency-0", 0)
    box = secagg._box(cheat, roster, "agency-0", "agency-1", "agency-0")
    for text, opens in ((bytes(16), True), (bytes(15), False), (b"", False), (bytes(1000), False)):
        sealed["agency-1"] = (b"", secagg._seal(box, text, roster, *bound_to, secagg.SELF))
        secrets = setup.agencies["agency-0"].secrets
        opened = secagg.open_shares(secrets, roster, 0, survivors, signatures, sealed, setup.pins)
        assert ("agency-1" in opened) == opens


def test_too_few_or_wrong_shares_leave_the_sum_masked() -> None:
    setup, survivors = usual(), names(5)
    total, opened = np.zeros(3, np.uint32), setup.open_all(0, survivors)
    three = {name: opened[name] for name in survivors[:3]}
    with pytest.raises(UnmaskError, match="3 shares of 'agency-0' are open, 4 are needed"):
        secagg.unmask(total, setup.roster, 0, survivors, three)
    with pytest.raises(UnmaskError, match="3 survivors"):
        secagg.unmask(total, setup.roster, 0, survivors[:3], opened)
    wrong = opened | {"agency-2": opened["agency-2"] | {"agency-1": bytes(16)}}
    with pytest.raises(UnmaskError, match="'agency-1' do not fit together"):
        secagg.unmask(total, setup.roster, 0, survivors, wrong)
    four = {name: opened[name] for name in survivors[:4]}
    four["agency-2"] = opened["agency-2"] | {"agency-5": bytes(16)}
    with pytest.raises(UnmaskError, match="'agency-5' do not give its mask key"):
        secagg.unmask(total, setup.roster, 0, survivors, four)


# --- what a vector looks like under its mask ----------------------------------------------------------


def chi_square(values: np.ndarray) -> float:
    """Of the bytes against uniform; about 255, with a standard deviation of 23, if they are."""
    seen = np.bincount(values.view(np.uint8), minlength=256)
    return float(((seen - seen.mean()) ** 2 / seen.mean()).sum())


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_a_masked_vector_looks_uniform_whatever_it_hides(dtype: type[Any]) -> None:
    setup = usual()
    zeros, ones = np.zeros(25_000, dtype), np.full(25_000, np.iinfo(dtype).max, dtype)
    assert chi_square(zeros) > FAR  # or the test could not fail
    masked = [setup.mask("agency-2", 0, zeros), setup.mask("agency-2", 1, ones)]
    for each in masked:
        assert each.dtype == dtype
        assert chi_square(each) < FAR
    a, b = (np.bincount(each.view(np.uint8), minlength=256) for each in masked)
    assert float(((a - b) ** 2 / (a + b)).sum()) < FAR  # two samples of one distribution


def test_every_mask_of_every_draw_is_another() -> None:
    setup = usual()
    zero = np.zeros(8, np.uint64)
    seen = [setup.mask(name, draw, zero).tobytes() for name in setup.roster.names for draw in (0, 1)]
    assert len(set(seen)) == len(seen)


# --- what the coordinator sees, and cannot do with it -------------------------------------------------


def known_seeds(setup: Setup, draw: int, survivors: Sequence[str]) -> dict[tuple[str, str], bytes]:
    """All that the opened shares of one draw give: (agency, self or key) -> seed."""
    opened = setup.open_all(draw, survivors)
    for shares in opened.values():  # one share per member: never both of one
        assert set(shares) == set(setup.roster.names)
    seeds = dict(secagg._seeds(setup.roster, survivors, opened))
    return {(n, secagg.SELF if n in survivors else secagg.KEY): seed for n, seed in seeds.items()}


def strip(
    setup: Setup, draw: int, who: Sequence[str], total: np.ndarray, seeds: Mapping[tuple[str, str], bytes]
) -> np.ndarray:
    """`total`, the sum of the masked vectors of `who`, less every mask that `seeds` give away."""
    roster, plus, minus = setup.roster, [], []
    for u in who:
        if (u, secagg.SELF) in seeds:
            minus.append(secagg._self_key(seeds[u, secagg.SELF], roster, draw, u))
        for v in roster.names:
            either = [(a, b) for a, b in ((u, v), (v, u)) if (a, secagg.KEY) in seeds and u != v]
            for a, b in either[:1]:
                private = secagg._mask_key(seeds[a, secagg.KEY], roster.run_id, a, draw)
                added, subtracted = secagg._pair_keys(private, roster, draw, a, [b])
                added, subtracted = (added, subtracted) if a == u else (subtracted, added)
                plus, minus = plus + subtracted, minus + added
    return masks.add_masks(total, plus, minus)


def test_all_messages_of_a_round_give_the_sum_and_no_less() -> None:
    """No proper subset of the survivors' vectors comes out, nor that of the one who was late."""
    setup, survivors = usual(), names(5)
    x = vectors(setup.roster.names, 6, np.uint32)
    y = {name: setup.mask(name, 0, x[name]) for name in x}  # agency-5 arrives too late
    seeds = known_seeds(setup, 0, survivors)
    for size in range(1, 7):
        for some in itertools.combinations(x, size):
            left = strip(setup, 0, some, add(y[name] for name in some), seeds)
            assert (left == add(x[name] for name in some)).all() == (list(some) == survivors)
    late = strip(setup, 0, ["agency-5"], y["agency-5"], seeds)
    own = secagg._self_key(setup.agencies["agency-5"].secrets.self_seed(0), setup.roster, 0, "agency-5")
    np.testing.assert_array_equal(masks.add_masks(late, [], [own]), x["agency-5"])  # only that is left


def test_colluders_take_away_their_own_and_no_more() -> None:
    """With all that one colluder has (n = 6 > 2d + c), the honest survivors' sum is still the least."""
    setup, survivors, honest = usual(), names(5), names(5)[1:]
    x = vectors(survivors, 6, np.uint32)
    colluder = setup.agencies["agency-0"].secrets
    seeds = known_seeds(setup, 0, survivors) | {("agency-0", secagg.KEY): colluder.mask_seed(0)}
    for size in range(1, 5):
        for some in itertools.combinations(honest, size):
            left = strip(setup, 0, some, add(setup.mask(u, 0, x[u]) for u in some), seeds)
            assert (left == add(x[u] for u in some)).all() == (size == 4)


class OneKey(Secrets):
    """What the paper's one key pair per user would be over several draws; the control of the next test."""

    def mask_seed(self, draw: int) -> bytes:
        return super().mask_seed(0)

    def mask_key(self, draw: int) -> X25519PrivateKey:
        return super().mask_key(0)


@pytest.mark.parametrize("kind", [Secrets, OneKey])
def test_a_key_opened_in_one_draw_does_not_unmask_an_earlier_one(kind: type[Secrets]) -> None:
    """agency-5 survives draw 0, where its self-mask is opened, and drops out of draw 1."""
    agencies = {name: Agency(name, 2, kind) for name in names(6)}
    adverts = tuple(secagg.advert(agency.secrets, agency.signing) for agency in agencies.values())
    if kind is OneKey:
        refused(lambda: checked(adverts, 6, 4, 2), "twice")
    setup = bound(agencies, Roster(RUN, PLAN, 4, adverts))
    x = vectors(["agency-5"], 6, np.uint32)["agency-5"]
    seeds = known_seeds(setup, 0, names(6))
    seeds |= {at: seed for at, seed in known_seeds(setup, 1, names(5)).items() if at[1] == secagg.KEY}
    left = strip(setup, 0, ["agency-5"], setup.mask("agency-5", 0, x), seeds)
    assert (left == x).all() == (kind is OneKey)


def test_what_travels_has_a_size_that_says_nothing() -> None:
    a, b = set_up(4, 3), set_up(4, 3, salt="other secrets")
    assert a.roster.transcript != b.roster.transcript
    for setup in (a, b):
        parts = [part for each in setup.dealt.values() for s in each.values() for pair in s for part in pair]
        assert {len(part) for part in parts} == {44}
        assert len(set(parts)) == 4 * 4 * 2


def test_dealing_again_never_uses_a_nonce_again() -> None:
    setup = set_up(3, 2)
    secrets = setup.agencies["agency-0"].secrets
    sealed = [setup.dealt["agency-0"]["agency-1"], secagg.deal(secrets, setup.roster)["agency-1"]]
    nonces = {part[: secagg.NONCE] for each in sealed for pair in each for part in pair}
    assert len(nonces) == 4


# --- a coordinator that cheats ------------------------------------------------------------------------

ALLOWED = [(n, c, d) for n in range(2, 9) for d in range(1, n) for c in range(n) if n > 2 * d + c]


def two_lists(n: int, c: int, d: int, first: int) -> tuple[bool, bool]:
    """Whether either list opens: c colluders sign both, `first` honest agencies one, the rest the other."""
    setup, everyone = usual(n, n - d, 1), names(n)
    one, other = everyone, [name for name in everyone if name != everyone[c]]  # that one signs list one
    signers = everyone[: c + first], everyone[:c] + everyone[c + first :]
    done = []
    for survivors, some in zip((one, other), signers, strict=True):
        signatures = {name: setup.sign(name, 0, survivors) for name in some if name in survivors}
        try:
            done.append(bool(setup.open(some[-1], 0, survivors, signatures)))
        except Refused:
            done.append(False)
    return done[0], done[1]


@pytest.mark.parametrize(("n", "c", "d"), ALLOWED)
def test_two_lists_never_both_open(n: int, c: int, d: int) -> None:
    """Each honest agency signs once, so at most one of two lists opens, however they are divided."""
    for first in range(1, n - c):
        assert two_lists(n, c, d, first) != (True, True)


def test_halves_open_neither_list_and_a_looser_bound_would_open_both() -> None:
    assert two_lists(7, 1, 2, first=3) == (False, False)  # 4 and 4 signatures, 5 are needed
    assert two_lists(5, 1, 2, first=2) == (True, True)  # n = 2d + c: the rule is as tight as can be


def opening(**changes: Any) -> Any:
    """Agency-0 opens draw 0 of the usual set-up for everyone but the last, but for `changes`."""
    setup = usual()
    survivors = changes.pop("survivors", names(5))
    signatures = changes.pop("signatures", None) or {n: setup.sign(n, 0, survivors) for n in survivors}
    return lambda: setup.open("agency-0", changes.pop("draw", 0), survivors, signatures)


def test_signatures_are_good_for_one_list_of_one_draw_of_one_set_up() -> None:
    setup, survivors = usual(), names(5)
    assert set(opening()()) == set(names(6))
    good = {name: setup.sign(name, 0, survivors) for name in survivors}
    other_set_up = set_up(6, 4, 2, salt="another")
    replays = {
        "draw": {name: setup.sign(name, 1, survivors) for name in survivors},
        "list": {name: setup.sign(name, 0, names(6)) for name in survivors},
        "set-up": {name: other_set_up.sign(name, 0, survivors) for name in survivors},
        "signer": dict(zip(survivors, [good["agency-1"], *good.values()], strict=False)),
        "forged": {name: bytes(64) for name in survivors},
        "empty": dict.fromkeys(survivors, b""),
    }
    for replay in replays.values():
        some = {name: replay[name] for name in ("agency-3", "agency-4")}
        refused(opening(signatures=good | some), "3 signed")
        refused(opening(signatures=good | {"agency-0": replay["agency-0"]}), "has not signed")
    assert set(opening(signatures=good | {"agency-4": bytes(64)})()) == set(names(6))  # t = 4 others did


def test_a_stranger_or_a_dropped_agency_does_not_count_as_a_signer() -> None:
    setup, survivors = usual(), names(4)
    good = {name: setup.sign(name, 0, survivors) for name in names(6)}
    assert opening(survivors=survivors, signatures=good)()
    del good["agency-3"]
    refused(opening(survivors=survivors, signatures=good), "3 signed")


@pytest.mark.parametrize(
    ("survivors", "words"),
    [
        (names(3), "3 survivors"),
        (names(6)[1:], "not on the list"),
        (names(5)[::-1], "sorted"),
        ([*names(4), "agency-3"], "sorted"),
        ([*names(4), "stranger"], "not among those"),
    ],
)
def test_a_list_that_is_not_in_order_is_neither_signed_nor_opened(survivors: list[str], words: str) -> None:
    signatures = {name: usual().agencies[name].signing.sign(b"x") for name in names(6)}
    refused(opening(survivors=survivors, signatures=signatures), words)
    if "agency-0" in survivors:
        refused(lambda: usual().sign("agency-0", 0, survivors), words)


def test_a_draw_without_keys_is_refused_everywhere() -> None:
    setup, survivors = usual(), names(5)
    for draw in (-1, 2):
        refused(lambda draw=draw: setup.sign("agency-0", draw, survivors), "draw")
        refused(lambda draw=draw: setup.mask("agency-0", draw, np.zeros(1, np.uint32)), "draw")
        secrets = setup.agencies["agency-0"].secrets
        arguments = secrets, setup.roster, draw, survivors, {}, {}, setup.pins
        refused(lambda arguments=arguments: secagg.open_shares(*arguments), "draw")
        with pytest.raises(UnmaskError, match="draw"):
            secagg.unmask(np.zeros(1, np.uint32), setup.roster, draw, survivors, {})


def test_nothing_is_decrypted_before_the_signatures_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def decrypt(*_: object) -> None:
        raise AssertionError("a share was decrypted")

    signatures = {name: usual().sign(name, 0, names(5)) for name in names(3)}
    monkeypatch.setattr(secagg, "_box", decrypt)
    refused(opening(signatures=signatures), "3 signed")
    with pytest.raises(AssertionError, match="decrypted"):
        opening()()


def test_a_split_view_ends_in_signatures_that_do_not_check() -> None:
    """The coordinator shows half of the agencies an older (well signed) advert of agency-5."""
    agencies = {name: Agency(name, 1) for name in names(6)}
    old = Agency("agency-5", 1, salt="older")
    adverts = [secagg.advert(agency.secrets, agency.signing) for agency in agencies.values()]
    one = checked(adverts, 6, 4, 1)
    other = checked([*adverts[:5], secagg.advert(old.secrets, old.signing)], 6, 4, 1)
    assert one.transcript != other.transcript
    refused(lambda: secagg.bind(agencies["agency-5"].secrets, other), "not its own")
    survivors = names(5)
    secrets = secagg.bind(agencies["agency-0"].secrets, one)
    seen = {name: one if name in names(3) else other for name in survivors}
    signatures = {n: secagg.sign_survivors(agencies[n].signing, seen[n], 0, survivors) for n in survivors}
    pins = {name: agency.pin for name, agency in agencies.items()}
    refused(lambda: secagg.open_shares(secrets, one, 0, survivors, signatures, {}, pins), "3 signed")


def test_secrets_serve_one_roster() -> None:
    """Else an agency could survive in one and drop out of the other, and both its seeds be opened."""
    agencies = {name: Agency(name, 1) for name in names(6)}
    adverts = [secagg.advert(agency.secrets, agency.signing) for agency in agencies.values()]
    one, other = checked(adverts, 6, 4, 1), checked(adverts[:5], 6, 4, 1)
    unbound = agencies["agency-0"].secrets
    secrets = secagg.bind(unbound, one)
    assert secagg.bind(secrets, one) == secrets
    refused(lambda: secagg.bind(secrets, other), "one roster")
    refused(lambda: secagg.bind(agencies["agency-5"].secrets, other), "not among")
    vector, elsewhere = np.zeros(2, np.uint32), dataclasses.replace(unbound, plan_sha256="00")
    refused(lambda: secagg.bind(elsewhere, one), "another plan")
    for each, roster in ((unbound, one), (secrets, other)):
        refused(lambda each=each, roster=roster: secagg.mask(each, roster, 0, vector), "not bound")
        refused(lambda each=each, roster=roster: secagg.deal(each, roster), "not bound")
        refused(
            lambda each=each, roster=roster: secagg.open_shares(each, roster, 0, names(5), {}, {}, {}),
            "not bound",
        )


# --- adverts ------------------------------------------------------------------------------------------


def well_signed(advert: Advert, run_id: str = RUN, plan: str = PLAN) -> Advert:
    """`advert` signed again by its own agency: a member that cheats."""
    return dataclasses.replace(
        advert, signature=Agency(advert.agency, 1).signing.sign(advert.signed(run_id, plan))
    )


def adverts_with(last: Any) -> list[Advert]:
    """Five good adverts, and `last` of the sixth."""
    good = [secagg.advert(Agency(name, 2).secrets, Agency(name, 2).signing) for name in names(6)]
    return [*good[:5], last(good[5])]


SMALL_ORDER = [  # as libsodium lists them; the last three are 0 and 1 modulo p, written otherwise, and p - 1
    bytes(32),
    bytes([1, *[0] * 31]),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (lambda a: dataclasses.replace(a, signature=bytes(64)), "not signed"),
        (lambda a: dataclasses.replace(a, signature=b""), "not signed"),
        (lambda a: dataclasses.replace(a, mask_keys=a.mask_keys[::-1]), "not signed"),
        (lambda a: dataclasses.replace(a, mask_keys=(a.share_key, a.mask_keys[1])), "not signed"),
        (lambda a: dataclasses.replace(a, share_key=a.mask_keys[0]), "not signed"),
        (lambda a: dataclasses.replace(a, keeps=("agency-1", 3, "00")), "not signed"),
        (lambda a: dataclasses.replace(a, agency="agency-4"), "twice"),
        (lambda a: dataclasses.replace(a, agency="stranger"), "does not list"),
        (lambda a: well_signed(a, plan="cd" * 32), "not signed"),
        (lambda a: well_signed(a, run_id="run-0"), "not signed"),
        (lambda a: well_signed(dataclasses.replace(a, mask_keys=a.mask_keys[:1])), "1 keys, not 2"),
        (lambda a: well_signed(dataclasses.replace(a, share_key=a.mask_keys[0])), "used twice"),
        (lambda a: well_signed(dataclasses.replace(a, mask_keys=a.mask_keys[:1] * 2)), "used twice"),
        (lambda a: well_signed(dataclasses.replace(a, share_key=a.share_key[:31])), "not a point"),
        (
            lambda a: well_signed(
                dataclasses.replace(a, share_key=a.share_key[:31] + bytes([a.share_key[31] | 128]))
            ),
            "not a point",
        ),
        *(
            (lambda a, k=k: well_signed(dataclasses.replace(a, share_key=k)), "not a point")
            for k in SMALL_ORDER
        ),
    ],
)
def test_an_advert_that_does_not_check_is_refused(last: Any, words: str) -> None:
    assert len(checked(adverts_with(well_signed), 6, 4, 2).names) == 6
    refused(lambda: checked(adverts_with(last), 6, 4, 2), words)


def test_the_rest_of_a_set_up_is_checked_too() -> None:
    good = adverts_with(well_signed)
    pins = {name: Agency(name, 1).pin for name in names(6)}
    refused(lambda: checked(good[:3], 6, 4, 2), "3 agencies sent keys")
    refused(lambda: checked(good, 6, 3, 2), "threshold")
    refused(lambda: checked(good, 6, 7, 2), "threshold")
    refused(lambda: checked([], 6, 4, 0), "draw")
    refused(lambda: checked(good, 6, 4, 2, pins={n: pins[n] for n in names(5)}), "no key is pinned")
    refused(lambda: checked(good, 6, 4, 2, pins=pins | {"agency-5": pins["agency-0"]}), "not signed")
    refused(lambda: checked(good, 6, 4, 2, pins=pins | {"agency-5": b"short"}), "not signed")
    refused(lambda: checked(good, 6, 4, 2, plan_sha256="cd" * 32), "not signed")


def test_a_transcript_is_of_everything_and_of_no_order() -> None:
    good = adverts_with(well_signed)
    roster = checked(good, 6, 4, 2)
    assert checked(good[::-1], 6, 4, 2).transcript == roster.transcript
    keeps = dataclasses.replace(good[5], keeps=("agency-0", 7, "ab"))
    others = [
        checked(good[:5], 6, 4, 2),
        checked(good, 6, 5, 2),
        checked([*good[:5], well_signed(keeps)], 6, 4, 2),
        dataclasses.replace(roster, run_id="run-2"),
        dataclasses.replace(roster, plan_sha256="00"),
    ]
    assert len({roster.transcript, *(other.transcript for other in others)}) == 6


def test_values_survive_json() -> None:
    secrets = usual().agencies["agency-0"].secrets
    assert Secrets.from_dict(json.loads(json.dumps(secrets.to_dict()))) == secrets
    for keeps in (None, ("agency-1", 12, "ab" * 32)):
        advert = dataclasses.replace(usual().roster.adverts[0], keeps=keeps)
        assert Advert.from_dict(json.loads(json.dumps(advert.to_dict()))) == advert
    for broken in ({"root": "%"}, {"root": "AAAA"}, {"draws": 0}, {"root": None}):
        with pytest.raises((TypeError, ValueError)):
            Secrets.from_dict(secrets.to_dict() | broken)


def test_secrets_do_not_show_their_root() -> None:
    secrets = usual().agencies["agency-0"].secrets
    assert "agency-0" in repr(secrets)
    for secret in (secrets.root, secrets.mask_seed(0), secrets.self_seed(0)):
        for text in (repr(secret), secret.hex(), secrets.to_dict()["root"]):
            assert text not in repr(secrets)


def test_all_that_grows_from_a_root_differs() -> None:
    a, b = Agency("agency-0", 2).secrets, Agency("agency-1", 2).secrets
    b = dataclasses.replace(b, root=a.root)
    seeds = [seed for s in (a, b) for draw in (0, 1) for seed in (s.mask_seed(draw), s.self_seed(draw))]
    assert len(set(seeds)) == 8
    assert {len(seed) for seed in seeds} == {16}


# --- shares -------------------------------------------------------------------------------------------

elements = st.integers(0, 2**128 - 1)


@given(a=elements, b=elements)
@settings(max_examples=50, deadline=None)
def test_the_field_is_pycryptodomes(a: int, b: int) -> None:
    assert masks.multiply(a, b) == int(_Element(a) * _Element(b))
    if a:
        assert masks.inverse(a) == int(_Element(a).inverse())
        assert masks.multiply(a, masks.inverse(a)) == 1


def test_zero_has_no_inverse() -> None:
    with pytest.raises(ZeroDivisionError):
        masks.inverse(0)


@given(data=st.data(), t=st.integers(1, 12), more=st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_recombining_is_pycryptodomes_combine(data: st.DataObject, t: int, more: int) -> None:
    secrets = data.draw(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=3))
    split = [Shamir.split(t, t + more, secret) for secret in secrets]
    some = data.draw(st.permutations(range(t + more)))[:t]
    picked = [[shares[i] for i in some] for shares in split]
    got = masks.recombine([i + 1 for i in some], [[share for _, share in shares] for shares in picked])
    assert got == [Shamir.combine(shares) for shares in picked] == secrets


def test_recombining_a_hundred_agencies() -> None:
    split, indices = Shamir.split(80, 100, b"0123456789abcdef"), range(21, 101)
    assert masks.recombine(indices, [[split[i - 1][1] for i in indices]]) == [b"0123456789abcdef"]


@pytest.mark.parametrize("indices", [[1, 1], [0, 1]])
def test_indices_of_shares_are_distinct_and_from_1(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="indices"):
        masks.recombine(indices, [[bytes(16), bytes(16)]])


def test_fewer_than_t_shares_say_nothing() -> None:
    """t - 1 shares are uniform and fit every secret; a recombination of them is wrong, and uniform too."""
    secret = bytes(16)
    split = [[share for _, share in Shamir.split(3, 5, secret)] for _ in range(3000)]
    two = masks.recombine([1, 2], [shares[:2] for shares in split])
    assert secret not in two
    assert chi_square(np.frombuffer(b"".join(two), np.uint8)) < FAR
    for at in range(5):
        assert chi_square(np.frombuffer(b"".join(shares[at] for shares in split), np.uint8)) < FAR
    three = masks.recombine([1, 2, 3], [shares[:3] for shares in split])
    assert chi_square(np.frombuffer(b"".join(three), np.uint8)) > FAR  # all are `secret`


@given(shares=st.lists(elements, min_size=2, max_size=2), secret=elements)
@settings(max_examples=30, deadline=None)
def test_two_shares_of_three_fit_every_secret(shares: list[int], secret: int) -> None:
    """The third that would make `secret` of them exists: l_3 has an inverse."""
    one, two, three = masks.lagrange_at_zero([1, 2, 3])
    rest = secret ^ masks.multiply(one, shares[0]) ^ masks.multiply(two, shares[1])
    all_three = [*shares, masks.multiply(rest, masks.inverse(three))]
    assert masks.recombine([1, 2, 3], [[s.to_bytes(16) for s in all_three]]) == [secret.to_bytes(16)]


# --- the generator ------------------------------------------------------------------------------------


def test_the_stream_is_chacha20() -> None:
    """RFC 8439, appendix A.1, vectors 1 and 2: key 0, nonce 0, blocks 0 and 1."""
    expected = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    for dtype in ("<u4", "<u8"):
        zero = np.zeros(128 // np.dtype(dtype).itemsize, dtype)
        assert masks.add_masks(zero, [bytes(32)], []).astype(dtype).tobytes() == expected
        minus = masks.add_masks(zero, [], [bytes(32)])
        np.testing.assert_array_equal(masks.add_masks(minus, [bytes(32)], []), zero)
        assert not zero.any()  # not written to


@given(secret=st.binary(min_size=1, max_size=64), info=st.text())
@settings(max_examples=20, deadline=None)
def test_keys_are_derived_by_hkdf(secret: bytes, info: str) -> None:
    context = json.dumps([info, 3, secret.hex()], separators=(",", ":")).encode()
    assert masks.derive(secret, info, 3, secret) == HKDF(secret, 32, b"", SHA256, context=context)


def test_a_masked_vector_is_this_one() -> None:
    """Golden: computed by this code on 2026-11-25. A change breaks runs between nodes of two versions."""
    setup = usual()
    got = setup.mask("agency-2", 1, np.arange(4, dtype=np.uint32)).tolist()
    assert setup.roster.transcript[:16] == "49a0560b480b2f64"
    assert got == [2979809404, 600382540, 2611429491, 2068909262]


@pytest.mark.parametrize("vector", [np.zeros(3), np.zeros(3, np.int64), np.zeros((2, 2), np.uint32)])
def test_only_flat_unsigned_vectors_are_masked(vector: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint32 or uint64, 1-D"):
        usual().mask("agency-0", 0, vector)


# --- the grid -----------------------------------------------------------------------------------------

floats = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def test_rounding_is_half_to_even_then_clamped() -> None:
    values = np.array([0.125, 0.375, 0.625, -0.125, -0.375, 2.49, 100.0, -100.0, np.inf, -np.inf])
    np.testing.assert_array_equal(masks.to_grid(values, 4.0, 10), [0, 2, 2, 0, -2, 10, 10, -10, 10, -10])
    assert masks.to_grid(values, 4.0, 10).dtype == np.int64


@given(a=floats, shift=floats, steps=st.floats(0.01, 1e4), limit=st.integers(1, 2**40))
@settings(max_examples=100, deadline=None)
def test_the_grid_adds_at_most_one_step_per_coordinate(
    a: list[float], shift: list[float], steps: float, limit: int
) -> None:
    """|grid(a) - grid(b)| <= steps |a - b| + 1 each, so at most sqrt(p) more in L2; and never beyond the limit."""
    p = min(len(a), len(shift))
    x, y = np.array(a[:p]), np.array(a[:p]) + np.array(shift[:p])
    gx, gy = masks.to_grid(x, steps, limit), masks.to_grid(y, steps, limit)
    moved = np.abs(gx - gy)
    assert (moved <= steps * np.abs(x - y) * (1 + 1e-9) + 1 + 1e-5).all()
    assert np.linalg.norm(moved) <= steps * np.linalg.norm(x - y) * (1 + 1e-9) + math.sqrt(p) + 1e-5
    assert max(np.abs(gx).max(), np.abs(gy).max()) <= limit


@pytest.mark.parametrize("limit", [2**53 + 1, 2**62 - 1, 2**63 - 1])
def test_a_limit_that_no_float_has_is_not_passed(limit: int) -> None:
    low, high = masks.to_grid(np.array([-1e300, 1e300]), 1e300, limit).tolist()
    assert -low == high <= limit
    assert high >= limit * (1 - 2**-52)


def test_what_has_no_place_on_the_grid() -> None:
    with pytest.raises(ValueError, match="not a number"):
        masks.to_grid(np.array([1.0, np.nan]), 1.0, 10)
    for steps, limit in ((0.0, 10), (-1.0, 10), (math.nan, 10), (math.inf, 10), (1.0, 0), (1.0, 2**63)):
        with pytest.raises(ValueError, match="a grid needs"):
            masks.to_grid(np.zeros(1), steps, limit)
    with pytest.raises(ValueError, match="int64"):
        masks.wrap(np.zeros(1), 32)


@given(
    bits=st.sampled_from([32, 64]),
    agencies=st.integers(1, 1000),
    share_std=st.floats(0, 1e6, allow_nan=False),
)
@settings(max_examples=100, deadline=None)
def test_the_limit_is_the_largest_that_fits(bits: masks.Bits, agencies: int, share_std: float) -> None:
    limit = masks.limit_for(bits, agencies, share_std)
    noise = math.ceil(16 * math.sqrt(agencies) * share_std)
    assert agencies * limit + noise <= 2 ** (bits - 1) - 1 < agencies * (limit + 1) + noise


def test_no_limit_where_nothing_fits() -> None:
    assert masks.limit_for(32, 1, 0.0) == 2**31 - 1
    for bits, agencies, share_std in (
        (32, 100, 2e7),
        (32, 1, 1.4e8),
        (16, 1, 1.0),
        (32, 0, 1.0),
        (32, 1, -1.0),
    ):
        with pytest.raises(ValueError, match=r"no limit|do not fit"):
            masks.limit_for(bits, agencies, share_std)  # type: ignore[arg-type]
