"""Loaders that write a folder of agencies (experiments/agencies.py), as a person would by hand.

For public files that the user has (`adult`, `compas`, `compas_violent`, `heart`, `iowa`) and for made-up people (`synthetic`, `pilot`). They check a file's SHA-256 before
they parse it, read only the columns they need, and keep no identifier.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
    *(Path(__file__).with_name(name) for name in ("synthetic.py", "pilot.py", "names.py")),
)  # when it changes, so may what it writes


# --- public sources -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A public file: where it lies under the root, the SHA-256 that it may have, and who publishes it."""

    path: str
    sha256: tuple[str, ...]
    origin: str


_UCI: Final = 'UCI Machine Learning Repository, "Heart Disease"; a copy is GitHub '
_ADULT: Final = 'UCI Machine Learning Repository, "Adult"'
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
    "compas_violent": (
        Source(
            "compas/compas-scores-two-years-violent.csv",
            (
                "918e218ba181d4db8a7266977d23ca7a5ecf1bc7d5defd7b2f27bf3cbd9763e3",  # as published
                "a73c0f51e8ad17086063976540d1de6a70d121adc22b5c577c464d7ac16af0b8",  # direct identifiers blanked
            ),
            "ProPublica, GitHub propublica/compas-analysis at bafff5da3f2e",
        ),
    ),
    "adult": (
        Source(
            "adult/adult.data",
            ("5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",),
            _ADULT,
        ),
        Source(
            "adult/adult.test",
            ("a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",),
            _ADULT,
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
    "pilot": (),
}


@dataclass(frozen=True)
class _Build:
    """What a folder is made from, by agency. `cautions`: known flaws of the data, a sentence each."""

    contract: str
    tables: Mapping[str, Table]
    kinds: Mapping[str, str]
    public_sizes: Mapping[str, int]
    cautions: tuple[str, ...] = ()


CHOICES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "heart": {"split": ("hash", "flamby")},
    "compas": {"cohort": ("full", "corrected"), "sites": ("court", "one", "dirichlet")},
    "compas_violent": {"cohort": ("full", "corrected"), "sites": ("court", "one", "dirichlet")},
    "iowa": {},
    "adult": {"sites": ("sector", "dirichlet")},
}
"""What may be chosen of each real data set; the first is the default."""
DIRICHLET: Final[Mapping[str, Any]] = {"agencies": 15, "alpha": 0.5, "by": "race", "seed": 0}
"""What more may be chosen where `sites` is dirichlet, with the defaults (`Dirichlet`)."""

MADE_UP: Final[Mapping[str, Mapping[str, Any]]] = {
    "synthetic": {"seed": 0, "people": 1.0, "known_to_several": 0.2, "repeated": 0.35, "missing": 0.06},
    "pilot": {"seed": 0, "people": 1.0, "agencies": None},
}
"""What may be chosen of made-up people, with the defaults."""


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


