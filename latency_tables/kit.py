"""Kits: models, what to do with them and the script that does it, to be timed on another machine; and results, checked.

A kit is a folder that needs Python, numpy and ONNX Runtime where it is run. Random weights are not in it: the script draws
them once, and all models share them, so that a kit of hundreds of layers is a few megabytes. What comes back was written
elsewhere and is believed only as far as it makes sense.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from latency_tables.device import Candidate, Options, serialised
from latency_tables.quantise import quantised
from latency_tables.standalone.running import RESULTS_KIND, RESULTS_VERSION, SCRIPT
from latency_tables.standalone.runtime import PROVIDERS
from latency_tables.standalone.timing import LONGEST_SAMPLE, Plan, Raw
from latency_tables.stopwatch import Failure, Measurement, understood
from search_spaces.artifacts import file_hash, read_json, value_hash, write_json
from search_spaces.errors import UserError
from search_spaces.records import parse_json, reading, record

__all__ = ["SCRIPT", "Kit", "KitWriter", "check_fingerprint", "read_kit", "read_results", "write_script"]

KIND, VERSION = "latency-kit", 1
POOL_FILE = "weights.bin"
SMALL = 256  # elements up to which a constant stays in its model
SPREADS = tuple(2.0**-power for power in range(11))
MOST_TEXT = 2000  # characters of a message from there
MOST_FACTS = 40  # of a fingerprint


def write_script(folder: Path) -> None:
    """The script that runs a kit, and what it needs: the very modules that time things here."""
    package = resources.files("latency_tables.standalone")
    (folder / "standalone").mkdir()
    for source in package.iterdir():
        if source.name.endswith(".py"):
            (folder / "standalone" / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    start = "import sys\n\nfrom standalone.running import main\n\nsys.exit(main(sys.argv[1:]))\n"
    (folder / SCRIPT).write_text(start, encoding="utf-8")


@dataclass(frozen=True)
class Kit:
    """A kit's description.

    Attributes:
        chunks: names of model files that are timed against each other.
        labels: what each model is.
        about: what the kit is for, as whoever made it wants to find it again.
    """

    id: str
    device: str
    options: Options
    plan: Plan
    chunks: list[list[str]]
    labels: dict[str, str]
    about: dict[str, Any]

    @property
    def names(self) -> list[str]:
        return [name for chunk in self.chunks for name in chunk]


@dataclass
class KitWriter:
    """Fills a folder with models, chunk by chunk; `finish` describes them."""

    folder: Path
    device: str
    options: Options
    plan: Plan
    seed: int = 0
    _chunks: list[list[str]] = field(default_factory=list)
    _labels: dict[str, str] = field(default_factory=dict)
    _largest: int = 0

    def add(self, candidates: Sequence[Candidate]) -> list[Failure | None]:
        """Write models to be timed against each other; a model that cannot be made is reported and left out."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chunk: list[str] = []
        failures: list[Failure | None] = []
        for candidate in candidates:
            name = f"{len(self._labels):05d}.onnx"
            try:
                content = self._content(candidate.model())
            except Exception as error:  # noqa: BLE001 - as on a device: one model must not cost the others
                failures.append(Failure(f"{type(error).__name__}: {error}"))
                continue
            (self.folder / name).write_bytes(content)
            self._labels[name] = candidate.label
            chunk.append(name)
            failures.append(None)
        self._chunks.append(chunk)
        return failures

    def _content(self, model: onnx.ModelProto | bytes) -> bytes:
        """The model's bytes; random weights become references to the file that the script draws."""
        loaded = onnx.load_from_string(serialised(model))
        if self.options.precision == "int8":
            loaded = quantised(loaded)
        if any(p.key == "weights" and p.value == "random" for p in loaded.metadata_props):
            for constant in loaded.graph.initializer:
                self._largest = max(self._largest, _shared(constant))
        content: bytes = loaded.SerializeToString()
        return content

    def finish(self, about: Mapping[str, Any]) -> Kit:
        """Write the description and the script."""
        # The layout of the shared file depends on the largest constant of all models, known only now.
        for name in self._labels:
            _place(self.folder / name, self._largest)
        body: dict[str, Any] = {
            "device": self.device,
            **dataclasses.asdict(self.options),
            "plan": dataclasses.asdict(self.plan),
            "seed": self.seed,
            "pool": {"count": self._largest, "spreads": list(SPREADS)},
            "chunks": self._chunks,
            "labels": self._labels,
            "about": dict(about),
        }
        contents = [file_hash(self.folder / name) for name in self._labels]
        write_script(self.folder)
        write_json(self.folder / "kit.json", KIND, VERSION, {"id": value_hash([body, contents]), **body})
        return read_kit(self.folder)


