"""`conf/` + overrides -> one checked `Experiment`. The only place where Hydra's values become ours."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, field_validator

from experiments.agencies import Agency, read_agencies
from experiments.datasets import prepare
from federation.decision import DecisionError, Signed, read_signed
from federation.experiment import Experiment, Model, Settings, SettingsError, checked
from federation.protocol import Agreed, Participant, sentences
from federation.server.archive.address import TrackerError, check_no_secret
from federation.server.gates import Gates
from models.contract import Contract, ContractError
from models.marginals import WorkloadError
from models.workload import Workload
from models.workload import read as read_workload

CONF = Path(__file__).resolve().parent.parent / "conf"
UNSTATED = "unstated"
SHOW_ALL = "`fedrisk run --cfg job` shows every setting"


class Data(Agreed):
    """Where a simulation's tables come from: a loader with its options, or your own agencies.yaml."""

    source: Literal["synthetic", "pilot", "heart", "compas", "compas_violent", "adult", "iowa", "own"]
    agencies: str | None = None
    root: str | None = None
    min_people: Annotated[int, Field(ge=1)] = 50
    options: dict[str, Any] = Field(default_factory=dict)


class MapSettings(Agreed):
    """What `fedrisk map` asks for: one of conf/map. workload: None where no map is wanted.

    epsilon: what it may cost one person at one agency. without: agency -> columns that it does not permit.
    workload: as `models.workload.read` takes it, or the path of a YAML file that holds it.
    """

    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    without: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    workload: Any = None

    @field_validator("without", mode="before")
    @classmethod
    def _lists_by_agency(cls, value: object) -> object:
        found = {} if value is None else value
        if not isinstance(found, dict) or not all(isinstance(each, list | tuple) for each in found.values()):
            raise ValueError(
                f"must name agencies, each with a list of columns, as in {{police: [sex]}}, got {value!r}"
            )
        return found

    @field_validator("workload")
    @classmethod
    def _mapping_or_path(cls, value: object) -> object:
        if value is None or isinstance(value, str | dict):
            return value
        raise ValueError(f"must be a mapping, or the path of a YAML file that holds one, got {value!r}")

    def loaded(self) -> "MapSettings":
        """With the workload itself in place of the path of its file."""
        if not isinstance(self.workload, str):
            return self
        return self.but(workload=_read_yaml(Path(self.workload), "workload"))

    def read(self, contract: Contract, agencies: Sequence[str]) -> Workload:
        """The workload, checked against the contract; `without` against it and the agencies' names.

        `SettingsError` has every problem as a sentence.
        """
        if self.workload is None:
            choices = sorted(path.stem for path in (CONF / "map").glob("*.yaml") if path.stem != "none")
            raise SettingsError(
                "map is none, so nothing is asked: write map.workload=FILE.yaml with queries of your own, or choose "
                f"map={', '.join(choices[:-1])} or {choices[-1]}"
            )
        problems = [
            f"map.without names {name!r}, which is no agency here: known are {', '.join(agencies)}"
            for name in self.without
            if name not in agencies
        ]
        try:
            workload = read_workload(self.workload, contract)
        except WorkloadError as error:
            problems += [f"map.workload: {line}" for line in str(error).splitlines()]
            raise SettingsError("\n".join(problems)) from None
        problems += [
            f"map.without.{name} names {column!r}, which the workload does not ask about: it reads "
            f"{', '.join(workload.columns)}"
            for name, columns in self.without.items()
            for column in columns
            if column not in workload.columns
        ]
        if problems:
            raise SettingsError("\n".join(problems))
        return workload


class Compare(Agreed):
    """What `fedrisk compare` repeats."""

    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 3.0, 8.0)
    shared: bool = True
    sklearn: bool = True


@dataclass(frozen=True)
class Study:
    """An experiment together with where its simulated agencies' tables are.

    map: what `fedrisk map` asks, its workload a mapping; None where nothing is. Only that command reads it against the contract, so that a
    run with another contract needs no other map.
    """

    experiment: Experiment
    data: Data
    agencies: tuple[Agency, ...]
    compare: Compare
    map: MapSettings | None = None

    def workload(self) -> Workload:
        """The queries of `map`; `SettingsError` where there are none, or not of this contract and these agencies."""
        asked = self.map or MapSettings()
        return asked.read(self.experiment.data_contract, [agency.name for agency in self.agencies])