# --- made-up agencies -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dirichlet:
    """Agencies that a public file does not have: each class of people is dealt to them in Dirichlet(alpha) shares.

    The smaller `alpha`, the less alike the agencies are. `by` says what a class is: people of one race (the majority's or
    another) or sex, as in FAIR-FATE (arXiv:2209.13678), or with -label of one race or sex and one outcome.
    Shares are drawn again until every agency has `LEAST` people, without which no node takes part.
    """

    agencies: int
    alpha: float
    by: str
    seed: int

    LEAST = 60
    BY = ("race", "sex", "race-label", "sex-label")

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        rules = {
            "agencies": (_whole(self.agencies) and 2 <= self.agencies <= 100, "a whole number from 2 to 100"),
            "alpha": (number and 0 < self.alpha < np.inf, "a number above 0"),
            "by": (self.by in self.BY, f"one of {', '.join(self.BY)}"),
            "seed": (_whole(self.seed) and self.seed >= 0, "a whole number of at least 0"),
        }
        wrong = [
            f"option {key} must be {rule}, got {getattr(self, key)!r}"
            for key, (ok, rule) in rules.items()
            if not ok
        ]
        if wrong:
            raise DataError(*wrong)

    def classes(self, race: np.ndarray, sex: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Each row's class (n,), whole numbers, from three bool arrays (n,)."""
        who = (race if self.by.startswith("race") else sex).astype(int)
        return 2 * who + label.astype(int) if self.by.endswith("label") else who

    def deal(self, classes: np.ndarray) -> dict[str, np.ndarray]:
        """Agency -> its rows in order; every row has one agency. `DataError` where no draw gives all `LEAST` people."""
        rng = np.random.default_rng(self.seed)
        rows = [np.flatnonzero(classes == one) for one in np.unique(classes)]
        for _ in range(1000):
            shares = rng.dirichlet(np.full(self.agencies, self.alpha), len(rows))
            cuts = [
                np.rint(np.cumsum(share)[:-1] * len(of)).astype(int)
                for share, of in zip(shares, rows, strict=True)
            ]
            parts = [np.split(rng.permutation(of), cut) for of, cut in zip(rows, cuts, strict=True)]
            dealt = [np.sort(np.concatenate(part)) for part in zip(*parts, strict=True)]
            if min(map(len, dealt)) >= self.LEAST:
                return {f"agency-{i:02d}": part for i, part in enumerate(dealt, start=1)}
        raise DataError(
            f"no draw with alpha={self.alpha:g} gives each of {self.agencies} agencies {self.LEAST} people: use fewer "
            "agencies or a larger alpha"
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _two_digits(size: int) -> int:
    """A declared size: rounded to two digits, as of every public file."""
    digits = len(str(size)) - 2
    return round(size, -digits) if digits > 0 else size


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
    ("compas", "full"): {
        "felony-drug": 1000,
        "felony-other": 3000,
        "misdemeanour": 1900,
        "traffic-municipal": 250,
    },
    ("compas", "corrected"): {
        "felony-drug": 830,
        "felony-other": 2600,
        "misdemeanour": 1700,
        "traffic-municipal": 220,
    },
    ("compas_violent", "full"): {
        "felony-drug": 580,
        "felony-other": 1900,
        "misdemeanour": 1400,
        "traffic-municipal": 170,
    },
    ("compas_violent", "corrected"): {
        "felony-drug": 540,
        "felony-other": 1800,
        "misdemeanour": 1300,
        "traffic-municipal": 160,
    },
}
_COMPAS_TOTAL: Final = {
    ("compas", "full"): 6200,
    ("compas", "corrected"): 5300,
    ("compas_violent", "full"): 4000,
    ("compas_violent", "corrected"): 3800,
}
_FOLLOWED_UP: Final = "2014-04-01"  # whoever was screened before it had two years of follow-up


def compas(
    root: Path | None,
    out: Path,
    *,
    name: Literal["compas", "compas_violent"] = "compas",
    cohort: Literal["full", "corrected"] = "full",
    sites: Literal["court", "one", "dirichlet"] = "court",
    **dealt: Any,
) -> Path:
    """COMPAS two-year recidivism, ProPublica's filter, by division of the county's court or in `Dirichlet` agencies.

    compas: re-arrest for any offence, 6,172 people. compas_violent: for a violent one, 4,020. `cohort="corrected"` keeps
    only people screened before 2014-04-01, who all had two years of follow-up; the full one comes with a caution.
    """
    options = _chosen(name, {"cohort": cohort, "sites": sites}) | dealt

    def build(files: Mapping[str, bytes]) -> _Build:
        frame, division = _defendants(files[SOURCES[name][0].path], name == "compas_violent")
        late = frame.pop("compas_screening_date").to_numpy() >= _FOLLOWED_UP
        cautions = _label_artefact(frame, late) if cohort == "full" else ()
        if cohort == "corrected":
            frame, division = frame[~late], division[~late]
        if sites == "court":
            sizes = _COMPAS_SIZES[name, cohort]
            parts = {agency: frame[division == agency] for agency in sizes}
        elif sites == "one":
            sizes, parts = {"broward": _COMPAS_TOTAL[name, cohort]}, {"broward": frame}
        else:
            white, positive = frame["race"] == "Caucasian", frame["two_year_recid"] == 1
            parts, sizes = _dealt(Dirichlet(**dealt), frame, white, frame["sex"] == "Male", positive)
        tables = {agency: _numbered(part.reset_index(drop=True), agency) for agency, part in parts.items()}
        return _Build(_contract_text(name), tables, dict.fromkeys(tables, "court"), sizes, cautions)

    return _write(out, name, options, root, build)


def _dealt(
    how: Dirichlet, frame: "pd.DataFrame", race: Any, sex: Any, label: Any
) -> tuple[dict[str, "pd.DataFrame"], dict[str, int]]:
    """The rows of `Dirichlet` agencies, and the sizes that they declare."""
    classes = how.classes(race.to_numpy(), sex.to_numpy(), label.to_numpy())
    parts = {agency: frame.iloc[rows] for agency, rows in how.deal(classes).items()}
    return parts, {agency: _two_digits(len(part)) for agency, part in parts.items()}


def _defendants(raw: bytes, violent: bool) -> tuple["pd.DataFrame", np.ndarray]:
    """The filtered rows without any identifier, with the screening date; each row's division of the court."""
    import pandas as pd

    score = "v_score_text" if violent else "score_text"
    read = [*_COMPAS_READ, *_COMPAS_FILTER, score, *_COMPAS_SITE]
    frame = pd.read_csv(io.BytesIO(raw), usecols=read)
    letters = frame.pop("c_case_number").str.extract(r"^\d*([A-Z]+)", expand=False)  # the number is gone here
    keep = frame["days_b_screening_arrest"].between(-30, 30) & (frame["is_recid"] != -1)
    keep &= (frame["c_charge_degree"] != "O") & frame[score].notna()
    frame, letters = frame[keep], letters[keep]
    drug = frame["c_charge_desc"].fillna("").str.lower().str.contains(_DRUG)
    division = np.select(
        [(letters == "CF") & drug, letters == "CF", letters == "MM"],
        ["felony-drug", "felony-other", "misdemeanour"],
        "traffic-municipal",
    )
    found = frame[[*_COMPAS_READ, "compas_screening_date"]].astype({"two_year_recid": float})
    if violent:  # its outcome has no clean date of its own
        return found, division
    after = (pd.to_datetime(frame["r_offense_date"]) - pd.to_datetime(frame["compas_screening_date"])).dt.days
    within = (frame["two_year_recid"] == 1) & (after <= _COMPAS_HORIZON)
    return found.assign(days_to_reoffence=after.where(within).astype(float)), division


def _label_artefact(frame: "pd.DataFrame", late: np.ndarray) -> tuple[str, ...]:
    """A caution where people screened too `late` for two years of follow-up change a base rate; () where none do."""
    whole, followed = _base_rates(frame), _base_rates(frame[~late])
    both = [who for who in whole if who in followed]
    if all(abs(whole[who] - followed[who]) < 0.005 for who in both):
        return ()
    told = ", ".join(f"{who} {whole[who]:.3f} and {followed[who]:.3f}" for who in both)
    return (
        "The outcome is known to be wrong in the full cohort: people arrested again within two years were kept even where "
        "they were screened too late for two years of follow-up, and others screened as late were left out. Base rates in "
        f"the full cohort and among those screened before {_FOLLOWED_UP}: {told}. Give results on the corrected cohort "
        "as well (data.options.cohort=corrected).",
    )


def _base_rates(frame: "pd.DataFrame") -> dict[str, float]:
    """The share re-arrested of everyone and of the two large groups, as far as there is anybody."""
    label = frame["two_year_recid"]
    races = {race: label[frame["race"] == race] for race in ("African-American", "Caucasian")}
    groups = {"everyone": label} | races
    return {who: float(of.mean()) for who, of in groups.items() if len(of)}


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


# --- Adult: sectors of employment -----------------------------------------------------------------------

_ADULT_COLUMNS: Final = [
    *(
        "age",
        "workclass",
        "fnlwgt",
        "education",
        "education_years",
        "marital_status",
        "occupation",
        "relationship",
    ),
    *("race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income"),
]
_ADULT_KEPT: Final = [
    *(
        "age",
        "education_years",
        "marital_status",
        "occupation",
        "capital_gain",
        "capital_loss",
        "hours_per_week",
    ),
    *("race", "sex", "income"),
]
_SECTORS: Final = {
    "private": ("Private",),
    "self-employed": ("Self-emp-not-inc", "Self-emp-inc"),
    "local-government": ("Local-gov",),
    "state-government": ("State-gov",),
    "federal-government": ("Federal-gov",),
    "none-stated": ("?", "Without-pay", "Never-worked"),
}
_SECTOR_SIZES: Final = {
    "private": 34000,
    "self-employed": 5600,
    "local-government": 3100,
    "state-government": 2000,
    "federal-government": 1400,
    "none-stated": 2800,
}


def adult(
    root: Path | None, out: Path, *, sites: Literal["sector", "dirichlet"] = "sector", **dealt: Any
) -> Path:
    """UCI Adult, both files (48,842 people), by sector of employment or in `Dirichlet` agencies."""
    options = _chosen("adult", {"sites": sites}) | dealt

    def build(files: Mapping[str, bytes]) -> _Build:
        frame = _earners([files[source.path] for source in SOURCES["adult"]])
        workclass = frame.pop("workclass")
        parts = {sector: frame[workclass.isin(said)] for sector, said in _SECTORS.items()}
        sizes: Mapping[str, int] = _SECTOR_SIZES
        if sites == "dirichlet":
            race, sex = frame["race"] == "White", frame["sex"] == "Male"
            parts, sizes = _dealt(Dirichlet(**dealt), frame, race, sex, frame["income"] == ">50K")
        tables = {agency: _numbered(part.reset_index(drop=True), agency) for agency, part in parts.items()}
        return _Build(_contract_text("adult"), tables, dict.fromkeys(tables, "employer"), sizes)

    return _write(out, "adult", options, root, build)


def _earners(files: list[bytes]) -> "pd.DataFrame":
    """Everyone in both files: the first line of the test file is a comment, and its labels end with a dot."""
    import pandas as pd

    read = [
        pd.read_csv(io.BytesIO(raw), names=_ADULT_COLUMNS, skipinitialspace=True, comment="|")
        for raw in files
    ]
    frame = pd.concat(read, ignore_index=True)[["workclass", *_ADULT_KEPT]]
    frame["income"] = frame["income"].str.removesuffix(".")
    frame["occupation"] = frame["occupation"].where(frame["occupation"] != "?", None)
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


def pilot(out: Path, *, seed: int = 0, people: float = 1.0, agencies: Sequence[str] | None = None) -> Path:
    """The agencies of the town in `experiments/pilot.py`, all five or those listed; `people` scales it."""
    from experiments import pilot as town

    try:
        listed = (
            town.NAMES if agencies is None else tuple(agencies) if isinstance(agencies, list | tuple) else ()
        )
        options = town.Options(seed, people, listed)
    except (TypeError, ValueError) as error:
        raise DataError(f"option {error}") from None

    def build(files: Mapping[str, bytes]) -> _Build:
        tables = town.tables(town.population(options))
        sizes = {name: town.declared_size(name, people) for name in tables}
        return _Build(_contract_text("pilot"), tables, {name: name for name in tables}, sizes)

    return _write(out, "pilot", asdict(options), None, build)


# --- writing a folder -----------------------------------------------------------------------------------


def prepare(name: str, options: Mapping[str, Any], cache: Path) -> Path:
    """The agencies.yaml of data set `name` under `cache`, written if it is not there yet.

    `options` are the loader's; `root` may be among them (default: `default_root()`). `DataError` if one is unknown.
    """
    options = dict(options)
    root = options.pop("root", None)
    root = Path(root) if root else None
    if name in MADE_UP:
        known = dict(MADE_UP[name])
    elif name in CHOICES:
        known = {key: values[0] for key, values in CHOICES[name].items()}
        known |= DIRICHLET if options.get("sites") == "dirichlet" else {}
    else:
        raise DataError(f"data set must be one of {', '.join(sorted(SOURCES))}, got {name!r}")
    idle = set(DIRICHLET) - set(known) if "dirichlet" in CHOICES.get(name, {}).get("sites", ()) else set()
    problems = [
        f"option {key} of {name} is of sites=dirichlet: choose that too"
        for key in sorted(idle & set(options))
    ]
    problems += unknown_keys(
        {key: options[key] for key in options if key not in idle}, known, f"option of {name}: "
    )
    if problems:
        raise DataError(*problems)
    options = known | options
    out = cache / f"{name}-{_digest(_recipe(name, options))[:12]}"
    if name == "heart":
        return heart(root, out, **options)
    if name in ("compas", "compas_violent"):
        return compas(root, out, name=name, **options)  # type: ignore[arg-type]
    if name == "adult":
        return adult(root, out, **options)
    if name == "iowa":
        return iowa(root, out)
    return synthetic(out, **options) if name == "synthetic" else pilot(out, **options)


def _chosen(name: str, options: dict[str, Any]) -> dict[str, Any]:
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
    manifest = {"recipe": recipe, "files": sums, "cautions": list(made.cautions)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def cautions(folder: Path) -> list[str]:
    """Known flaws of the public data that a loader wrote into `folder`; [] of any other folder."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return [str(sentence) for sentence in manifest.get("cautions", [])]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


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
