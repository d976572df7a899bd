"""What may leave: it survives the trip exactly, it has no field with a record axis, and nothing else decodes."""

import dataclasses
import typing

import numpy as np
import pytest
from conftest import MakeStudy
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from safetensors.numpy import save

from federation import protocol, wire
from federation.experiment import Experiment, SettingsError
from federation.pact import Greeting
from federation.privacy import Release
from federation.protocol import (
    Boxes,
    CohortReply,
    Dealt,
    Greeted,
    Head,
    Keys,
    MapReply,
    MaskedReply,
    Opened,
    Ready,
    Reason,
    Refusal,
    Refused,
    RoundOrder,
    RoundReply,
    Signed,
    StatsReply,
    TrainPlan,
)
from federation.secagg import Advert


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    return make_study().experiment.plan("run-1", simulation=True)


def order(plan: TrainPlan) -> RoundOrder:
    weights = {"linear.weight": np.ones((1, 5), np.float32), "linear.bias": np.zeros(1, np.float32)}
    return RoundOrder(plan, 3, weights, True, ("tune",))


def test_an_order_survives_the_trip(plan: TrainPlan) -> None:
    sent = order(plan)
    got = wire.read_round_order(wire.pack_round_order(sent, 7))
    assert (got.plan, got.round, got.train, got.evaluate) == (plan, 3, True, ("tune",))
    assert got.order_id == sent.order_id == f"run-1/3#{sent.digest}"
    for name, value in sent.weights.items():
        np.testing.assert_array_equal(got.weights[name], value)
        assert got.weights[name].dtype == value.dtype


@pytest.mark.parametrize(
    "value",
    [
        np.array(3.5, np.float32),
        np.zeros((0, 3), np.float32),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(8)[::2],
    ],
    ids=["scalar", "empty", "float32", "fortran", "strided"],
)
def test_arrays_survive_the_trip(plan: TrainPlan, value: np.ndarray) -> None:
    message = wire.pack_round_order(order(plan), 7)
    reply = wire.read_reply(wire.pack_reply(RoundReply("north", {"w": value}, {}, ()), message))
    assert isinstance(reply, RoundReply)
    assert reply.delta is not None
    found = reply.delta["w"]
    np.testing.assert_array_equal(found, value)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert found.flags.writeable


def test_what_lies_between_the_values_of_an_array_is_not_sent(plan: TrainPlan) -> None:
    between = np.stack([np.arange(4.0), np.full(4, 8.7654321)])
    message = wire.pack_round_order(order(plan), 7)
    sent = wire.pack_reply(RoundReply("north", {"w": between.T[:, 0]}, {}, ()), message).content
    assert between[0].tobytes() in bytes(sent["fedrisk"]["delta"])
    assert between[1, :1].tobytes() not in bytes(sent["fedrisk"]["delta"])
    apart = wire.pack_reply(RoundReply("north", {"w": between.T.copy()[:, 0]}, {}, ()), message).content
    assert apart == sent


DELTA = save({"w": np.zeros(2, np.float32)})
OTHER_TYPE = DELTA.replace(b'"F32"', b'"BF8"')


@pytest.mark.parametrize(
    "packed",
    [b"", DELTA[:-1], DELTA + b"0", OTHER_TYPE, DELTA.replace(b"[2]", b"[3]"), b"\xff" * 16, "text", 7],
    ids=["empty", "cut", "more", "another type", "another shape", "noise", "text", "number"],
)
def test_arrays_that_do_not_decode_make_their_message_undecodable(plan: TrainPlan, packed: object) -> None:
    message = wire.pack_round_order(order(plan), 7)
    good = RoundReply("north", {"w": np.zeros(2, np.float32)}, {}, ())
    reply = wire.pack_reply(good, message)
    assert reply.content["fedrisk"]["delta"] == DELTA, "the control"
    reply.content["fedrisk"]["delta"] = packed  # type: ignore[index,assignment]
    with pytest.raises(ValueError, match="does not decode"):
        wire.read_reply(reply)
    message.content["fedrisk"]["weights"] = packed  # type: ignore[index,assignment]
    with pytest.raises(Refused) as refused:
        wire.read_round_order(message)
    assert refused.value.reason is Reason.MALFORMED


def test_a_message_is_three_of_flowers_objects(plan: TrainPlan) -> None:
    """Flower sends each in a request of its own: the message, its content, and one record."""
    message = wire.pack_round_order(order(plan), 7)
    sent = RoundReply("north", {"w": np.float32([1, 2])}, {"tune": np.ones((2, 3, 2))}, ())
    for each in (message, wire.pack_reply(sent, message)):
        assert len(get_all_nested_objects(each)) == 3


