"""Who may import whom, read from the code's syntax trees: the wall is a rule, not a habit."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"models", "federation", "clients", "experiments"}
SERVER = ("federation.server", "federation.panel")
AGREED = {"numpy", "flwr", "google", "dp_accounting", "pydantic", "cryptography", "Crypto", "safetensors"}

# package -> (our packages that it may import, other packages that it may import)
RULES: dict[str, tuple[set[str], set[str]]] = {
    "models": ({"models"}, {"numpy", "torch"}),
    "federation": ({"models", "federation"}, AGREED),
    "federation.server": ({"models", "federation"}, AGREED | {"mlflow"}),
    "federation.panel": (
        {"models", "federation"},
        AGREED | {"fastapi", "jinja2", "markupsafe", "rich", "tomli_w", "typer", "uvicorn", "yaml"},
    ),
    "clients": (
        {"models", "federation", "clients"},
        {
            *AGREED,
            "httpx",
            "jinja2",
            "opacus",
            "packaging",
            "pyarrow",
            "rich",
            "sqlalchemy",
            "torch",
            "typer",
            "yaml",
        },
    ),
}
ONLY_IN = {
    "fastapi": {"federation/panel/site/"},
    "uvicorn": {"federation/panel/site/"},
    "opacus": {"clients/train.py", "experiments/benchmarks/"},  # benchmarks run it as others do
    "mlflow": {"federation/server/archive/writer.py", "federation/server/registry.py"},
    "hydra": {"experiments/"},
    "omegaconf": {"experiments/"},
    "pickle": set(),
    "cloudpickle": set(),
}


def files() -> list[Path]:
    return [path for package in sorted(OURS) for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    inner = ".".join(parts[:2])
    return inner if inner in RULES else parts[0]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_rules(path: Path) -> None:
    package = package_of(path)
    where = path.relative_to(ROOT).as_posix()
    for name in imported(path):
        top = name.split(".")[0]
        allowed = ONLY_IN.get(top)
        if allowed is not None:
            assert any(where.startswith(place) for place in allowed), f"{where} imports {top}"
        if package not in RULES or top in sys.stdlib_module_names:
            continue
        ours, others = RULES[package]
        if top in OURS:
            assert top in ours, f"{where} imports {name}"
            if package in ("federation", "clients", "models"):
                assert not name.startswith(SERVER), f"{where} imports {name}"
        else:
            assert top in others, f"{where} imports {name}"


def test_only_clients_can_reach_a_record() -> None:
    """Tables are in memory where pyarrow is, and opened where its readers or a database are: a few files of clients/."""
    below = {path: imported(path) for path in files() if package_of(path) != "experiments"}

    def importing(*names: str) -> set[str]:
        found = {path for path, all_ in below.items() if any(f"{n}.".startswith(names) for n in all_)}
        return {path.relative_to(ROOT).as_posix() for path in found}

    opening = {"clients/records/sources.py", "clients/records/sql.py"}
    assert importing("pandas.", "pyarrow.") == opening | {
        "clients/records/cells.py",
        "clients/records/intake.py",
    }
    assert importing("pyarrow.csv.", "pyarrow.parquet.", "pyarrow.dataset.") == {"clients/records/sources.py"}
    assert importing("sqlalchemy.") == {"clients/records/sql.py", "clients/records/datafile.py"}, (
        "datafile.py takes addresses apart"
    )


def test_only_the_wire_packs_flower_records() -> None:
    records = {"ArrayRecord", "ConfigRecord", "MetricRecord", "RecordDict", "Array"}
    packers = {
        path.relative_to(ROOT).as_posix()
        for path in files()
        if {name.split(".")[-1] for name in imported(path) if name.startswith("flwr.")}
        & (records - {"RecordDict"})
    }
    benchmarks = {name for name in packers if name.startswith("experiments/benchmarks/")}
    assert packers - benchmarks == {"federation/wire.py"}


@pytest.mark.parametrize("package", sorted(OURS))
def test_init_files_are_empty(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        assert path.read_text() == "", f"{path} is not empty"


def test_a_node_needs_neither_mlflow_nor_hydra() -> None:
    """Importing the whole of clients/ in a fresh process loads neither, nor the server."""
    import subprocess

    code = (
        "import sys, clients.app; "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('mlflow', 'hydra', 'omegaconf', 'experiments')"
        " or m.startswith(('federation.server', 'federation.panel'))]; "
        "print(bad); raise SystemExit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hydra_is_only_at_the_entry() -> None:
    """The server neither composes nor imports a configuration framework."""
    for path in (ROOT / "federation").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"hydra", "omegaconf"}


def test_flowers_private_interfaces_are_in_few_files() -> None:
    """What is not `flwr.app`, `flwr.clientapp`, `flwr.serverapp` or `flwr.simulation` may change with any release."""
    public = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")
    private = {
        path.relative_to(ROOT).as_posix()
        for path in files()
        if any(name.startswith("flwr.") and not name.startswith(public) for name in imported(path))
    }
    places = {
        place for place in private if not place.startswith(("clients/flower/", "experiments/benchmarks/"))
    }
    assert places == {
        "experiments/coordinator/control.py",
        "experiments/coordinator/registry.py",
        "experiments/coordinator/serverapp.py",
        "experiments/engines.py",
        "federation/server/waiting.py",
        "federation/wire.py",
    }
