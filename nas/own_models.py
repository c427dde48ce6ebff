"""Networks of the user's own in files: the constructor by name, the choices as TOML, and what a run remembers of both.

Loading a model file runs it, with everything in it. That happens in two cases only: the user names the file (``--model``, or
`find_model`), or a run that was made here remembers it. A run remembers the file's full path and SHA-256 and its own folder;
its file is loaded only if the hash still matches, the run folder is where it was made, and the file lies outside of it.
So a run folder that was downloaded, copied or moved runs nothing; its owner gives the model again (`Run.open`'s ``space``,
or the command that trained it). What the model file imports is not hashed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from search_spaces import Choice, ElasticSpace
from search_spaces.artifacts import file_hash, read_json, write_json
from search_spaces.errors import UserError, unknown_name
from search_spaces.records import parse_toml, reading
from supernets.vision import install

__all__ = ["RecordedModel", "find_model", "read_choices", "recorded_space", "remember"]

MODEL_VERSION = 1
_FUSED = re.compile(r"Fused\(groups=(?P<groups>\d+|\([\d, ]*\))(, dim=(?P<dim>\d+))?\)")
_ALLOWED_CHOICES = (
    "name = [options] for each choice, [name] with options and length for a list of them, "
    "[fixed] with further arguments, [rules] with pattern = {fused = N}, {fused = [N, M], dim = 1} or 'function'"
)


def find_model(text: str) -> Callable[..., Any]:
    """The constructor that ``FILE.py:FUNCTION`` names. Runs the file.

    Raises:
        UserError: no such file or function, or the file raised.
    """
    file, colon, function = text.rpartition(":")
    if not colon or not file or not function:
        raise UserError(f"model '{text}'", allowed="FILE.py:FUNCTION", next_step="Write for example: --model my_model.py:build")
    return _loaded(Path(file).expanduser(), function)


def _loaded(path: Path, function: str) -> Callable[..., Any]:
    if not path.is_file():
        raise UserError(f"model file {path} does not exist", allowed="A Python file", next_step="Correct the path")
    install()  # the file may import torchvision
    path = path.resolve()
    if path.suffix != ".py":
        raise UserError(f"{path} is not a Python file", allowed="A file that ends in .py", next_step="Correct the path")
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    places = dict.fromkeys((str(path.parent), str(root)))  # what lies beside it, as for a script, and its package
    sys.path[:0] = places
    try:
        module = _module_of(path, root)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} raised {type(error).__name__}: {error}",
            allowed="A Python file that can be imported",
            next_step="Correct the file",
        ) from error
    finally:
        for place in places:
            sys.path.remove(place)
    found: Any = module
    for part in function.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise unknown_name(f"function in {path}", function, known, command=f"grep 'def ' {path}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{function} in {path} is no function", allowed="build(**choices) -> module", next_step="Correct it")
    build: Callable[..., Any] = found
    return build


def _module_of(path: Path, root: Path) -> ModuleType:
    """The file as a module of its own, like a script; where its relative imports forbid that, as a part of its package.

    Raises:
        UserError: another package of that name is imported, or the file has changed since it was.
    """
    try:
        return _executed(path)
    except ImportError as error:
        if root == path.parent or "relative import" not in str(error):
            raise
    parts = path.relative_to(root).with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    if Path(str(module.__file__)).resolve() != path:
        raise UserError(
            f"{path} is {module.__name__}, which {module.__file__} is already",
            allowed="A package whose name no other has",
            next_step="Rename the package's folder",
        )
    digest = file_hash(path)
    if vars(module).setdefault("__sha256__", digest) != digest:
        raise UserError(
            f"{path} was changed since this process imported it",
            allowed="Modules of packages are imported once",
            next_step="Start Python anew",
        )
    return module


def _executed(path: Path) -> ModuleType:
    """A file that belongs to no package, as a module of its own; the same one while its content is."""
    name = f"hwnas_own_model_{file_hash(path)[:16]}"  # without the path: tables know layers by the modules of their classes
    if name not in sys.modules or sys.modules[name].__file__ != str(path):
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # so that the source of its classes can be found
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def read_choices(path: Path, model: str = "") -> dict[str, Any]:
    """Arguments of `nas.elastic` from a TOML file: ``choices``, ``fixed`` and ``rules``.

    Args:
        model: ``FILE.py:FUNCTION``; rules may name functions of that file.

    For example::

        width = [8, 16, 24]          # one choice per line, options from small to large
        depth = [2, 3, 4]

        [kernel]                     # a list of 4 choices
        options = [3, 5]
        length = 4

        [fixed]                      # further arguments of the constructor
        classes = 10

        [rules]                      # tensors that are several in one
        "*.in_proj_*" = {fused = 3}
        "mix.weight" = {fused = [2, 1], dim = 1}
        "head.*" = "last_rows"       # a function of the model file, rule(large, shape) -> part

    Raises:
        UserError: missing, not TOML, or something else in it.
    """
    if not path.is_file():
        raise UserError(f"choices file {path} does not exist", allowed="A TOML file", next_step="Correct the path")
    with reading(path, allowed=_ALLOWED_CHOICES, next_step="Correct that line"):
        value = parse_toml(path)
    fixed, rules = value.pop("fixed", {}), value.pop("rules", {})
    if not isinstance(fixed, dict):
        raise _bad(path, "fixed", fixed)
    if not isinstance(rules, dict):
        raise _bad(path, "rules", rules)
    choices = {name: _choice(path, name, options) for name, options in value.items()}
    return {"choices": choices, "fixed": fixed, "rules": {name: _rule(path, name, rule, model) for name, rule in rules.items()}}


def _rule(path: Path, pattern: str, value: Any, model: str) -> Callable[..., Any]:
    from supernets import fused

    if isinstance(value, str) and model:
        return find_model(f"{model.rpartition(':')[0]}:{value}")
    if isinstance(value, dict) and value.keys() <= {"fused", "dim"} and isinstance(value.get("fused"), int | list):
        return fused(value["fused"], dim=value.get("dim", 0))
    raise _bad(path, f"rules.'{pattern}'", value)


def _choice(path: Path, name: str, value: Any) -> list[Any] | Choice:
    if isinstance(value, dict) and value.keys() == {"options", "length"} and isinstance(value["length"], int):
        return Choice(tuple(_options(path, name, value["options"])), value["length"])
    return _options(path, name, value)


def _options(path: Path, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value or not all(isinstance(option, int | float | str | bool) for option in value):
        raise _bad(path, name, value)
    return value


def _bad(path: Path, name: str, value: Any) -> UserError:
    return UserError(f"{path}: {name} = {value!r:.200}", allowed=_ALLOWED_CHOICES, next_step="Correct that line")


# ---- what a run remembers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedModel:
    """The constructor of a run, loaded when it is first called; see the top of this module for when that is refused.

    Attributes:
        run: the run folder.
    """

    run: Path

    @cached_property
    def build(self) -> Callable[..., Any]:
        """The constructor itself.

        Raises:
            UserError: see `record`.
        """
        return self.find(str(self.record.get("function")))

    def find(self, function: str) -> Callable[..., Any]:
        """A function of the constructor's file.

        Raises:
            UserError: see `record`; or the file does not have it.
        """
        return _found_again(Path(self.record["file"]), function, str(self.record.get("module")))

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the run remembers, of a file that may be run.

        Raises:
            UserError: the run remembers nothing, was not made here, or the file has changed.
        """
        path = self.run / "model.json"
        again = f"Name it again with the command that trained the run, or: nas.Run.open('{self.run}', space=nas.elastic(...))"
        if not path.exists():
            raise UserError(
                f"{self.run} does not remember where its networks come from",
                allowed="A constructor that is found by name in a file (not in a script that runs, a notebook, or a function)",
                next_step=again,
            )
        value = read_json(path, "own-model", MODEL_VERSION, make="nas train-supernet --model FILE.py:FUNCTION")
        file, made_in = Path(str(value.get("file"))), Path(str(value.get("folder")))
        here = self.run.resolve()
        if made_in != here or not file.is_absolute() or file.is_relative_to(here):
            raise UserError(
                f"{self.run} was made in {made_in}, with the networks of {file}: that file is not run unasked",
                allowed="A run where it was made, and a model file outside of it",
                next_step=again,
            )
        if not file.is_file() or file_hash(file) != value.get("sha256"):
            raise UserError(
                f"{file}, whose networks {self.run} has, is missing or was changed since",
                allowed=f"The file with SHA-256 {str(value.get('sha256'))[:16]}...",
                next_step="Restore the file, or train anew in another folder",
            )
        return value

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.build)

    def __call__(self, **arguments: Any) -> Any:
        return self.build(**arguments)


