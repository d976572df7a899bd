"""Loaders that write a folder of agencies (experiments/agencies.py), as a person would by hand.

For public files that the user has (`heart`, `compas`, `iowa`) and for made-up people (`synthetic`). They check a file's SHA-256 before
they parse it, read only the columns they need, and keep no identifier.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from experiments.agencies import DataError, unknown_keys
from models.table import Table

if TYPE_CHECKING:
    import pandas as pd

REPOSITORY: Final = Path(__file__).resolve().parents[1]
CONTRACTS: Final = REPOSITORY / "conf" / "contract"
CODE: Final = (
    Path(__file__),
    Path(__file__).with_name("synthetic.py"),
)  # when it changes, so may what it writes


# --- public sources -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A public file: where it lies under the root, the SHA-256 that it may have, and who publishes it."""

    path: str
    sha256: tuple[str, ...]
    origin: str


_UCI: Final = 'UCI Machine Learning Repository, "Heart Disease"; a copy is GitHub '
_HEARTS: Final = f"{_UCI}aarushkachhawa/Heart-Disease-Detection at 955796899bf3"
SOURCES: Final[Mapping[str, tuple[Source, ...]]] = {
    "heart": (
        Source(
            "heart_disease/processed.cleveland.data",
            ("a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",),
            _HEARTS,
        ),
        Source(
            "heart_disease/processed.hungarian.data",
            ("d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",),
            f"{_UCI}RenHongJia/ProbabilisticGraphModels at 29ee0d6454ad, with its NaN written back as ?",
        ),
        Source(
            "heart_disease/processed.switzerland.data",
            ("834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",),
            _HEARTS,
        ),
        Source(
            "heart_disease/processed.va.data",
            ("e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",),
            _HEARTS,
        ),
    ),
    "compas": (
        Source(
            "compas/compas-scores-two-years.csv",
            (
                "c451db85908b2f7fef1d83203bedf6b71ecda0d5af468d82ae62178f91d0cc7d",  # as published
                "f3c760dcdde86b4f58edb01e6ceb4d4e6970bdee73f9913f510010f3f0119086",  # direct identifiers blanked
            ),
            "ProPublica, GitHub propublica/compas-analysis at bafff5da3f2e",
        ),
    ),
    "iowa": (
        Source(
            "iowa_recidivism/3-Year_Recidivism_for_Offenders_Released_from_Prison_in_Iowa.csv",
            ("95e68f176a84edea0350eb01bbbcdaf44b9cc88d025dcf409bde30ae40de17a9",),
            "State of Iowa open data portal, dataset mw8r-vqy4; this copy is GitHub "
            "jirvingphd/iowa-prisoner-recidivism-mod-3-project at 8fe0b6f9170b, folder data",
        ),
    ),
    "synthetic": (),
}


@dataclass(frozen=True)
class _Build:
    """What a folder is made from, by agency."""

    contract: str
    tables: Mapping[str, Table]
    kinds: Mapping[str, str]
    public_sizes: Mapping[str, int]


CHOICES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "heart": {"split": ("hash", "flamby")},
    "compas": {"cohort": ("full", "corrected"), "sites": ("court", "one")},
    "iowa": {},
}
"""What may be chosen of each real data set; the first is the default."""


def default_root() -> Path | None:
    """Where the original files are: $FEDRISK_DATA, else shared/data beside the repository, else None."""
    if os.environ.get("FEDRISK_DATA"):
        return Path(os.environ["FEDRISK_DATA"])
    beside = REPOSITORY.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def read_sources(name: str, root: Path | None) -> dict[str, bytes]:
    """The checked bytes of every file of data set `name`, by path; `DataError` names all that are absent or changed."""
    root = root or default_root()
    found: dict[str, bytes] = {}
    problems = []
    for source in SOURCES[name]:
        get = (
            f"Get it from {source.origin} and put it under $FEDRISK_DATA as {source.path}; "
            f"its sha256 must be {' or '.join(source.sha256)}."
        )
        try:
            found[source.path] = (root or Path("$FEDRISK_DATA")).joinpath(source.path).read_bytes()
        except OSError:
            where = f"in {root}" if root else "because FEDRISK_DATA is not set"
            problems.append(f"{source.path} was not found {where}. {get}")
            continue
        digest = hashlib.sha256(found[source.path]).hexdigest()
        if digest not in source.sha256:
            problems.append(f"{source.path} in {root} has another sha256 ({digest}). {get}")
    if problems:
        raise DataError(*problems)
    return found


