"""`conf/` + overrides -> one checked `Experiment`. The only place where Hydra's values become ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from experiments.datasets import Agency, prepare, read_agencies
from federation.experiment import Experiment, Settings, SettingsError, checked
from federation.protocol import Agreed, Participant
from models.contract import Contract, ContractError

CONF = Path(__file__).resolve().parent.parent / "conf"


class Data(Agreed):
    """Where a simulation's tables come from: a loader with its options, or your own agencies.yaml."""

    source: Literal["synthetic", "heart", "compas", "iowa", "own"]
    agencies: str | None = None
    root: str | None = None
    min_people: Annotated[int, Field(ge=1)] = 50
    options: dict[str, Any] = {}


class Compare(Agreed):
    """What `fedrisk compare` repeats."""

    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 3.0, 8.0)
    sklearn: bool = True


@dataclass(frozen=True)
class Study:
    """An experiment together with where its simulated agencies' tables are."""

    experiment: Experiment
    data: Data
    agencies: tuple[Agency, ...]
    compare: Compare


def compose(overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition of `conf/` with `overrides`; `SettingsError` in Hydra's words when one is off."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config: DictConfig = hydra_compose("config", overrides=list(overrides))
            return config
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(str(error).splitlines()[0]) from None


def read(config: DictConfig, *, tables: bool = True) -> Study:
    """The study that `config` describes. Settings are checked before any data is touched.

    tables: False for a deployment, whose agencies keep their tables on their own machines.

    Raises:
        SettingsError: a setting is unknown, of the wrong type, or impossible; all are named at once.
        DataError: the data is not where it should be, or not what it should be.
    """
    values = _plain(config)
    data = checked(Data, _within(values.pop("data"), "data"))
    compare = checked(Compare, _within(values.pop("compare"), "compare"))
    contract = values.pop("contract", None) or {}
    purpose = values.get("purpose") or contract.get("purpose")
    settings = checked(Settings, values | {"purpose": purpose or "unstated"})
    if data.source == "own":
        contract_path, _ = read_agencies(Path(data.agencies or ""), tables=tables)
        contract = _read_yaml(contract_path)
    contract = _contract(contract, "contract").to_dict()
    if settings.purpose == "unstated":
        settings = settings.but(purpose=contract["purpose"])
    agencies = agencies_of(data, settings.output, tables=tables)
    contract |= {} if data.source == "own" else _split_of(agencies)
    participants = [participant_of(agency) for agency in agencies]
    whole = {"settings": settings, "contract": contract, "participants": participants}
    return Study(checked(Experiment, whole), data, agencies, compare)


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
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise SettingsError(str(error).splitlines()[0]) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}


def _within(values: Any, key: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise SettingsError(f"{key} must be a group of settings, got {values!r}")
    return dict(values)


def _contract(values: Mapping[str, Any], where: str) -> Contract:
    try:
        return Contract.from_dict(values)
    except ContractError as error:
        raise SettingsError(f"{where}: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError:
        raise SettingsError(f"the contract {path} cannot be read") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"the contract {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"the contract {path} must be a mapping")
    return values