def remember(run: Path, space: ElasticSpace) -> None:
    """Write ``model.json``: where the constructor of a run's networks is; nothing where it is not found by name.

    Raises:
        UserError: the run remembers another constructor, or the file has changed since.
    """
    record = _record(run, space)
    path = run / "model.json"
    if path.exists() and record is not None:
        known = read_json(path, "own-model", MODEL_VERSION, make="nas train-supernet --model FILE.py:FUNCTION")
        for name in ("function", "sha256"):
            if known.get(name) != record[name]:
                raise UserError(
                    f"{run} was made with {known.get('function')} of {known.get('file')}, {name} {known.get(name)}; "
                    f"now it is {record[name]}",
                    allowed="A run goes on with the networks that it began with",
                    next_step="Restore the file, or choose another --out folder",
                )
    if record is not None:
        write_json(path, "own-model", MODEL_VERSION, record)


def _record(run: Path, space: ElasticSpace) -> dict[str, Any] | None:
    build: Any = space.build
    name = getattr(build, "__qualname__", "")
    module = getattr(build, "__module__", None)
    if isinstance(build, RecordedModel) or "<" in name or not name or module == "__main__":
        return None
    source = getattr(sys.modules.get(str(module)), "__file__", None)
    if source is None or not Path(source).is_file():
        return None
    file = Path(source).resolve()
    where = {"file": str(file), "module": str(module), "function": name}
    rules = {
        pattern: rule.__qualname__
        for pattern, rule in space.rules.items()
        if inspect.isfunction(rule) and rule.__module__ == module and "<" not in rule.__qualname__
    }
    return {**where, "rules": rules, "sha256": file_hash(file), "folder": str(run.resolve())}