def test_a_reply_survives_the_trip(plan: TrainPlan) -> None:
    message = wire.pack_round_order(order(plan), 7)
    release = Release(kind="train", part="train", noise_multiplier=1.0, sample_rate=0.5, steps=2)
    sent = RoundReply("north", {"w": np.float32([1, 2])}, {"tune": np.ones((2, 3, 2))}, (release,))
    got = wire.read_reply(wire.pack_reply(sent, message))
    assert isinstance(got, RoundReply)
    assert got.releases == (release,)
    assert got.delta is not None
    np.testing.assert_array_equal(got.delta["w"], [1, 2])
    np.testing.assert_array_equal(got.tables["tune"], np.ones((2, 3, 2)))
    assert wire.read_reply(wire.pack_reply(Ready("north"), message)) == Ready("north")
    for reason in Reason:
        refusal = Refusal("north", reason)
        assert wire.read_reply(wire.pack_reply(refusal, message)) == refusal


def test_a_reply_has_no_other_field_than_these() -> None:
    """Adding a field to what leaves must be seen here and in docs/architecture.md."""
    leaves = {
        Ready: {"agency", "head", "keeps"},
        RoundReply: {"agency", "delta", "tables", "releases", "head"},
        StatsReply: {"agency", "sums", "releases", "head"},
        MapReply: {"agency", "numbers", "releases", "head"},
        CohortReply: {"agency", "counts", "releases", "head"},
        MaskedReply: {"agency", "vector", "releases", "head"},
        Greeted: {"agency", "greeting"},
        Boxes: {"agency", "boxes"},
        Keys: {"agency", "advert"},
        Dealt: {"agency", "sealed"},
        Signed: {"agency", "signature"},
        Opened: {"agency", "shares"},
        Refusal: {"agency", "reason"},
    }
    assert set(leaves) == set(typing.get_args(protocol.Reply))
    for reply, fields in leaves.items():
        assert {field.name for field in dataclasses.fields(reply)} == fields
    assert {field.name for field in dataclasses.fields(Advert)} == {
        "agency",
        "share_key",
        "mask_keys",
        "signature",
        "keeps",
    }
    assert {field.name for field in dataclasses.fields(Greeting)} == {
        *("agency", "key", "commitment", "signature"),
    }


HEAD = Head(7, "ab" * 32)
ADVERT = Advert("north", b"s" * 32, (b"m" * 32, b"n" * 32), b"g" * 64, ("south", 3, "cd" * 32))


@pytest.mark.parametrize(
    "reply",
    [
        Ready("north", HEAD, {"south": Head(3, "cd" * 32)}),
        Keys("north", ADVERT),
        Dealt("north", {"south": ((b"k" * 32, b"s" * 32),) * 2}),
        Signed("north", b"g" * 64),
        Opened("north", {"south": b"x" * 16}),
    ],
    ids=lambda reply: type(reply).__name__,
)
def test_what_the_masking_needs_survives_the_trip(plan: TrainPlan, reply: protocol.Reply) -> None:
    message = wire.pack_round_order(order(plan), 7)
    assert wire.read_reply(wire.pack_reply(reply, message)) == reply


def test_a_masked_reply_survives_the_trip(plan: TrainPlan) -> None:
    message = wire.pack_round_order(order(plan), 7)
    for dtype in (np.uint32, np.uint64):
        sent = MaskedReply("north", np.arange(5).astype(dtype) - 3, order(plan).releases, HEAD)
        got = wire.read_reply(wire.pack_reply(sent, message))
        assert isinstance(got, MaskedReply)
        assert got.vector.dtype == dtype
        np.testing.assert_array_equal(got.vector, sent.vector)
        assert (got.agency, got.releases, got.head) == (sent.agency, sent.releases, HEAD)


def test_the_orders_of_the_masking_survive_the_trip(plan: TrainPlan) -> None:
    heads = {"north": HEAD}
    of_draw = ("run-1", "transcript", 4, ("north", "south"))
    keys = protocol.KeysOrder(plan, 9, heads)
    assert wire.read_keys_order(wire.pack_keys_order(keys, 7)) == keys
    deal = protocol.DealOrder(plan, (ADVERT,))
    assert wire.read_deal_order(wire.pack_deal_order(deal, 7)) == deal
    agree = protocol.AgreeOrder(*of_draw)
    assert wire.read_agree_order(wire.pack_agree_order(agree, 7)) == agree
    opening = protocol.OpenOrder(*of_draw, {"north": b"g" * 64}, {"south": (b"k", b"s")}, last=True)
    assert wire.read_open_order(wire.pack_open_order(opening, 7)) == opening
    assert wire.read_ready_order(wire.pack_ready_order(plan, 7, heads)) == (plan, heads)
    masked = dataclasses.replace(order(plan), draw=4, transcript="ab" * 32, heads=heads)
    got = wire.read_round_order(wire.pack_round_order(masked, 7))
    assert (got.draw, got.transcript, got.heads) == (4, "ab" * 32, heads)
    assert got.order_id == "run-1/3/abababababababab.4"


