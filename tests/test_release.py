"""The events of a ledger: JSON, refusals, and who faces how much of a noise that agencies share."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.release import (
    VIEWERS,
    Event,
    LaplaceRelease,
    Release,
    SharedRelease,
    event_from_dict,
)

quick = settings(max_examples=60, deadline=None)
OWN = Release("train", "train", 1.5, 0.25, 150, "a")
SHARED = SharedRelease(
    kind="train",
    part="train",
    sensitivity=2002.5,
    share_variance=10**7,
    dimension=4,
    agencies=10,
    colluders=2,
    dropouts=2,
    sample_rate=0.25,
    steps=150,
    split_id="a",
)
LAPLACE = LaplaceRelease("cohort", "all", 0.5, "a")
laplace_releases = st.builds(
    LaplaceRelease,
    kind=st.sampled_from(("map", "cohort", "stats")),
    part=st.sampled_from(("train", "tune", "test", "all")),
    epsilon=st.floats(1e-6, 1e300),
    split_id=st.text(max_size=20),
)
own_releases = st.builds(
    Release,
    kind=st.sampled_from(("train", "evaluate", "stats")),
    part=st.sampled_from(("train", "tune", "test", "all")),
    noise_multiplier=st.just(0.0) | st.floats(0.001, 1e300),
    sample_rate=st.floats(0, 1, exclude_min=True),
    steps=st.integers(1, 10**9),
    split_id=st.text(max_size=20),
)


@st.composite
def shared_releases(draw: st.DrawFn) -> SharedRelease:
    colluders, dropouts = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    return SharedRelease(
        kind=draw(st.sampled_from(("train", "evaluate"))),
        part=draw(st.sampled_from(("train", "tune", "test"))),
        sensitivity=draw(st.floats(1e-3, 1e12)),
        share_variance=draw(st.integers(1, 2**80)),
        dimension=draw(st.integers(1, 10**6)),
        agencies=2 * dropouts + colluders + draw(st.integers(1, 50)),
        colluders=colluders,
        dropouts=dropouts,
        sample_rate=draw(st.floats(0, 1, exclude_min=True)),
        steps=draw(st.integers(1, 10**9)),
        split_id=draw(st.text(max_size=20)),
    )


# --- JSON -------------------------------------------------------------------------------------------


@quick
@given(own_releases | shared_releases() | laplace_releases)
def test_an_event_survives_json(event: Event) -> None:
    written = json.loads(json.dumps(event.to_dict()))
    assert event_from_dict(written) == type(event).from_dict(written) == event
    assert type(event_from_dict(written)) is type(event)


def test_the_stored_fields_of_an_event_never_change() -> None:
    """A ledger of today must be read for as long as it is kept: another field is another mechanism."""
    assert OWN.to_dict() == {
        "mechanism": "poisson-gaussian",
        "kind": "train",
        "part": "train",
        "noise_multiplier": 1.5,
        "sample_rate": 0.25,
        "steps": 150,
        "split_id": "a",
    }
    assert SHARED.to_dict() == {
        "mechanism": "poisson-discrete-gaussian-sum",
        "kind": "train",
        "part": "train",
        "sensitivity": 2002.5,
        "share_variance": 10**7,
        "dimension": 4,
        "agencies": 10,
        "colluders": 2,
        "dropouts": 2,
        "sample_rate": 0.25,
        "steps": 150,
        "split_id": "a",
    }
    assert LAPLACE.to_dict() == {
        "mechanism": "discrete-laplace",
        "kind": "cohort",
        "part": "all",
        "epsilon": 0.5,
        "split_id": "a",
    }


def test_a_type_reads_only_its_own_mechanism() -> None:
    with pytest.raises(ValueError, match="mechanism must be 'poisson-gaussian', got 'poisson-discrete"):
        Release.from_dict(SHARED.to_dict())
    with pytest.raises(ValueError, match="mechanism must be 'poisson-discrete-gaussian-sum', got 'poisson-g"):
        SharedRelease.from_dict(OWN.to_dict())
    with pytest.raises(ValueError, match="mechanism must be 'discrete-laplace', got 'poisson-g"):
        LaplaceRelease.from_dict(OWN.to_dict())


@quick
@given(own_releases | shared_releases() | laplace_releases, st.integers(1, 5))
def test_an_event_that_is_repeated_has_so_many_times_its_steps(event: Event, times: int) -> None:
    (one,) = event.one_step().repeated(1)
    assert one.steps == 1
    assert {each.one_step() for each in event.repeated(times)} == {one}
    assert sum(each.steps for each in event.repeated(times)) == event.steps * times
    assert event.repeated(1) == (event,)


@pytest.mark.parametrize("mechanism", ["gaussian", "", None, 1, ["poisson-gaussian"], {}])
def test_an_unknown_mechanism_is_refused(mechanism: object) -> None:
    with pytest.raises(ValueError, match="mechanism must be one of"):
        event_from_dict({**OWN.to_dict(), "mechanism": mechanism})


def test_no_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mechanism must be one of .*, got None"):
        event_from_dict({key: value for key, value in OWN.to_dict().items() if key != "mechanism"})


@pytest.mark.parametrize("event", [OWN, SHARED, LAPLACE], ids=lambda event: event.mechanism)
def test_all_fields_are_there_and_no_others(event: Event) -> None:
    written = event.to_dict()
    for name in set(written) - {"mechanism", "split_id"}:
        with pytest.raises(ValueError, match="a release has other values than"):
            event_from_dict({key: value for key, value in written.items() if key != name})
    other = SHARED if event is OWN else OWN
    for name in ("rows", "people", *(set(other.to_dict()) - set(written))):
        with pytest.raises(ValueError, match="a release has other values than"):
            event_from_dict({**written, name: 1})
    assert event_from_dict({k: v for k, v in written.items() if k != "split_id"}).split_id == ""


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("kind", "look", "kind must be one of"),
        ("part", "validation", "part must be one of"),
        ("sensitivity", 0.0, "sensitivity must be above 0 and finite, got 0.0"),
        ("sensitivity", -1.0, "sensitivity must be above 0"),
        ("sensitivity", math.nan, "sensitivity must be above 0"),
        ("sensitivity", math.inf, "sensitivity must be above 0"),
        ("sensitivity", "2002.5", "sensitivity must be above 0"),
        ("share_variance", 0, "share_variance must be a whole number from 1, got 0"),
        ("share_variance", 1e7, "share_variance must be a whole number"),
        ("share_variance", True, "share_variance must be a whole number"),
        ("dimension", 0, "dimension must be a whole number from 1"),
        ("agencies", 0, "agencies must be a whole number from 1"),
        ("colluders", -1, "colluders must be a whole number from 0"),
        ("dropouts", 0.5, "dropouts must be a whole number from 0"),
        ("dropouts", 4, r"agencies must be more than 2 x dropouts \+ colluders \(10\), got 10"),
        ("colluders", 6, r"agencies must be more than 2 x dropouts \+ colluders \(10\), got 10"),
        ("sample_rate", 0.0, r"sample_rate must be in \(0, 1\]"),
        ("sample_rate", "0.5", r"sample_rate must be in \(0, 1\]"),
        ("sample_rate", None, r"sample_rate must be in \(0, 1\]"),
        ("steps", 0, "steps must be a whole number from 1"),
        ("split_id", 5, "split_id must be text"),
        ("noise_multiplier", 1.0, "a release has other values than"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        event_from_dict({**SHARED.to_dict(), field: value})


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("kind", "look", "kind must be one of"),
        ("part", "validation", "part must be one of"),
        ("epsilon", 0.0, "epsilon must be at least 1e-06 and finite, got 0.0"),
        ("epsilon", -1.0, "epsilon must be at least"),
        ("epsilon", 1e-7, "epsilon must be at least"),
        ("epsilon", math.inf, "epsilon must be at least"),
        ("epsilon", math.nan, "epsilon must be at least"),
        ("epsilon", "1", "epsilon must be at least"),
        ("epsilon", None, "epsilon must be at least"),
        ("split_id", 5, "split_id must be text"),
        ("steps", 1, "a release has other values than"),
        ("sample_rate", 0.5, "a release has other values than"),
    ],
)
def test_a_wrong_value_of_a_laplace_release_is_named_with_its_rule(
    field: str, value: object, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        event_from_dict({**LAPLACE.to_dict(), field: value})


@pytest.mark.parametrize("field", ["noise_multiplier", "sample_rate", "steps"])
def test_text_is_not_a_number(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        event_from_dict({**OWN.to_dict(), field: "1"})


# --- who faces how much noise -----------------------------------------------------------------------


def shared(agencies: int, colluders: int, dropouts: int, **other: Any) -> SharedRelease:
    values = {**SHARED.to_dict(), "agencies": agencies, "colluders": colluders, "dropouts": dropouts}
    return SharedRelease.from_dict({**values, **other})


@quick
@given(shared_releases())
def test_a_viewer_who_knows_more_faces_less_noise(event: SharedRelease) -> None:
    public, coordinator, everybody = (event.shares(viewer) for viewer in VIEWERS)
    assert public == event.agencies - event.dropouts
    assert coordinator == event.honest == public - event.colluders
    assert everybody == 1
    assert public >= coordinator >= max(everybody, event.dropouts + 1)
    faced = [event.noise_multiplier_to(viewer) for viewer in VIEWERS]
    assert faced == sorted(faced, reverse=True)
    for viewer, noise in zip(VIEWERS, faced, strict=True):
        assert (noise * event.sensitivity) ** 2 == pytest.approx(event.shares(viewer) * event.share_variance)


def test_the_shares_of_ten_agencies() -> None:
    """Two may collude and two may drop out: six honest shares are the whole noise."""
    assert [SHARED.shares(viewer) for viewer in VIEWERS] == [8, 6, 1]
    assert SHARED.noise_multiplier_to("coordinator") == pytest.approx(math.sqrt(6e7) / 2002.5)
    assert SHARED.noise_multiplier_to("everybody") == pytest.approx(math.sqrt(1e7) / 2002.5)


def test_every_sum_needs_more_agencies_than_can_go_wrong() -> None:
    for dropouts in range(4):
        for colluders in range(4):
            least = 2 * dropouts + colluders + 1
            assert shared(least, colluders, dropouts).honest == dropouts + 1
            with pytest.raises(ValueError, match="agencies must be"):
                shared(least - 1, colluders, dropouts)


def test_two_agencies_of_which_one_may_collude_have_one_share() -> None:
    """The arithmetic admits it; the plan refuses it, since a sum of two is the other's to whoever is in it."""
    event = shared(2, 1, 0)
    assert event.honest == 1
    assert event.noise_multiplier_to("coordinator") == event.noise_multiplier_to("everybody")


def test_two_disjoint_sums_are_never_both_large_enough() -> None:
    """n > 2d + c: two sets of n - d honest-or-colluding agencies share an honest one, who answers once."""
    for agencies in range(1, 12):
        for colluders in range(agencies):
            for dropouts in range(agencies):
                if agencies > 2 * dropouts + colluders:
                    assert 2 * (agencies - dropouts) - agencies > colluders


def test_values_of_numpy_are_read_as_numbers() -> None:
    assert Release("train", "train", np.float64(1.5), np.float64(0.25), 3).noise_multiplier == 1.5  # type: ignore[arg-type]