def _found_again(file: Path, function: str, module: str) -> Callable[..., Any]:
    """The constructor in a file whose hash was checked; of a module that can be imported by its name, that one."""
    try:
        known = importlib.import_module(module) if "." in module else sys.modules.get(module)
    except ImportError:  # of a package that is not installed
        known = None
    if known is not None and Path(str(known.__file__)).resolve() == file:
        build: Callable[..., Any] = attrgetter(function)(known)
        return build
    return _loaded(file, function)


def recorded_space(run: Path, value: Mapping[str, Any]) -> ElasticSpace:
    """The elastic space that a run's description holds; its constructor is loaded when a network is first built."""
    with reading(run / "run.json", allowed="The space as nas train-supernet writes it", next_step="Restore it from a copy"):
        return _recorded_space(run, value)


def _recorded_space(run: Path, value: Mapping[str, Any]) -> ElasticSpace:
    from supernets import elastic_space

    bare = ElasticSpace.from_dict(value)
    model = RecordedModel(run)
    whole = elastic_space(
        model,
        bare.choices,
        name=bare.name,
        fixed=bare.fixed,
        rules={pattern: _recorded_rule(model, pattern, str(text)) for pattern, text in value["rules"].items()},
        input_shape=bare.parameters["input_shape"],
        outputs=bare.parameters["outputs"],
        block_level=bare.block_level,
    )
    restricted = whole.restrict({gene.name: gene.options for gene in bare.genes})
    assert isinstance(restricted, ElasticSpace)
    return restricted


@dataclass(frozen=True)
class RecordedRule:
    """A rule of a run that is a function of the constructor's file, loaded when it is first used."""

    model: RecordedModel
    pattern: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def __call__(self, large: Any, shape: tuple[int, ...]) -> Any:
        """The part of a tensor.

        Raises:
            UserError: see `RecordedModel.record`; or the run does not remember where the rule is.
        """
        run = self.model.run
        if self.model.record.get("rules", {}).get(self.pattern) != self.text:
            raise UserError(
                f"{run} has a rule of your own for '{self.pattern}' ({self.text})",
                allowed="A rule that is found by name in the constructor's file",
                next_step=f"Put it there, or open the run with: nas.Run.open('{run}', space=nas.elastic(..., rules=...))",
            )
        return self.model.find(self.text)(large, shape)


def _recorded_rule(model: RecordedModel, pattern: str, text: str) -> Callable[..., Any]:
    """The rule that a space's description calls ``text``."""
    from supernets import fused

    match = _FUSED.fullmatch(text)
    if match is None:
        return RecordedRule(model, pattern, text)
    parts = [int(number) for number in re.findall(r"\d+", match["groups"])]
    return fused(parts if match["groups"].startswith("(") else parts[0], dim=int(match["dim"] or 0))
