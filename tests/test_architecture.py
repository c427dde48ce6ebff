"""The rules of the house that can be read off the source: storeys, sizes, no unsafe loading, a light start."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nas", "supernets", "predictors", "latency_tables", "search_spaces")

# What each storey may import of ours, itself included. The command line is a storey of its own above nas.
STOREYS = {
    "nas.cli": {"nas.cli", *PACKAGES},
    "nas": set(PACKAGES),
    "supernets": {"supernets", "search_spaces"},
    "predictors": {"predictors", "search_spaces"},
    "latency_tables": {"latency_tables", "search_spaces"},
    "search_spaces": {"search_spaces"},
    "scripts": {"nas"},
}
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 60
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_ARGUMENTS = {("weights_only", False), ("allow_pickle", True)}
HEAVY = {"torch", "torchvision", "sklearn", "onnx", "onnxruntime", "pandas", "scipy", "optuna", "pymoo", "plotly", "matplotlib"}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, whether it is a package's __init__, its lines and its tree."""

    path: Path
    name: str
    is_package: bool
    lines: int
    tree: ast.Module

    @property
    def storey(self) -> str:
        # `python -m nas` is the command line, too.
        return "nas.cli" if within(self.name, "nas.cli") or self.name == "nas.__main__" else self.name.split(".")[0]

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def parse(path: Path, root: Path = ROOT) -> Module:
    text = path.read_text(encoding="utf-8")
    parts = path.relative_to(root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    return Module(path, name, is_package, text.count("\n"), ast.parse(text))


@cache
def modules(*folders: str) -> tuple[Module, ...]:
    return tuple(parse(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


def imports(module: Module) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Every dotted name that a module imports, at its top or inside functions; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.name.split(".")
                kept = parts[: len(parts) - node.level + module.is_package]
                base = ".".join([*kept, *([base] if base else [])])
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"} and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                yield node, target.value


def called(node: ast.Call) -> str:
    """The last part of the called name: ``import_module`` for ``importlib.import_module(...)``."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def forbidden(storey: str, name: str) -> bool:
    """Whether a storey may not import this name of ours (names of other distributions are never forbidden here)."""
    target = "nas.cli" if within(name, "nas.cli") else name.split(".")[0]
    return target in {*STOREYS, "tests"} and target not in STOREYS[storey]


def wrong_imports(module: Module) -> list[str]:
    return [f"{module.at(node)} imports {name}" for node, name in imports(module) if forbidden(module.storey, name)]


def test_a_lower_storey_never_imports_a_higher_one_nor_its_siblings() -> None:
    assert [text for module in modules(*PACKAGES) for text in wrong_imports(module)] == []


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("search_spaces/a.py", "from supernets import Supernet", True),
        ("search_spaces/a.py", "from search_spaces.layers import Layer", False),
        ("search_spaces/deep/a.py", "from .. import layers", False),
        ("supernets/a.py", "def f():\n    import predictors.fit", True),
        ("supernets/a.py", "import importlib\nimportlib.import_module('latency_tables.table')", True),
        ("latency_tables/a.py", "from search_spaces import Layer", False),
        ("nas/a.py", "from nas import cli", True),
        ("nas/a.py", "from .cli import main", True),
        ("nas/__init__.py", "from .search import search", False),
        ("nas/a.py", "import nas.climate", False),
        ("nas/cli/__init__.py", "from nas.cli.app import app", False),
        ("scripts/bench.py", "from supernets import Supernet", True),
    ],
)
def test_the_storey_check_sees_every_form_of_import(tmp_path: Path, path: str, source: str, wrong: bool) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    module = parse(file, tmp_path)
    assert any(forbidden(module.storey, name) for _, name in imports(module)) == wrong


def test_search_spaces_needs_numpy_only() -> None:
    allowed = {"numpy", "search_spaces", *sys.stdlib_module_names}
    wrong = [
        f"{module.at(node)} imports {name}"
        for module in modules("search_spaces")
        for node, name in imports(module)
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_scripts_use_the_public_api_only() -> None:
    wrong = []
    for module in modules("scripts"):
        wrong += wrong_imports(module)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                wrong += [f"{module.at(node)} {alias.name}" for alias in node.names if alias.name.startswith("nas.")]
            elif isinstance(node, ast.ImportFrom) and within(node.module or "", "nas"):
                public = node.module == "nas" and not any(alias.name.startswith("_") for alias in node.names)
                wrong += [] if public else [f"{module.at(node)} from {node.module}"]
    assert wrong == []


def test_modules_and_functions_stay_short() -> None:
    long = [
        f"{module.path.relative_to(ROOT)}: {module.lines}" for module in modules(*PACKAGES) if module.lines > MAX_MODULE_LINES
    ]
    for module in modules(*PACKAGES):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{module.at(node)} {node.name}: {lines}")
    assert long == []


def test_only_the_command_line_prints() -> None:
    prints = [
        module.at(node)
        for module in modules(*PACKAGES)
        if module.storey != "nas.cli"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert prints == []


def unsafe(module: Module) -> Iterator[str]:
    """Places that run or unpickle what a file holds."""
    for node, name in imports(module):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"{module.at(node)} imports {name}"
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            yield f"{module.at(node)} {node.func.id}"
        given = {(word.arg, word.value.value) for word in node.keywords if isinstance(word.value, ast.Constant)}
        yield from (f"{module.at(node)} {name}={value}" for name, value in given & UNSAFE_ARGUMENTS)
        if ast.unparse(node.func) == "torch.load" and ("weights_only", True) not in given:
            yield f"{module.at(node)} torch.load without weights_only=True"


def test_nothing_that_is_read_can_run_code() -> None:
    assert [place for module in modules(*PACKAGES, "scripts") for place in unsafe(module)] == []


def heavy_after(code: str) -> list[str]:
    """The heavy libraries that a fresh process has imported after running the code."""
    probe = f"import json, sys\n{code}\nprint(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_import_nas_is_light() -> None:
    assert heavy_after("import nas") == []


@pytest.mark.parametrize("arguments", [["--help"], ["train-supernet", "--help"], ["search", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    code = f"""
import nas.cli
sys.argv = ["nas", *{arguments!r}]
try:
    result = nas.cli.main()
except SystemExit as stop:
    result = stop.code
assert not result, result"""
    assert heavy_after(code) == []


def test_public_names_resolve_and_are_listed() -> None:
    import nas

    assert [name for name in nas.__all__ if not hasattr(nas, name)] == []
    assert set(nas.__all__) <= set(dir(nas))


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    # Importing nas.search would replace a lazy attribute `nas.search` by the module.
    import nas

    entries = {path.stem for path in (ROOT / "nas").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries & set(nas.__all__) == set()