def _shared(constant: onnx.TensorProto) -> int:
    """Mark a large constant as one of the shared file's, by its spread; returns its number of elements, 0 if it stays."""
    count: int = math.prod(constant.dims)
    if count <= SMALL or constant.data_type not in (TensorProto.FLOAT, TensorProto.INT8):
        return 0
    row = len(SPREADS)  # the last row: bytes
    if constant.data_type == TensorProto.FLOAT:
        spread = float(numpy_helper.to_array(constant).std())
        row = int(np.argmin([abs(math.log2(max(spread, 1e-9)) - math.log2(s)) for s in SPREADS]))
    constant.ClearField("raw_data")
    constant.ClearField("float_data")
    constant.ClearField("int32_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in (("location", POOL_FILE), ("offset", str(row))):
        constant.external_data.add(key=key, value=value)
    return count


def _place(path: Path, largest: int) -> None:
    """Turn rows of the shared file into offsets and lengths."""
    model = onnx.load(path, load_external_data=False)
    for constant in model.graph.initializer:
        if constant.data_location == TensorProto.EXTERNAL:
            item = 1 if constant.data_type == TensorProto.INT8 else 4
            constant.external_data[1].value = str(int(constant.external_data[1].value) * largest * 4)
            constant.external_data.add(key="length", value=str(math.prod(constant.dims) * item))
    path.write_bytes(model.SerializeToString())


def read_kit(folder: Path) -> Kit:
    """The description of a kit that was made here.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / "kit.json"
    value = read_json(path, KIND, VERSION, make="nas kit make")
    with reading(path, allowed="The file as nas kit make wrote it", next_step="Make the kit anew"):
        options = {f.name: value[f.name] for f in dataclasses.fields(Options)}
        kit = record(Kit, {**value, "options": options})
        if kit.device not in PROVIDERS:
            raise ValueError(f"device {kit.device!r:.60}")
        if any(name not in kit.labels for name in kit.names):
            raise ValueError("a model has no label")
        return kit


# ---- what comes back ----------------------------------------------------------------------------------------


def read_results(path: Path, kit: Kit, *, again: str) -> tuple[dict[str, Any], dict[str, Measurement | Failure]]:
    """The fingerprint and the measurements that a kit brought back, each number checked.

    Args:
        again: what to do to get them anew, for messages.

    Raises:
        UserError: no results, not of this kit, incomplete, or with anything in them that no clock shows.
    """

    def refused(problem: str) -> UserError:
        return UserError(
            f"{path}: {problem}", allowed=f"The results of the kit {kit.id}, as {SCRIPT} writes them", next_step=again
        )

    if not path.is_file():
        raise refused("there are no results")
    try:
        value = parse_json(path)
        if not isinstance(value, dict) or (value.get("kind"), value.get("version")) != (RESULTS_KIND, RESULTS_VERSION):
            raise ValueError("these are not results of a kit")
        if value.get("kit") != kit.id:
            raise ValueError(f"these are results of the kit {str(value.get('kit'))[:40]}")
        fingerprint = check_fingerprint(value["fingerprint"], kit.options)
        items = {name: _item(value["items"][name], kit.plan) for name in kit.names if name in value["items"]}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise refused(f"{type(error).__name__}: {error}"[:MOST_TEXT]) from None
    missing = len(kit.names) - len(items)
    if missing:
        raise refused(f"{missing} of {len(kit.names)} models are not timed yet")
    found = [pair for chunk in kit.chunks for pair in zip(chunk, understood([items[name] for name in chunk]), strict=True)]
    return fingerprint, dict(found)


def check_fingerprint(value: Any, options: Options) -> dict[str, Any]:
    """A fingerprint from elsewhere; ValueError for what cannot be one, or one of other options."""
    if not isinstance(value, dict) or not 0 < len(value) <= MOST_FACTS:
        raise ValueError("the fingerprint is not a short list of facts")
    for key, fact in value.items():
        plain = isinstance(fact, str | int) and not isinstance(fact, bool)
        if not plain or len(str(key)) > MOST_TEXT or len(str(fact)) > MOST_TEXT or not f"{key}{fact}".isprintable():
            raise ValueError("the fingerprint holds something else than short texts and whole numbers")
    for name, wanted in dataclasses.asdict(options).items():
        if value.get(name) != wanted:
            raise ValueError(f"measured with {name} = {value.get(name)}, asked for {wanted}")
    return value


def _item(value: Any, plan: Plan) -> Raw | str:
    """One model's samples, or why there are none; ValueError for what cannot be either."""
    if isinstance(value, dict) and set(value) == {"error"} and isinstance(value["error"], str):
        return "".join(c for c in value["error"][:MOST_TEXT] if c.isprintable() or c == "\n")
    if not isinstance(value, dict) or set(value) != {"wall_ns", "cpu_ns", "runs"}:
        raise ValueError("a model has neither samples nor an error")
    wall, cpu, runs = value["wall_ns"], value["cpu_ns"], value["runs"]
    if not isinstance(wall, list) or not isinstance(cpu, list) or len(wall) != len(cpu) or not 1 <= len(wall) <= plan.most:
        raise ValueError(f"a model has other than 1 to {plan.most} samples on both clocks")
    for number in [*wall, *cpu, runs]:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 10**15:
            raise ValueError(f"{str(number)[:40]} is not a time in whole nanoseconds")
    if not 0 < runs <= LONGEST_SAMPLE:
        raise ValueError(f"{runs} runs in a sample")
    return wall, cpu, runs