# --- heart disease: four hospitals ----------------------------------------------------------------------

_HEART_COLUMNS: Final = [
    "age",
    "sex",
    "chest_pain",
    "resting_pressure",
    "cholesterol",
    "fasting_sugar",
    "resting_ecg",
    "max_heart_rate",
    "exercise_angina",
    "st_depression",
    "slope",
    "vessels",
    "thal",
    "disease",
]
_HEART_CODES: Final = {  # the source's codes count from 0, those of chest pain from 1
    "sex": ("female", "male"),
    "resting_ecg": ("normal", "st-t", "hypertrophy"),
    "chest_pain": (None, "typical angina", "atypical angina", "other pain", "no symptoms"),
}
_HEART_SIZES: Final = {"cleveland": 300, "hungarian": 260, "switzerland": 46, "va": 130}


def heart(root: Path | None, out: Path, *, split: Literal["hash", "flamby"] = "hash") -> Path:
    """Four hospitals, 740 people: the rows complete without slope, vessels and thal, as in FLamby.

    `split="flamby"` adds FLamby's fixed train/test split as a column; otherwise people are split by keyed hash.
    Cholesterol of 0 is a missing value, and Switzerland recorded no other: a kind of hospital without that block.
    """
    options = _chosen("heart", {"split": split})

    def build(files: Mapping[str, bytes]) -> _Build:
        contract = _contract_text("heart") + ("split: {column: split}\n" if split == "flamby" else "")
        tables = {name: _hospital(files, name, split == "flamby") for name in _HEART_SIZES}
        kinds = dict.fromkeys(tables, "hospital") | {"switzerland": "hospital-no-lipids"}
        return _Build(contract, tables, kinds, _HEART_SIZES)

    return _write(out, "heart", options, root, build)


def _hospital(files: Mapping[str, bytes], name: str, flamby: bool) -> Table:
    import pandas as pd

    text = io.BytesIO(files[f"heart_disease/processed.{name}.data"])
    frame = pd.read_csv(text, header=None, names=_HEART_COLUMNS, na_values="?")
    frame = frame.drop(columns=["slope", "vessels", "thal"]).dropna().reset_index(drop=True)
    frame["disease"] = (frame["disease"] > 0).astype(float)
    if flamby:
        frame["split"] = _flamby_split(frame["disease"].to_numpy())
    frame["cholesterol"] = frame["cholesterol"].replace(0, np.nan)
    if name == "switzerland":
        frame = frame.drop(columns="cholesterol")
    for column, levels in _HEART_CODES.items():
        frame[column] = frame[column].map(dict(enumerate(levels)))
    return _numbered(frame, name)


def _flamby_split(y: np.ndarray) -> np.ndarray:
    """train or test for each row, as owkin/FLamby fed_heart_disease/dataset.py at edacf54d5211 splits a centre."""
    from sklearn.model_selection import train_test_split

    sizes = np.unique(y, return_counts=True)[1]
    by = y if len(sizes) > 1 and (sizes > 2).all() else None
    rows = np.arange(len(y))
    test = train_test_split(
        rows, test_size=0.34, train_size=0.66, random_state=43, shuffle=True, stratify=by
    )[1]
    return np.where(np.isin(rows, test), "test", "train").astype(object)


# --- COMPAS: four divisions of one court ----------------------------------------------------------------

