"""The rules of the house: which part may import which, and what an import may cost."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lrpguard

ROOT = Path(lrpguard.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

ORDER = (
    {"errors", "version", "rowlog", "secret"},
    {"figures", "notebook"},
    {"inputs"},
    {"lrp", "loading"},
    {"noise", "moments", "filters", "pixels", "views", "evidence"},
    {"attribution", "copies", "smoothing"},
    {"scores"},
    {"consistency", "readings"},
    {
        "consensus",
        "detector",
        "calibration",
        "calibrator",
        "classifier",
        "conformal",
        "fingerprint",
        "judging",
        "preparing",
        "scorelog",
        "restoration",
        "restoring",
        "staged",
        "stopping",
        "tuning",
        "verdict",
    },
    {"guard"},
    {"lrpguard"},  # the public face, lrpguard/__init__.py
    {"baselines", "attacks"},
    {"checking"},
    {"evaluation", "redteam"},
    {"serving", "report"},
    {"cluster"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
"""The way of the data (docs/architecture.md): a part imports from its own row or those above."""

RANK = {part: rank for rank, row in enumerate(ORDER) for part in row}
OPTIONAL = {"matplotlib", "torchattacks", "sklearn", "timm", "ray", "fastapi", "uvicorn", "art"} | {
    "pydantic",
    "starlette",
    "prometheus_client",
    "opentelemetry",
    "pyarrow",
    "litserve",
    "mlflow",
}
MAX_LINES = 400


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the part a module of ours belongs to: ``lrpguard.lrp.rules`` is of ``lrp``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[ast.stmt, str]]:
    """Yield each import statement of a file with the module it names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            modules = [name if name in MODULES else base for name in names]
            yield from ((node, name) for name in dict.fromkeys(modules))


MODULES = {module_name(path) for path in FILES}


def file_imports(path: Path, *, top_level: bool = False) -> list[str]:
    """Return what a file imports; only what its own import costs where ``top_level``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module, is_package = module_name(path), path.name == "__init__.py"
    if top_level:
        deferred = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        inside = {
            id(n) for node in ast.walk(tree) if isinstance(node, deferred) for n in ast.walk(node)
        }
        inside |= {
            id(n)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for n in ast.walk(node)
        }
    else:
        inside = set()
    return [
        name
        for node, name in imports(tree, module, is_package=is_package)
        if id(node) not in inside
    ]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_with_the_way_of_the_data(path: Path) -> None:
    own = part_of(module_name(path))
    assert own in RANK, f"the new part {own!r} has no place in ORDER: give it one, knowingly"
    for name in file_imports(path):
        if name.split(".")[0] != "lrpguard":
            continue
        part = part_of(name)
        assert part in RANK, f"{name}: {part!r} has no place in ORDER"
        assert RANK[part] <= RANK[own], f"{own} imports {name}, which stands after it"


def test_the_test_would_see_a_step_back() -> None:
    source = "def f():\n    from lrpguard import guard\n    import lrpguard.cli.main\n"
    found = list(imports(ast.parse(source), "lrpguard.lrp.rules", is_package=False))
    assert [name for _, name in found] == ["lrpguard.guard", "lrpguard.cli.main"]
    assert RANK["lrp"] < RANK[part_of(found[0][1])] < RANK[part_of(found[1][1])]
    dotted = ast.parse("from ..scores import SCORES\nfrom . import mode\nfrom .. import guard")
    found = list(imports(dotted, "lrpguard.lrp.rules", is_package=False))
    assert [name for _, name in found] == ["lrpguard.scores", "lrpguard.lrp.mode", "lrpguard.guard"]


def test_no_circular_imports() -> None:
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for path in FILES:
        module = module_name(path)
        ours = [n for n in file_imports(path, top_level=True) if n in MODULES and n != module]
        sorter.add(module, *ours)
    sorter.prepare()  # raises CycleError, naming the circle


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_optional_dependencies_are_imported_where_they_are_used(path: Path) -> None:
    roots = {name.split(".")[0] for name in file_imports(path, top_level=True)}
    assert not roots & OPTIONAL


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, "make it a package of the same name; public import paths stay"


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not [relative(p) for p in FILES if p.stem in ("utils", "util", "helpers", "misc")]


def fresh(code: str) -> object:
    """Run code in an interpreter of its own; return what it prints as JSON."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(run.stdout)


def test_importing_lrpguard_imports_no_optional_dependency() -> None:
    code = "import json, sys\nfrom lrpguard import *\nprint(json.dumps(sorted(sys.modules)))"
    loaded = fresh(code)
    assert isinstance(loaded, list)
    assert "lrpguard.guard" in loaded
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & (OPTIONAL | {"typer", "zennit", "captum", "pytest", "hypothesis"})


@pytest.mark.parametrize("what", ["lrpguard", "lrpguard.cli"])
def test_importing_alone_is_quick(what: str) -> None:
    """Torch and its like are imported where they are used, so that ``--help`` need not wait."""
    loaded = fresh(f"import json, sys, {what}; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert not {"torch", "numpy", "scipy", "PIL", "tqdm", "safetensors"} & set(loaded)


def test_every_module_imports_and_public_names_survive_it() -> None:
    every = sorted(MODULES - {"lrpguard.__main__"})
    code = f"""
import importlib, json
import lrpguard
before = {{name: getattr(lrpguard, name) for name in lrpguard.__all__}}
failed = []
for name in {every!r}:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append([name, repr(error)])
changed = [n for n, value in before.items() if getattr(lrpguard, n) is not value]
print(json.dumps([failed, changed]))
"""
    assert fresh(code) == [[], []]


class TestPublicFace:
    def test_exports_are_there_and_sorted(self) -> None:
        assert sorted(lrpguard.__all__) == list(lrpguard.__all__)
        assert all(hasattr(lrpguard, name) for name in lrpguard.__all__)
        assert set(lrpguard.__all__) <= set(dir(lrpguard))

    def test_another_name_is_none(self) -> None:
        with pytest.raises(AttributeError, match="'lrpguard' has no attribute 'Gaurd'"):
            getattr(lrpguard, "Gaurd")  # noqa: B009  # mypy would see the misspelling

    def test_type_checkers_see_the_same_homes(self) -> None:
        tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
        shown = {
            alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrpguard.")
            for alias in node.names
        }
        homes = {name: f"lrpguard.{home}" for name, home in lrpguard._HOMES.items()}
        assert shown == homes | {"__version__": "lrpguard.version"}

    def test_no_public_name_is_also_that_of_a_module(self) -> None:
        modules = {info.name for info in pkgutil.iter_modules([str(ROOT)])}
        assert not modules & set(lrpguard.__all__)

    def test_version_is_that_of_the_package(self) -> None:
        from importlib.metadata import version

        assert lrpguard.__version__ == version("lrpguard")

    def test_is_typed(self) -> None:
        assert (ROOT / "py.typed").is_file()


def test_error_tree_is_the_one_that_its_docstring_draws() -> None:
    errors = importlib.import_module("lrpguard.errors")
    drawn = [
        line.lstrip("│├└─ ").split()[0]
        for line in (errors.__doc__ or "").splitlines()
        if line.lstrip("│├└─ ")[:1].isupper() and ("──" in line or line == "LrpGuardError")
    ]
    defined = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.LrpGuardError)
    ]
    assert sorted(drawn) == sorted(defined)


WITH_EXAMPLES = [path for path in FILES if ">>>" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=relative)
def test_examples_in_docstrings_run(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(module_name(path)))
    assert result.attempted > 0
    assert result.failed == 0
