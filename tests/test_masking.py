"""What a node keeps for secure aggregation: files that only it reads, whole, on the disk before a reply leaves."""

import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from conftest import MakeStudy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_masked import NAMES, Nodes

from clients import keys, masking
from clients.keys import KeyFileError
from clients.masking import Masks
from clients.node import NodeError, open_node
from federation import secagg, wire
from federation.plan import Reason, Refused, TrainPlan
from federation.protocol import (
    AgreeOrder,
    DealOrder,
    Dealt,
    KeysOrder,
    MaskedReply,
    Opened,
    OpenOrder,
    Refusal,
    Sealed,
    Signed,
)
from federation.secagg import Roster

VECTOR = np.arange(5, dtype=np.uint32)


class Five:
    """The masks of five agencies, and what they have said to each other."""

    def __init__(self, plan: TrainPlan, folder: Path) -> None:
        self.plan = plan
        for name in NAMES:
            (folder / name).mkdir()
        signing = {name: keys.signing_key(folder / name) for name in NAMES}
        pins = {name: key.public_key().public_bytes_raw() for name, key in signing.items()}
        self.pins, self.signing = pins, signing
        self.folders = {name: folder / name for name in NAMES}
        self.masks = {name: self.reopened(name) for name in NAMES}
        self.sealed: dict[str, dict[str, tuple[Sealed, ...]]] = {}
        self.roster: Roster = Roster("", "", 0, ())

    def reopened(self, name: str) -> Masks:
        return Masks(self.folders[name], name, self.signing[name], self.pins)

    def set_up(self, draws: int = 4) -> "Five":
        adverts = [self.masks[name].keys(self.plan, draws, None) for name in NAMES]
        for name in NAMES:
            self.sealed[name], self.roster = self.masks[name].deal(self.plan, adverts)
        return self

    def mask(self, name: str, draw: int) -> np.ndarray:
        return self.masks[name].mask(self.plan, self.roster.transcript, draw, VECTOR)

    def agree(self, name: str, draw: int, survivors: tuple[str, ...] = NAMES) -> bytes:
        return self.masks[name].agree(AgreeOrder(self.plan.run_id, self.roster.transcript, draw, survivors))

    def round(self, draw: int, last: bool = False) -> dict[str, dict[str, bytes]]:
        for name in NAMES:
            self.mask(name, draw)
        signatures = {name: self.agree(name, draw) for name in NAMES}
        of_draw = (self.plan.run_id, self.roster.transcript, draw, NAMES)
        opened = {}
        for name in NAMES:
            sealed = {giver: self.sealed[giver][name][draw] for giver in NAMES}
            opened[name] = self.masks[name].open(OpenOrder(*of_draw, signatures, sealed, last))
        return opened

    def files(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.folders[name] / "masks").iterdir())}


@pytest.fixture
def five(make_shared: MakeStudy, tmp_path: Path) -> Five:
    (tmp_path / "five").mkdir()
    plan = make_shared().experiment.plan("run-1", simulation=True)
    return Five(plan, tmp_path / "five").set_up()