_COMPAS_FEATURES: Final = [
    "age",
    "juv_fel_count",
    "juv_misd_count",
    "juv_other_count",
    "priors_count",
    "c_charge_degree",
]
_COMPAS_READ: Final = [*_COMPAS_FEATURES, "race", "sex", "two_year_recid", "score_text"]
_COMPAS_FILTER: Final = ["days_b_screening_arrest", "is_recid", "compas_screening_date", "r_offense_date"]
_COMPAS_HORIZON: Final = 731  # days: two years
_COMPAS_SITE: Final = ["c_case_number", "c_charge_desc"]
_DRUG: Final = (
    "cocaine|cannabis|heroin|mdma|methylenediox|methcath|meth/diox|amphetamine|barbital|pyrrolidino|ethylone|butylone|"
    "cathinone|piperazine|alprazolam|clonazepam|diazepam|oxycodone|hydrocodone|hydromorphone|morphine|codeine|fentanyl|"
    "methadone|buprenorphine|phentermine|carisoprodol|steroid|tetrahydrocannabinol|lsd|xlr11|jwh|fluoro pb|butanediol|"
    "cont\\w* sub|control substance|drug"
)
_COMPAS_SIZES: Final = {
    ("full", "court"): {
        "felony-drug": 1000,
        "felony-other": 3000,
        "misdemeanour": 1900,
        "traffic-municipal": 250,
    },
    ("corrected", "court"): {
        "felony-drug": 830,
        "felony-other": 2600,
        "misdemeanour": 1700,
        "traffic-municipal": 220,
    },
    ("full", "one"): {"broward": 6200},
    ("corrected", "one"): {"broward": 5300},
}


def compas(
    root: Path | None,
    out: Path,
    *,
    cohort: Literal["full", "corrected"] = "full",
    sites: Literal["court", "one"] = "court",
) -> Path:
    """COMPAS two-year recidivism, ProPublica's filter (6,172 people), by division of the county's court.

    `cohort="corrected"` keeps only people screened before 2014-04-01, who all had two years of follow-up.
    """
    options = _chosen("compas", {"cohort": cohort, "sites": sites})

    def build(files: Mapping[str, bytes]) -> _Build:
        frame, division = _defendants(files[SOURCES["compas"][0].path], cohort == "corrected")
        sizes = _COMPAS_SIZES[cohort, sites]
        parts = {name: frame[(division == name) | (sites == "one")] for name in sizes}
        tables = {name: _numbered(part.reset_index(drop=True), name) for name, part in parts.items()}
        return _Build(_contract_text("compas"), tables, dict.fromkeys(sizes, "court"), sizes)

    return _write(out, "compas", options, root, build)


def _defendants(raw: bytes, corrected: bool) -> tuple["pd.DataFrame", np.ndarray]:
    """The filtered rows without any identifier, and each row's division of the court."""
    import pandas as pd

    frame = pd.read_csv(io.BytesIO(raw), usecols=_COMPAS_READ + _COMPAS_FILTER + _COMPAS_SITE)
    letters = frame.pop("c_case_number").str.extract(r"^\d*([A-Z]+)", expand=False)  # the number is gone here
    keep = frame["days_b_screening_arrest"].between(-30, 30) & (frame["is_recid"] != -1)
    keep &= (frame["c_charge_degree"] != "O") & frame["score_text"].notna()
    if corrected:
        keep &= frame["compas_screening_date"] < "2014-04-01"
    frame, letters = frame[keep], letters[keep]
    drug = frame["c_charge_desc"].fillna("").str.lower().str.contains(_DRUG)
    division = np.select(
        [(letters == "CF") & drug, letters == "CF", letters == "MM"],
        ["felony-drug", "felony-other", "misdemeanour"],
        "traffic-municipal",
    )
    after = (pd.to_datetime(frame["r_offense_date"]) - pd.to_datetime(frame["compas_screening_date"])).dt.days
    within = (frame["two_year_recid"] == 1) & (after <= _COMPAS_HORIZON)
    read = frame[_COMPAS_READ].astype({"two_year_recid": float})
    return read.assign(days_to_reoffence=after.where(within).astype(float)), division


# --- Iowa: eight judicial districts ---------------------------------------------------------------------