@pytest.mark.parametrize("agency", ["", "north"])
def test_a_reply_is_as_long_whatever_the_numbers_are(plan: TrainPlan, agency: str) -> None:
    message = wire.pack_round_order(order(plan), 7)
    release = plan.train_release()

    def size(value: float) -> int:
        delta = {"w": np.full(40, value, np.float32)}
        packed = wire.pack_reply(
            RoundReply(agency, delta, {"tune": np.full((2, 3, 2), value)}, (release,)), message
        )
        return len(recorddict_to_proto(packed.content).SerializeToString())

    assert len({size(value) for value in (0.0, 1e-30, -123456.789, 3e38)}) == 1


def test_what_does_not_decode_is_refused_as_malformed(plan: TrainPlan) -> None:
    empty = Message(RecordDict(), dst_node_id=1, message_type=protocol.ROUND)
    other = Message(
        RecordDict({"fedrisk": ConfigRecord({"json": "[1"})}), dst_node_id=1, message_type=protocol.ROUND
    )
    for message in (empty, other):
        with pytest.raises(Refused) as refused:
            wire.read_round_order(message)
        assert refused.value.reason is Reason.MALFORMED
        with pytest.raises(ValueError, match="does not decode"):
            wire.read_reply(message)


def test_another_version_is_refused_as_such(plan: TrainPlan) -> None:
    message = wire.pack_ready_order(plan.but(version="99"), 1)
    with pytest.raises(Refused) as refused:
        wire.read_ready_order(message)
    assert refused.value.reason is Reason.VERSION


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", -1.0),
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("delta", 0.0),
        ("max_grad_norm", 0.0),
    ],
)
def test_an_impossible_plan_cannot_be_made(plan: TrainPlan, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        plan.privacy.but(**{field: value})


def test_privacy_without_noise_and_none_with_noise_are_refused(plan: TrainPlan) -> None:
    with pytest.raises(ValueError, match="local needs"):
        plan.privacy.but(tune_sigma=0.0)
    with pytest.raises(ValueError, match="none"):
        plan.privacy.but(mechanism="none")


def test_no_clipping_survives_json(make_study: MakeStudy) -> None:
    plan = make_study("privacy=none").experiment.plan("run-1", simulation=True)
    assert plan.privacy.max_grad_norm == np.inf
    assert TrainPlan.model_validate_json(plan.canonical) == plan


def test_an_experiment_survives_base64_and_its_hash_names_it(make_study: MakeStudy) -> None:
    experiment = make_study().experiment
    assert Experiment.decode(experiment.encode()) == experiment
    assert "'" not in experiment.encode()
    assert make_study("seed=1").experiment.sha256 != experiment.sha256
    assert make_study().experiment.sha256 == experiment.sha256
    with pytest.raises(SettingsError):
        Experiment.decode(experiment.encode()[:-30])


def test_a_deployed_plan_carries_no_seed(make_study: MakeStudy) -> None:
    experiment = make_study("seed=5").experiment
    assert experiment.plan("run-1", simulation=False).seed is None
    assert experiment.plan("run-1", simulation=True).seed == 5


def test_the_plan_says_what_it_may_take(plan: TrainPlan) -> None:
    kinds = [release.kind for release in plan.releases()]
    assert kinds.count("train") == plan.rounds
    assert kinds.count("evaluate") == len(plan.checkpoints) + 1


def test_a_release_says_what_is_drawn(plan: TrainPlan) -> None:
    """The ledger's event has the numbers that `clients.train.dp_fit` is given, and one step each."""
    drawn = plan.train_release()
    assert (drawn.noise_multiplier, drawn.sample_rate) == (
        plan.privacy.noise_multiplier,
        plan.privacy.sample_rate,
    )
    assert (drawn.steps, drawn.part) == (plan.local.steps, "train")
    tune, test = plan.table_release("tune"), plan.table_release("test")
    assert (tune.noise_multiplier, test.noise_multiplier) == (
        plan.privacy.tune_sigma,
        plan.privacy.test_sigma,
    )
    assert (tune.part, test.part, tune.sample_rate, tune.steps) == ("tune", "test", 1.0, 1)
