"""Every file in conf/ composes, is checked, and can be found by a person who looks for a setting."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import fedrisk
from omegaconf import OmegaConf
from pydantic import BaseModel

from experiments.config import CONF, Compare, Data, Study, check_settings, compose, read
from experiments.datasets import SOURCES, default_root
from federation.experiment import Settings, SettingsError
from models import workload
from models.risk import ARCHITECTURES, build

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in sorted(CONF.iterdir())
    if group.is_dir()
}
OWN = ["data.agencies=agencies.yaml"]


def with_what_it_needs(group: str, choice: str) -> list[str]:
    """Overrides that choose `choice`, and what cannot be left open then."""
    needs = {("data", "own"): OWN, ("experiment", "own"): OWN, ("privacy", "shared"): ["strategy=dp_fedsgd"]}
    needs[("map", "own")] = ["map.workload=workload.yaml"]
    if (group, choice) == ("contract", "from_agencies"):
        return ["experiment=own", *OWN]
    return [f"{group}={choice}", *needs.get((group, choice), [])]


CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]


def test_the_groups_are_the_ones_that_are_documented() -> None:
    assert set(GROUPS) == {
        "contract",
        "data",
        "engine",
        "experiment",
        "fairness",
        "gates",
        "map",
        "model",
        "privacy",
        "strategy",
        "tracking",
    }


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda text: text)
def test_every_choice_is_valid_and_an_unknown_key_in_it_is_not(group: str, choice: str) -> None:
    config = compose(with_what_it_needs(group, choice))
    settings, data, _, contract, _ = check_settings(config)
    chosen = {"privacy": settings.privacy.mechanism, "data": data.source}
    chosen |= {part: getattr(settings, part).name for part in ("model", "strategy", "engine")}
    assert chosen.get(group, choice) == choice
    if group == "contract" and contract:
        assert contract["name"] == choice
    where = "" if group == "experiment" else f"{group}."
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, f"{where}colour", "red")
    if (group, choice) == ("contract", "from_agencies"):
        return  # agencies.yaml names the file, so nothing here is read
    with pytest.raises(SettingsError, match=rf"(contract: |{where})colour is not a known setting"):
        check_settings(config)


@pytest.mark.parametrize(
    ("model", "strategy", "privacy"),
    list(itertools.product(GROUPS["model"], GROUPS["strategy"], GROUPS["privacy"])),
    ids=lambda text: text,
)
def test_every_combination_is_a_plan(model: str, strategy: str, privacy: str) -> None:
    config = compose([f"model={model}", f"strategy={strategy}", f"privacy={privacy}"])
    if privacy == "shared" and strategy != "dp_fedsgd":
        with pytest.raises(SettingsError, match="strategy must be dp_fedsgd where privacy is shared"):
            check_settings(config)
        return
    settings, *_ = check_settings(config)
    assert (settings.model.name, settings.strategy.name) == (model, strategy)
    assert (settings.noise().noise_multiplier > 0) == (privacy != "none")
    assert build(settings.model, 7) is not None


def test_a_model_is_one_function_and_one_file() -> None:
    assert set(GROUPS["model"]) == set(ARCHITECTURES)


def test_every_data_set_has_its_files() -> None:
    loaders = set(SOURCES)
    assert set(GROUPS["data"]) == loaders | {"own"}
    assert set(GROUPS["contract"]) == loaders | {"from_agencies"}
    for name in GROUPS["data"]:
        keys = set(yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text()))
        assert {"source", "min_people"} <= keys <= set(Data.model_fields)


@pytest.mark.parametrize("experiment", [name for name in GROUPS["experiment"] if name != "own"])
def test_every_experiment_is_a_study_of_its_agencies(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [f"experiment={experiment}"]
    if experiment in ("demo", "pilot"):
        overrides.append("data.options.people=0.1")
    elif default_root() is None:
        pytest.skip("the original files are absent: docs/data.md")
    study = read(compose(overrides))
    plan = study.experiment.plan("run-1", simulation=True)
    assert study.experiment.settings.name == experiment
    assert len(plan.participants) == len(study.agencies) > 1
    assert plan.contract_sha256 == study.experiment.data_contract.sha256
    assert all(agency.table.is_file() for agency in study.agencies)
    if experiment == "pilot" and not hasattr(workload, "COUNTS"):
        return  # its queries count rows, `each: row`, which models.workload cannot yet
    assert study.workload().queries  # conf/map, against the experiment's contract


def asked(*overrides: str) -> Study:
    return read(compose(["data.options.people=0.1", *overrides]))


def test_a_map_is_what_its_file_says_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = (CONF / "map" / "synthetic.yaml").read_text()
    Path("mine.yaml").write_text(yaml.safe_dump(yaml.safe_load(shown)["workload"]))
    assert asked("map=own", "map.workload=mine.yaml").workload() == asked().workload()
    assert asked("map=none").map is None
    assert asked("experiment=pilot", "map=pilot_needs").workload().queries
    with pytest.raises(
        SettingsError,
        match=r"^map is none, so nothing is asked: write map.workload=FILE.yaml .* choose map=adult, ",
    ):
        asked("map=none").workload()


WRONG = {
    "map.epsilon=0": "map.epsilon should be greater than 0, got 0",
    "map=own map.workload=5": "map.workload must be a mapping, or the path of a YAML file that holds one, got 5",
    "map=own": "map.workload is missing: write map.workload=...",
    "map=own map.workload=no.yaml": "the workload no.yaml cannot be read",
    "+map.without.court=[age]": "map.without names 'court', which is no agency here: known are children, ",
    "+map.without.police=[moves]": "map.without.police names 'moves', which the workload does not ask about: it ",
    "map=heart": "map.workload: queries[0].crosstab names 'age_band', which is no attribute here: known ",
}


@pytest.mark.parametrize("typed", list(WRONG))
def test_a_map_that_cannot_be_is_a_sentence(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as error:
        asked(*typed.split()).workload()
    assert str(error.value).startswith(WRONG[typed])


def dotted(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting by its dotted name."""
    found = []
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += dotted(kind, f"{prefix}{name}.")
        elif name == "model":
            found += ["model.name", "model.hidden"]
        else:
            found.append(f"{prefix}{name}")
    return found


def test_every_setting_is_shown_so_that_a_person_can_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = fedrisk("run", "--cfg", "job")
    assert done.code == 0
    shown = OmegaConf.create(done.out)
    names = [*dotted(Settings), *dotted(Compare, "compare.")]
    assert len(names) > 40
    missing = [name for name in names if name not in keys_of(shown)]
    assert missing == []
    assert set(shown) == {name.partition(".")[0] for name in names} | {
        *("data", "contract", "gates", "map", "registration"),
    }


def keys_of(values: Any, prefix: str = "") -> set[str]:
    found = set()
    for name in values if OmegaConf.is_dict(values) else ():
        found |= {f"{prefix}{name}", *keys_of(values[name], f"{prefix}{name}.")}
    return found


def test_what_is_shown_can_be_typed_back() -> None:
    """Every value that `--cfg job` shows, written as an override, changes nothing."""
    config = compose([])
    flat = [name for name in dotted(Settings) if OmegaConf.select(config, name) not in (None, "")]
    again = compose([f"{name}={typed(OmegaConf.select(config, name))}" for name in flat])
    assert check_settings(again) == check_settings(config)


def typed(value: object) -> str:
    return str(list(value)) if OmegaConf.is_list(value) else str(value)  # type: ignore[call-overload]