_IOWA_COLUMNS: Final = {
    "Main Supervising District": "district",
    "Release Type": "release_type",
    "Race - Ethnicity": "race",
    "Age At Release ": "age_band",  # the space is in the file
    "Sex": "sex",
    "Offense Classification": "offence_class",
    "Offense Type": "offence_type",
    "Offense Subtype": "offence_subtype",
    "Return to Prison": "return_to_prison",
}
_IOWA_SAME: Final = {  # labels that changed between fiscal years
    "release_type": {
        "Parole Granted": "Parole",
        "Interstate Compact Parole": "Parole",
        "Discharged \u2013 End of Sentence": "Discharged",
        "Discharged - Expiration of Sentence": "Discharged",
        "Released to Special Sentence": "Special Sentence",
        "Paroled to Detainer - Out of State": "Paroled to Detainer",
        "Paroled to Detainer - INS": "Paroled to Detainer",
        "Paroled to Detainer - U.S. Marshall": "Paroled to Detainer",
        "Paroled to Detainer - Iowa": "Paroled to Detainer",
        "Paroled w/Immediate Discharge": "Paroled and Discharged",
    },
    "offence_class": {
        "Felony - Enhancement to Original Penalty": "Enhanced Felony",
        "Felony - Enhanced": "Enhanced Felony",
    },
}
_IOWA_SIZES: Final = {
    "1jd": 2800,
    "2jd": 2000,
    "3jd": 1200,
    "4jd": 670,
    "5jd": 5000,
    "6jd": 1100,
    "7jd": 1500,
    "8jd": 1600,
}


def iowa(root: Path | None, out: Path) -> Path:
    """Prison releases of Iowa's eight judicial districts (15,780 rows; the unit is a row: the file has no person)."""

    def build(files: Mapping[str, bytes]) -> _Build:
        frame = _releases(files[SOURCES["iowa"][0].path])
        district = frame.pop("district").str.lower()
        tables = {name: _columns(frame[district == name]) for name in _IOWA_SIZES}
        kinds = dict.fromkeys(_IOWA_SIZES, "corrections")
        return _Build(_contract_text("iowa"), tables, kinds, _IOWA_SIZES)

    return _write(out, "iowa", {}, root, build)


def _releases(raw: bytes) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.read_csv(io.BytesIO(raw), usecols=list(_IOWA_COLUMNS), dtype=str)
    frame = frame.rename(columns=_IOWA_COLUMNS)
    for column, same in _IOWA_SAME.items():
        frame[column] = frame[column].replace(same)
    return frame


# --- made-up people -------------------------------------------------------------------------------------


def synthetic(
    out: Path,
    *,
    seed: int = 0,
    people: float = 1.0,
    known_to_several: float = 0.2,
    repeated: float = 0.35,
    missing: float = 0.06,
) -> Path:
    """Five agencies of the population in `experiments/synthetic.py`; `people` scales it, 1 is 3,000 per agency."""
    from experiments import synthetic as made_up

    try:
        options = made_up.Options(seed, people, known_to_several, repeated, missing)
    except (TypeError, ValueError) as error:
        raise DataError(f"option {error}") from None

    def build(files: Mapping[str, bytes]) -> _Build:
        tables = made_up.tables(made_up.population(options))
        sizes = {kind.name: made_up.declared_size(kind, people) for kind in made_up.KINDS}
        return _Build(_contract_text("synthetic"), tables, {name: name for name in tables}, sizes)

    return _write(out, "synthetic", asdict(options), None, build)


# --- writing a folder -----------------------------------------------------------------------------------


def prepare(name: str, options: Mapping[str, Any], cache: Path) -> Path:
    """The agencies.yaml of data set `name` under `cache`, written if it is not there yet.

    `options` are the loader's; `root` may be among them (default: `default_root()`). `DataError` if one is unknown.
    """
    options = dict(options)
    root = options.pop("root", None)
    root = Path(root) if root else None
    if name == "synthetic":
        from experiments.synthetic import Options

        known = {field: getattr(Options(), field) for field in Options.__dataclass_fields__}
    elif name in CHOICES:
        known = {key: values[0] for key, values in CHOICES[name].items()}
    else:
        raise DataError(f"data set must be one of {', '.join(sorted(SOURCES))}, got {name!r}")
    problems = unknown_keys(options, known, f"option of {name}: ")
    if problems:
        raise DataError(*problems)
    options = known | options
    out = cache / f"{name}-{_digest(_recipe(name, options))[:12]}"
    if name == "heart":
        return heart(root, out, **options)
    if name == "compas":
        return compas(root, out, **options)
    return iowa(root, out) if name == "iowa" else synthetic(out, **options)