def compose(overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition of `conf/` with `overrides`; `SettingsError` has a sentence for each that is off."""
    from hydra.errors import HydraException

    kept = list(overrides)
    wrong: list[tuple[str, Exception]] = []
    while True:
        try:
            config = _compose(kept)
            break
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            override = _to_blame(error, kept)
            if override is None:
                raise SettingsError(f"conf: {_first_line(error)}") from None
            wrong.append((override, error))
            kept.remove(override)
    if wrong:
        raise SettingsError("\n".join(dict.fromkeys(_what_is_wrong(*each, config) for each in wrong)))
    return config


def read(config: DictConfig, *, tables: bool = True) -> Study:
    """The study that `config` describes. Settings are checked before any data is touched.

    tables: False for a deployment, whose agencies keep their tables on their own machines.

    Raises:
        SettingsError: a setting is unknown, of the wrong type, or impossible; all are named at once.
        DataError: the data is not where it should be, or not what it should be.
    """
    settings, data, compare, contract, asked = check_settings(config)
    if data.source == "own":
        path, _ = read_agencies(Path(data.agencies or ""), tables=tables)
        contract = _contract(_read_yaml(path), path.name).to_dict()
    if settings.purpose == UNSTATED:
        settings = settings.but(purpose=contract["purpose"])
    agencies = agencies_of(data, settings.output, tables=tables)
    contract |= {} if data.source == "own" else _split_of(agencies)
    participants = [participant_of(agency) for agency in agencies]
    whole = {"settings": settings, "contract": contract, "participants": participants}
    whole["registration"] = _registration(config.get("registration"))
    experiment = checked(Experiment, whole)
    experiment.plan("check", simulation=False)  # or agencies and settings do not make a plan together
    return Study(experiment, data, agencies, compare, None if asked.workload is None else asked.loaded())


def check_settings(config: DictConfig) -> tuple[Settings, Data, Compare, dict[str, Any], MapSettings]:
    """What can be known without any data: settings, the contract where `conf/` has it (else {}), what a map asks.

    `SettingsError` has every problem. Where nobody states a purpose it is `UNSTATED`.
    """
    values = _plain(config)
    values.pop("registration", None)  # a file, which `read` opens
    problems: list[str] = []
    _part(Gates, values.pop("gates", None) or {}, "gates", problems)  # for `experiments.drafting`
    data = _part(Data, values.pop("data", None), "data", problems)
    compare = _part(Compare, values.pop("compare", None), "compare", problems)
    asked = _part(MapSettings, values.pop("map", None) or {}, "map", problems)
    contract = values.pop("contract", None) or {}
    if data is not None and data.source == "own":
        contract = {}  # agencies.yaml names the file
    elif not contract:
        problems.append("contract must be one of conf/contract: only data=own takes it from agencies.yaml")
    stated = contract.get("purpose") if isinstance(contract, Mapping) else None
    values["purpose"] = values.get("purpose") or stated or UNSTATED
    settings = _part(Settings, values, "", problems)
    if settings is not None:
        try:
            check_no_secret(settings.tracking.uri)
        except TrackerError as error:
            problems.append(str(error))
    if problems or data is None or compare is None or settings is None or asked is None:
        raise SettingsError("\n".join(problems))
    settings.noise()  # or there is no noise that keeps the target
    checked_contract = _contract(contract, "contract").to_dict() if contract else {}
    return settings, data, compare, checked_contract, asked


def _registration(path: object) -> Signed | None:
    """What a panel signed, from the file that `registration=` names."""
    if path is None:
        return None
    try:
        return read_signed(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise SettingsError(
            f"registration: {path} cannot be read: name the registration.json that the panel signed"
        ) from None
    except DecisionError as error:
        raise SettingsError(f"registration: {path}: {error}") from None


def agencies_of(data: Data, output: str, *, tables: bool = True) -> tuple[Agency, ...]:
    """The agencies with their tables, which a loader writes under `output`/data where they are not there yet."""
    if data.source == "own":
        return read_agencies(Path(data.agencies or ""), tables=tables)[1]
    options = data.options | ({} if data.root is None else {"root": data.root})
    return read_agencies(prepare(data.source, options, Path(output) / "data"))[1]


def _split_of(agencies: Sequence[Agency]) -> dict[str, Any]:
    """The split column that a loader wrote into the contract beside its tables (FLamby's), if it did."""
    beside = agencies[0].table.parent / "contract.yaml"
    found = _read_yaml(beside) if beside.is_file() else {}
    return {"split": found["split"]} if "split" in found else {}


def participant_of(agency: Agency) -> Participant:
    """What everybody may know about `agency`."""
    return Participant(
        name=agency.name, kind=agency.kind, public_size=agency.public_size, weight=agency.weight
    )


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        missing = [key for key in OmegaConf.missing_keys(config) if not key.startswith("hydra.")]
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise SettingsError(f"{error.full_key} cannot be worked out: {_first_line(error)}") from None
    if missing:
        raise SettingsError("\n".join(f"{key} is missing: write {key}=..." for key in sorted(missing)))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}


def _part(cls: type[Model], values: object, key: str, problems: list[str]) -> Model | None:
    """`values` as a `cls`, or None after adding a sentence for each problem."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems += sentences(error, within=[key] if key else [])
        return None


def _contract(values: Mapping[str, Any], where: str) -> Contract:
    try:
        return Contract.from_dict(values)
    except ContractError as error:
        raise SettingsError("\n".join(f"{where}: {problem}" for problem in error.problems)) from None


def _read_yaml(path: Path, what: str = "contract") -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the {what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the {what} {path} is not UTF-8 text: save it again as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        why = getattr(error, "problem", None) or "it cannot be read"
        raise SettingsError(f"the {what} {path} is not YAML{where}: {why}") from None
    except ValueError as error:  # YAML reads 2024-02-30 as a day
        raise SettingsError(f"the {what} {path} has a date that there is not: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"the {what} {path} must be a mapping of settings, as in `name: ...`")
    return values


# --- which override is wrong, and what may have been meant ---------------------------------------------


def _compose(overrides: Sequence[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: DictConfig = hydra_compose("config", overrides=list(overrides))
    return config


def _to_blame(error: Exception, overrides: Sequence[str]) -> str | None:
    """The override that Hydra stumbled over: it says so, names the key, or composes without it."""
    if getattr(error, "override", None) in overrides:
        return str(error.override)  # type: ignore[attr-defined]
    said = _first_line(error)
    named = [o for o in overrides if re.search(rf"(?<![\w.]){re.escape(_key(o))}(?!\w)", said)]
    helps = (o for o in [*named, *overrides] if _composes([k for k in overrides if k != o]))
    return named[0] if len(named) == 1 else next(helps, named[0] if named else None)


def _composes(overrides: Sequence[str]) -> bool:
    from hydra.errors import HydraException

    try:
        _compose(overrides)
    except (HydraException, OmegaConfBaseException, ValueError):
        return False
    return True


def _what_is_wrong(override: str, error: Exception, config: DictConfig) -> str:
    """One sentence for an override that Hydra does not take; `config` is the composition without it."""
    from hydra.errors import OverrideParseException

    key, value = _key(override), override.partition("=")[2]
    if override.startswith("-"):
        return f"{override!r} is not an option of this command: `--help` shows those there are"
    if "=" not in override.lstrip("=") and not override.startswith("~"):
        return f"{override!r} is not an override: write it as key=value"
    if isinstance(error, OverrideParseException):
        quoted = f"\"{key}='a (b)'\""
        return f"{override!r} cannot be read: put text with special characters in quotes within quotes, as in {quoted}"
    if "Ambiguous value" in str(error):
        return f"{key} has several values: add --multirun to try each, or write a list as {key}=[{value}]"
    choices = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
    if choices and value not in choices:
        return f"{key} must be one of {', '.join(choices)}, got {value!r}"
    if key in _keys(OmegaConf.to_container(config)):
        return f"{override!r} cannot be used: {_first_line(error)}"
    return f"{key} is not a setting{_hint(key, config)} {SHOW_ALL}"


def _hint(key: str, config: DictConfig) -> str:
    """Where a setting of this name is, or one of nearly this name."""
    group, _, inner = key.partition(".")
    choices = sorted(
        path.stem
        for path in (CONF / group).glob("*.yaml")
        if inner and inner in _keys(yaml.safe_load(path.read_text()))
    )
    if choices:
        return (
            f" here, but of {' and of '.join(f'{group}={choice}' for choice in choices)}: choose that first;"
        )
    keys = _keys(OmegaConf.to_container(config))
    parent, _, leaf = key.rpartition(".")
    if parent in keys and OmegaConf.select(config, parent) is None:
        return f" yet: write {parent}={{{leaf}: ...}};"
    near = [known for known in keys if known.rpartition(".")[2] == key]
    near = near or difflib.get_close_matches(key, keys, n=1)
    return f": did you mean {near[0]}?" if near else ":"


def _keys(values: object, prefix: str = "") -> list[str]:
    """Every dotted key, groups included, in order."""
    found = []
    for name, value in values.items() if isinstance(values, Mapping) else ():
        found += [f"{prefix}{name}", *_keys(value, f"{prefix}{name}.")]
    return found


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