def refused(reason: Reason, call: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.reason is reason


# --- files ----------------------------------------------------------------------------------------------


@pytest.fixture
def open_to_all() -> Iterator[None]:
    """A careless person's umask: what is private is so by itself."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_to_all")
def test_only_the_node_can_read_what_it_keeps(make_shared: MakeStudy, tmp_path: Path) -> None:
    (tmp_path / "five").mkdir()
    five = Five(make_shared().experiment.plan("run-1", simulation=True), tmp_path / "five").set_up()
    five.round(0)
    for name in NAMES:
        folder = five.folders[name]
        assert stat.S_IMODE((folder / "masks").stat().st_mode) == 0o700
        assert sorted(five.files(name)) == ["run-1.done", "run-1.keys"]
        for path in (*(folder / "masks").iterdir(), folder / "signing.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_secrets_go_with_the_last_draw_and_only_with_it(five: Five) -> None:
    five.round(0)
    assert set(five.files("east")) == {"run-1.done", "run-1.keys"}
    five.round(1, last=True)
    assert all(five.files(name) == {} for name in NAMES)
    for again in (five.masks["east"], five.reopened("east")):
        five.masks["east"] = again
        refused(Reason.MASKS, lambda: five.mask("east", 2))
        refused(Reason.MASKS, lambda: five.agree("east", 1))


def test_runs_do_not_touch_each_others_keys(five: Five) -> None:
    before = five.files("east")
    other = five.plan.but(run_id="run-2")
    five.masks["east"].keys(other, 2, None)
    assert five.files("east").items() >= before.items()
    assert len(five.files("east")) == 4
    five.round(0)


def test_new_keys_begin_anew_and_old_notes_say_nothing_of_them(five: Five) -> None:
    five.round(0)
    five.round(1)
    old = five.roster
    five.set_up(draws=2)
    assert five.roster.transcript != old.transcript
    for name in NAMES:
        five.masks[name] = five.reopened(name)
    five.round(0)
    notes = [json.loads(line) for line in five.files("east")["run-1.done"].split(b"\n") if line]
    assert {note["transcript"] for note in notes} == {old.transcript, five.roster.transcript}


def test_every_set_up_has_other_secrets(five: Five) -> None:
    roots = {five.masks[name]._session("run-1").secrets.root for name in NAMES}
    five.set_up()
    roots |= {five.masks[name]._session("run-1").secrets.root for name in NAMES}
    assert len(roots) == 10


# --- crashes --------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


def test_a_crash_while_keys_are_written_leaves_the_old_ones_whole(
    five: Five, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = five.files("east")

    def cut(_: int) -> None:
        raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", cut)
        with pytest.raises(PowerCut):
            five.masks["east"].keys(five.plan, 2, None)
    after = five.files("east")
    assert {name: after[name] for name in before} == before
    five.masks["east"] = five.reopened("east")
    five.round(0)


def test_a_crash_between_mask_and_reply_wastes_the_draw(five: Five, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was masked may be on its way: nothing says that it is not."""

    def cut(*_: object) -> np.ndarray:
        raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(masking.secagg, "mask", cut)
        with pytest.raises(PowerCut):
            five.mask("east", 0)
    for again in (five.masks["east"], five.reopened("east")):
        five.masks["east"] = again
        refused(Reason.REPLAYED, lambda: five.mask("east", 0))
    assert five.mask("east", 1).shape == VECTOR.shape


def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is in each file, or a folder's names, when it is forced to the disk."""
    found: list[tuple[str, str]] = []
    real = os.fsync

    def fsync(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        content = " ".join(sorted(p.name for p in path.iterdir())) if path.is_dir() else path.read_text()
        found.append((path.name, content))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_a_signed_list_is_on_the_disk_before_it_leaves(five: Five, monkeypatch: pytest.MonkeyPatch) -> None:
    five.mask("east", 0)
    found = synced(monkeypatch)
    five.agree("east", 0)
    ((name, content),) = found
    assert name == "run-1.done"
    last_line = json.loads(content.splitlines()[-1])
    assert (last_line["signed"], tuple(last_line["survivors"])) == (0, NAMES)


def test_keys_and_whom_they_are_bound_to_are_on_the_disk_before_they_leave(
    five: Five, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could bring back secrets that are bound to nobody, and they be dealt a second time."""
    adverts = [five.masks[name].keys(five.plan, 2, None) for name in NAMES]
    found = synced(monkeypatch)
    advert = five.masks["east"].keys(five.plan, 2, None)
    assert [name for name, _ in found] == ["run-1.keys.writing", "masks"]
    assert json.loads(found[0][1])["secrets"]["transcript"] == ""
    assert found[1][1] == "run-1.done run-1.keys", "and their names"
    found.clear()
    _, roster = five.masks["east"].deal(five.plan, [a if a.agency != "east" else advert for a in adverts])
    assert [name for name, _ in found] == ["run-1.keys.writing", "masks"]
    assert json.loads(found[0][1])["secrets"]["transcript"] == roster.transcript


def test_nothing_leaves_where_the_disk_fails(
    make_shared: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(make_shared(), tmp_path)
    nodes.set_up()
    nodes.rounds(1)

    def full(_: int) -> None:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(masking.os, "fsync", full)
        assert nodes.agree("east", NAMES) == Refusal("east", Reason.UNAVAILABLE)
        order = KeysOrder(nodes.plan, 4)
        assert nodes.ask("north", wire.pack_keys_order, order) == Refusal("north", Reason.UNAVAILABLE)
    nodes.refused(Reason.REPLAYED, "east", lambda: nodes.agree("east", NAMES[1:]))
    assert isinstance(nodes.agree("north", NAMES), Signed), "its keys are the old ones"


def test_keys_whose_notes_are_gone_are_not_used(five: Five) -> None:
    """Without its notes a node does not know what it has signed."""
    five.round(0)
    path = five.folders["east"] / "masks" / "run-1.done"
    path.unlink()
    for again in (five.masks["east"], five.reopened("east")):
        five.masks["east"] = again
        refused(Reason.MASKS, lambda: five.agree("east", 0, NAMES[1:]))
        refused(Reason.MASKS, lambda: five.mask("east", 1))
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"secrets": {}, "adverts": [], "threshold": 4}'])
def test_keys_that_do_not_decode_must_be_made_again(five: Five, text: str) -> None:
    (five.folders["east"] / "masks" / "run-1.keys").write_text(text)
    for again in (five.masks["east"], five.reopened("east")):
        five.masks["east"] = again
        refused(Reason.MASKS, lambda: five.mask("east", 0))


def test_what_one_process_wrote_another_reads(five: Five) -> None:
    """New keys and what was done with them, in both directions, whatever each still has in memory."""
    one, two = five.masks["east"], five.reopened("east")
    old = five.roster.transcript
    one.mask(five.plan, old, 0, VECTOR)
    refused(Reason.REPLAYED, lambda: two.mask(five.plan, old, 0, VECTOR))
    five.set_up()
    new = five.roster.transcript
    refused(Reason.MASKS, lambda: two.mask(five.plan, old, 1, VECTOR))
    two.mask(five.plan, new, 0, VECTOR)
    refused(Reason.REPLAYED, lambda: one.mask(five.plan, new, 0, VECTOR))
    two.keys(five.plan, 3, None)
    refused(Reason.MASKS, lambda: one.mask(five.plan, new, 1, VECTOR))


# --- what may be done once ------------------------------------------------------------------------------


def test_draws_only_go_forward(five: Five) -> None:
    five.mask("east", 1)
    for draw in (1, 0, -1, 4):
        refused(Reason.REPLAYED, lambda draw=draw: five.mask("east", draw))  # type: ignore[misc]
    refused(Reason.MASKS, lambda: five.agree("east", 2))
    five.agree("east", 1)
    for draw in (1, 0):
        refused(Reason.REPLAYED, lambda draw=draw: five.agree("east", draw, NAMES[:4]))  # type: ignore[misc]
    assert five.mask("east", 3).shape == VECTOR.shape


def test_another_agencys_folder_is_of_no_use(five: Five) -> None:
    """Keys are grown for one agency: with another's name its peers' masks would not cancel, and none is made."""
    stranger = Masks(five.folders["east"], "stranger", Ed25519PrivateKey.generate(), five.pins)
    refused(Reason.MASKS, lambda: stranger.keys(five.plan, 1, None))
    local = five.plan.but(privacy=five.plan.privacy.but(mechanism="local", shared=None))
    refused(Reason.MASKS, lambda: five.masks["east"].keys(local, 1, None))


def test_masks_hide_the_vector_and_cancel_in_the_sum(five: Five) -> None:
    sent = {name: five.mask(name, 0) for name in NAMES}
    assert all((each != VECTOR).mean() > 0.7 for each in sent.values())
    total = np.sum(list(sent.values()), axis=0, dtype=np.uint32)
    signatures = {name: five.agree(name, 0) for name in NAMES}
    opened = {}
    for name in NAMES:
        sealed = {giver: five.sealed[giver][name][0] for giver in NAMES}
        order = OpenOrder("run-1", five.roster.transcript, 0, NAMES, signatures, sealed)
        opened[name] = five.masks[name].open(order)
    np.testing.assert_array_equal(secagg.unmask(total, five.roster, 0, NAMES, opened), 5 * VECTOR.astype(int))


# --- keys and pins --------------------------------------------------------------------------------------


@pytest.fixture
def nodes(make_shared: MakeStudy, tmp_path: Path) -> Nodes:
    return Nodes(make_shared(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"half", bytes(33)])
def test_half_a_signing_key_is_one_sentence_and_not_replaced(nodes: Nodes, content: bytes) -> None:
    path = nodes.folders["east"] / "signing.key"
    path.write_bytes(content)
    keys.secret.cache_clear()
    with pytest.raises(KeyFileError) as wrong:
        keys.signing_key(nodes.folders["east"])
    assert str(wrong.value) == (f"{path} must hold 32 bytes: put the node's own key back, or remove the file")
    reply = nodes.ask("east", wire.pack_keys_order, KeysOrder(nodes.plan, 4))
    assert reply == Refusal("east", Reason.UNAVAILABLE)
    assert "signing.key must hold 32 bytes" in (nodes.folders["east"] / "log" / "node.log").read_text()
    assert path.read_bytes() == content
    assert not (nodes.folders["east"] / "masks").exists()


@pytest.mark.parametrize("pin", ["", "key", "AAAA", "ü" * 44, "A" * 44 + "=", "A" * 43])
def test_a_pin_that_is_no_key_is_one_sentence_with_the_file_and_the_key(nodes: Nodes, pin: str) -> None:
    path = nodes.folders["east"] / "node.toml"
    facts = tomllib.loads(path.read_text())
    facts["peers"]["ward"] = pin
    path.write_text(tomli_w.dumps(facts))
    with pytest.raises(NodeError) as wrong:
        open_node(nodes.folders["east"])
    assert str(wrong.value) == (
        "node.toml: peers.ward must be 32 bytes in base64, as `python -m clients.keys` prints them"
    )
    reply = nodes.ask("east", wire.pack_ready_order, nodes.plan)
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.UNAVAILABLE


def test_the_line_that_a_node_prints_is_what_its_peers_pin(nodes: Nodes, tmp_path: Path) -> None:
    folder = nodes.folders["ward"]
    command = [sys.executable, "-m", "clients.keys"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([*command, str(folder)], cwd=root, capture_output=True, text=True, check=True)
    printed = tomllib.loads(done.stdout)
    assert printed == {"ward": keys.public_text(folder)}
    assert (
        printed["ward"] == tomllib.loads((nodes.folders["east"] / "node.toml").read_text())["peers"]["ward"]
    )
    assert (folder / "signing.key").read_bytes().hex() not in done.stdout
    wrong = subprocess.run([*command, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("usage: python -m clients.keys FOLDER")
    assert not (tmp_path / "signing.key").exists()


def test_a_coordinator_cannot_pin(nodes: Nodes) -> None:
    """A peer whose key is another than the pinned one: nobody deals to it, and it says so at each node alone."""
    path = nodes.folders["ward"] / "signing.key"
    path.write_bytes(bytes(range(32)))
    keys.secret.cache_clear()
    order = DealOrder(nodes.plan, tuple(nodes.adverts().values()))
    for name in NAMES[:-1]:
        nodes.refused(Reason.MASKS, name, lambda name=name: nodes.ask(name, wire.pack_deal_order, order))  # type: ignore[misc]
    log = (nodes.folders["east"] / "log" / "node.log").read_text()
    assert "the keys of 'ward' are not signed by it for this plan" in log


def test_replies_of_the_masking_survive_the_wire(nodes: Nodes) -> None:
    """Everything here goes through messages; what comes back is whole."""
    nodes.set_up()
    reply = nodes.round("east", 1)
    assert isinstance(reply, MaskedReply)
    assert reply.head is not None
    assert reply.head == nodes.node("east").head
    order = DealOrder(nodes.plan, tuple(nodes.adverts().values()))
    dealt = nodes.ask("east", wire.pack_deal_order, order)
    assert isinstance(dealt, Dealt)
    assert {len(part) for each in dealt.sealed.values() for pair in each for part in pair} == {44}


def test_opened_shares_are_sixteen_bytes_of_each_member(nodes: Nodes) -> None:
    nodes.set_up()
    nodes.rounds(1)
    signatures = nodes.signatures(NAMES)
    opened = nodes.open("east", NAMES, signatures)
    assert isinstance(opened, Opened)
    assert set(opened.shares) == set(NAMES)
    assert {len(share) for share in opened.shares.values()} == {16}