def _chosen(name: str, options: dict[str, str]) -> dict[str, str]:
    """`options` if each is among `CHOICES`."""
    problems = [
        f"option {key} of {name} must be one of {', '.join(CHOICES[name][key])}, got {value!r}"
        for key, value in options.items()
        if value not in CHOICES[name][key]
    ]
    if problems:
        raise DataError(*problems)
    return options


def _recipe(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what is in a folder."""
    return {
        "name": name,
        "options": dict(options),
        "sources": {source.path: list(source.sha256) for source in SOURCES[name]},
        "contract": hashlib.sha256(_contract_text(name).encode()).hexdigest(),
        "code": hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest(),
    }


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _contract_text(name: str) -> str:
    return (CONTRACTS / f"{name}.yaml").read_text(encoding="utf-8")


def _numbered(frame: "pd.DataFrame", name: str) -> Table:
    """The table with a fresh number for each row's person, unlike any in the source and in any other table."""
    ids = np.array([f"{name}-{i:05d}" for i in range(1, len(frame) + 1)], dtype=object)
    return {"person_id": ids, **_columns(frame)}


def _columns(frame: "pd.DataFrame") -> Table:
    """Numbers as float64, everything else as str or None."""
    return {
        str(name): column.to_numpy(np.float64)
        if column.dtype.kind in "biuf"
        else column.astype(object).where(column.notna(), None).to_numpy(object)
        for name, column in frame.items()
    }


def _write(
    out: Path,
    name: str,
    options: Mapping[str, Any],
    root: Path | None,
    build: Callable[[Mapping[str, bytes]], _Build],
) -> Path:
    """Build `out` whole or not at all, or find it already there; returns its agencies.yaml."""
    recipe = _recipe(name, options)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return _found(out, recipe)
    files = read_sources(name, root)
    made = build(files)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}-", dir=out.parent, ignore_cleanup_errors=True
        ) as near:
            whole = Path(near) / "whole"
            _fill(whole, made, recipe)
            os.rename(whole, out)
    except OSError as error:
        if (out / "manifest.json").exists():  # another process was first
            return _found(out, recipe)
        raise DataError(
            f"the folder {out} cannot be written: {error.strerror or type(error).__name__}"
        ) from None
    return out / "agencies.yaml"


def _fill(folder: Path, made: _Build, recipe: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    folder.mkdir()
    (folder / "contract.yaml").write_text(made.contract, encoding="utf-8")
    for name, table in made.tables.items():
        arrays = {column: pa.array(values, from_pandas=True) for column, values in table.items()}
        pq.write_table(pa.table(arrays), folder / f"{name}.parquet")
    agencies = [
        {
            "name": name,
            "kind": made.kinds[name],
            "table": f"{name}.parquet",
            "public_size": made.public_sizes[name],
        }
        for name in made.tables
    ]
    listing = {"contract": "contract.yaml", "agencies": agencies}
    (folder / "agencies.yaml").write_text(yaml.safe_dump(listing, sort_keys=False), encoding="utf-8")
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    manifest = {"recipe": recipe, "files": sums}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _found(out: Path, recipe: Mapping[str, Any]) -> Path:
    """The agencies.yaml of a complete folder made from `recipe`; never overwrites anything else."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        same, sums = _digest(manifest["recipe"]) == _digest(recipe), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{out} is not empty and fedrisk did not write it; choose another folder") from None
    if not same:
        raise DataError(
            f"{out} holds data made with other options or another version; remove it or choose another"
        )
    changed = [
        name for name, digest in sums.items() if not (out / name).is_file() or _sha256(out / name) != digest
    ]
    if changed:
        raise DataError(
            f"{out} was changed after it was written ({', '.join(changed)}); remove it to write it again"
        )
    return out / "agencies.yaml"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
