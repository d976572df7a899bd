"""`fedrisk signs`: it reads what maps released, writes signs.json without a count in it, and says what it cannot read."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import fedrisk, files_under
from test_signs import planted, series

from models.signs import Series

RUN = "town-20310304-120000-1a2b"


def listed(each: Series) -> dict[str, Any]:
    """A series as the coordinator writes it."""
    return {
        "name": each.name,
        "agency": each.agency,
        "query": each.query,
        "areas": list(each.areas),
        "months": list(each.months),
        "counts": [[None if math.isnan(count) else count for count in row] for row in each.counts.tolist()],
        "sd": each.sd.tolist(),
    }


def write_map(folder: Path, found: list[Series], *, run_id: str = RUN, epsilon: float | None = 0.5) -> Path:
    folder.mkdir()
    facts = {"schema": 1, "kind": "map", "run_id": run_id, "privacy": {"epsilon": epsilon}}
    (folder / "map.json").write_text(json.dumps(facts))
    (folder / "series.json").write_text(json.dumps({"schema": 1, "series": [listed(each) for each in found]}))
    return folder


@pytest.fixture
def town(tmp_path: Path) -> Path:
    return write_map(tmp_path / RUN, planted(np.random.default_rng(0), (8, 48), 5.0))


def test_a_planted_lead_is_written_and_said_last(town: Path) -> None:
    before = files_under(town)
    done = fedrisk("signs", str(town))
    assert done.code == 0, done.err
    found = json.loads((town / "signs.json").read_text())
    assert (found["schema"], found["kind"], found["maps"]) == (1, "signs", [RUN])
    assert found["privacy"] == {"epsilon": 0.5, "costs": "nothing further"}
    assert (found["areas"], found["months"], found["max_lag"]) == (8, 48, 6)
    assert [each["query"] for each in found["series"]] == ["query first", "query second"]
    assert all(0 < each["noise_share"] < 0.5 for each in found["series"])
    there, back = found["signs"]
    assert (there["leads"], there["follows"], there["lag"], there["verdict"]) == (
        "first",
        "second",
        3,
        "leads",
    )
    at = there["partial_correlation"]
    assert 0 < at["low"] < at["value"] < at["high"] < 1
    assert at == {end: there["lags"][2][end] for end in at}
    assert back["verdict"] != "leads"
    assert done.out.splitlines()[-1] == found["conclusion"]
    assert found["conclusion"].startswith("first goes ahead of second by 3 months: more of the one, more of")
    assert "no cause" in found["conclusion"]
    after = files_under(town)
    assert {path: after[path] for path in before} == before


def test_json_is_one_object_and_output_another_folder(town: Path, tmp_path: Path) -> None:
    done = fedrisk("signs", str(town / "map.json"), "--json", "--output", str(tmp_path / "new" / "place"))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found == json.loads((tmp_path / "new" / "place" / "signs.json").read_text())
    assert not (town / "signs.json").exists()


def test_no_count_of_the_working_file_gets_out(tmp_path: Path) -> None:
    """Cells that the map may withhold: what is written and said is of all areas and months together."""
    found = planted(np.random.default_rng(0), (8, 48), 5.0)
    canary = found[0].counts.copy()
    canary[3, 20] = 417.8128
    folder = write_map(tmp_path / RUN, [series("first", canary, 5.0), found[1]])
    done = fedrisk("signs", str(folder), "--output", str(tmp_path / "out"))
    assert done.code == 0
    told = done.out + "".join(content.decode() for content in files_under(tmp_path / "out").values())
    assert "417.8" not in told
    assert not any(f"{count:.2f}" in told for count in found[1].counts.ravel() if count > 10)


def test_two_maps_are_taken_in_the_months_that_both_have(tmp_path: Path) -> None:
    one, other = planted(np.random.default_rng(0), (8, 54), 5.0)
    maps = [
        write_map(tmp_path / "a", [one.within(one.areas, one.months[:50])], run_id="a"),
        write_map(tmp_path / "b", [other.within(other.areas, other.months[2:])], run_id="b", epsilon=None),
    ]
    done = fedrisk("signs", *map(str, maps), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["maps"], found["months"], found["between"]) == (["a", "b"], 48, ["2020-03", "2024-02"])
    assert found["privacy"]["epsilon"] == [0.5, None]
    assert (tmp_path / "a" / "signs.json").is_file()


def test_one_agency_alone_is_compared_with_itself_and_that_is_said(tmp_path: Path) -> None:
    one, other = planted(np.random.default_rng(0), (8, 48), 5.0)
    same = [
        Series(each.name, "north", each.query, each.areas, each.months, each.counts, each.sd)
        for each in (one, other)
    ]
    done = fedrisk("signs", str(write_map(tmp_path / "a", same)))
    assert done.code == 0
    assert "one agency alone (north)" in done.out
    assert "first goes ahead of second" in done.out
    third = series("third", one.counts[:, ::-1], 5.0)
    done = fedrisk("signs", str(write_map(tmp_path / "b", [*same, third])), "--json")
    pairs = {(sign["leads"], sign["follows"]) for sign in json.loads(done.out)["signs"]}
    assert len(pairs) == 4, "counts of one agency are compared with other agencies alone where there are any"
    assert not pairs & {("first", "second"), ("second", "first")}


def test_names_that_two_maps_share_say_which_map(tmp_path: Path) -> None:
    found = planted(np.random.default_rng(0), (8, 48), 5.0)
    maps = [write_map(tmp_path / name, found, run_id=name) for name in ("a", "b")]
    done = fedrisk("signs", *map(str, maps), "--json")
    names = [each["name"] for each in json.loads(done.out)["series"]]
    assert names == ["first (a)", "second (a)", "first (b)", "second (b)"]


def test_series_with_too_few_months_for_one_area_are_left_out_and_named(tmp_path: Path) -> None:
    found = planted(np.random.default_rng(0), (8, 40), 2.0, share=0.8)
    totals = [each.total().called(f"{each.name} everywhere") for each in found]
    done = fedrisk("signs", str(write_map(tmp_path / "a", [*found, *totals])))
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "a" / "signs.json").read_text())
    assert [each["name"] for each in written["left_out"]] == ["first everywhere", "second everywhere"]
    assert (
        "not in it, as it has 40 months in 1 area and needs 48: first everywhere, second everywhere"
        in done.out
    )
    assert [each["name"] for each in written["series"]] == ["first", "second"]
    assert len(written["signs"]) == 2


# --- bad input ------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, town: Path) -> None:
    one, other = planted(np.random.default_rng(0), (8, 48), 5.0)
    later = Series(
        "x", "y", "z", one.areas, [f"{2040 + t // 12}-{t % 12 + 1:02d}" for t in range(48)], one.counts, 5.0
    )
    short = [each.within(each.areas, each.months[:20]) for each in (one, other)]
    no_series = write_map(tmp_path / "no-series", [one])
    (no_series / "series.json").unlink()
    broken = write_map(tmp_path / "broken", [one])
    (broken / "map.json").write_text("{")
    no_map = write_map(tmp_path / "no-map", [one])
    (no_map / "map.json").write_text('{"schema": 1, "kind": "cohort"}')
    odd = write_map(tmp_path / "odd", [one])
    (odd / "series.json").write_text('{"series": [{"name": "x"}]}')
    for arguments, sentence in (
        ([tmp_path / "nothing"], "cannot be read: name the folder of a finished map"),
        ([no_series], "series.json cannot be read"),
        ([broken], "map.json is not JSON"),
        ([no_map], "is not a demand map of schema 1"),
        ([odd], "series 1 is not as `fedrisk map` writes it"),
        ([write_map(tmp_path / "none", [])], "has no series: signs need a map with a query by month"),
        ([write_map(tmp_path / "one", [one])], "signs are between two series at least, got 1"),
        ([write_map(tmp_path / "short", short)], "need at least 24 months"),
        (
            [town, write_map(tmp_path / "later", [later], run_id="b")],
            "no month in common: 2020-01 to 2023-12, 2040-01",
        ),
        ([town, town], "a map is named twice"),
        ([town, "--max-lag", "0"], "must be 1 month at least"),
    ):
        done = fedrisk("signs", *map(str, arguments))
        assert done.code == 1
        assert len(done.problems) == 1
        assert sentence in done.problems[0]
    assert not list(tmp_path.rglob("signs.json"))
