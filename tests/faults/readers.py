"""Every reader of the toolkit, with the sample that it reads, ways to damage it, and what its result is used for."""

from __future__ import annotations

import gzip
import io
import json
import random
import sqlite3
import struct
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import nas
import search_spaces
from latency_tables import LatencyTable
from latency_tables.by_hand import import_kit
from latency_tables.exchange import read_lookup
from nas.archive import Archive
from nas.baselines import read_baselines
from nas.exporting import read_export
from nas.fidelity import _read as read_pair
from nas.onnx_files import Signature
from nas.own_models import read_choices
from nas.quantising import read_quantised
from nas.resuming import wanted
from nas.runs import Run
from nas.tables import import_table
from nas.verification import Verification
from search_spaces.artifacts import value_hash
from search_spaces.records import parse_json, reading
from supernets import Interrupted, load_data
from supernets.pretrained import read_checkpoint
from supernets.recipe import Recipe
from supernets.states import CheckpointFile
from tests.faults.mutations import damaged_bytes, damaged_json, damaged_json_text, damaged_text, hostile_value
from tests.faults.samples import CELLS, SPACE, priced

__all__ = ["READERS", "Reader"]

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
        files: patterns of the sample's files, one of which is damaged at a time.
        read: reads and uses what lies in the folder of samples.
        damage: ways to damage a file; one is drawn.
        slow: it takes half a second, and gets a tenth of the inputs.
        whole: a damaged tensor or network in such a file must be refused.
    """

    name: str
    files: str
    read: Callable[[Path], Any]
    damage: Sequence[Damage]
    whole: bool = False
    slow: bool = False


def _run(folder: Path) -> Run:
    run = Run.open(folder / "run")
    run.space.to_array(run.space.sample(2))
    run.space.count()
    return run


def _table(folder: Path) -> None:
    table = LatencyTable.load(folder / "run/tables/onnxruntime-cpu.json")
    table.warnings()
    table.to_frame()
    table.check_same("onnxruntime-cpu", {"batch": 1})
    if table.covers(SPACE):
        table.estimate(SPACE.sample(3))
        table.breakdown(SPACE.largest)
        table.fastest()


def _front(folder: Path) -> None:
    path = folder / "run/front.json"
    front = nas.ParetoFront.load(path)
    front.to_frame()
    front.pick("knee")
    front.pick("best")
    front.pick("latency=5s")
    wanted(path, (), None, None, resume=True, force=False)


def _supernet(folder: Path) -> None:
    run = Run.open(folder / "run")
    run.supernet()
    run.weights_hash()


def _checkpoint(folder: Path) -> None:
    settings = Run.open(folder / "run").settings
    identity = {name: settings[name] for name in ("space", "recipe", "seed")}
    CheckpointFile(folder / "run/training/checkpoint.safetensors", identity).load()


def _resumed(folder: Path) -> None:
    run = Run.open(folder / "run")
    recipe = Recipe.from_dict(run.settings["recipe"], source="run.json")
    weights = run.weights.read_bytes()
    run.weights.unlink()
    try:
        with suppress(Interrupted):
            nas.train(nas.Supernet(SPACE, seed=0), "fake:28x1x4", out=run.path, recipe=recipe, stop=lambda: True)
    finally:
        run.weights.write_bytes(weights)


def _export(folder: Path) -> None:
    run = Run.open(folder / "run")
    for path in (folder / "run/exports").glob("*.json"):
        if not path.stem.endswith("-int8"):
            read_quantised(run, read_export(run, path.stem))


def _verified(folder: Path) -> None:
    found = Verification.load(folder / "run/verified.json")
    json.dumps(found.summary() if found.networks else {}, allow_nan=False)
    found.to_frame()


def _archive(folder: Path) -> None:
    run = Run.open(folder / "run")
    archive = Archive(run.study, run.space, weights=run.weights_hash())
    try:
        archive.scores()
        archive.complete()
        archive.waiting()
        archive.failures(run.space.sample(2))
        archive.claim()
        archive.recover()
    finally:
        archive.close()


def _evaluations(folder: Path) -> object:
    return nas.optimize(CELLS, priced, objectives={"cost": "min"}, budget=6, archive=folder / "evaluations.json").trials


def _space(folder: Path) -> None:
    path = folder / "space.json"
    with reading(path, allowed="A space", next_step="None"):
        value = parse_json(path)
    space = search_spaces.from_dict(value)
    space.from_array(space.to_array(space.sample(3)))
    space.encode(space.sample(2))
    space.to_dict()


def _report(folder: Path) -> None:
    nas.report(Run.open(folder / "run"))


def _kit(folder: Path) -> None:
    import_kit(folder / "kit", "table://board")


def _pretrained(folder: Path) -> None:
    nas.start_from(nas.Supernet(SPACE, seed=0), folder / "pretrained.pt")


def _network(folder: Path) -> None:
    for path in (folder / "run/exports").glob("*.safetensors"):
        nas.load_network(path)


def _onnx(folder: Path) -> None:
    path = next((folder / "run/baselines").glob("*.onnx"))
    signature = Signature.of(path)
    signature.side(16)
    _ = signature.channels


def _data(source: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        images = load_data(source.format(folder))
        for split in (images.train, images.val, images.test):
            split.batch([0, 1], 8 if len(images.input_shape) == 3 else images.input_shape[-1])

    return read


# ---- damage that needs to know the format -----------------------------------------------------------------------


def _header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header: tensors' places and types, or the description."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.5:
        about = damaged_json(json.loads(header["__metadata__"]["hwnas"]), rng)
        header["__metadata__"]["hwnas"] = json.dumps(about)
    else:
        header = damaged_json(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _signed(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose description is hostile, and whose checksums fit: made so, not damaged on the way."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"]["hwnas"])
    sums = {name: about.pop(name) for name in ("checksum", "about_checksum")}
    about = damaged_json(about, rng)
    sums["about_checksum"] = value_hash(about)
    header["__metadata__"]["hwnas"] = json.dumps({**about, **sums})
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _tensor_bytes(content: bytes, rng: random.Random) -> bytes:
    """A bit of the tensors flipped."""
    (length,) = struct.unpack("<Q", content[:8])
    data = bytearray(content)
    data[rng.randrange(8 + length, len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _any_bit(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _unzipped(damage: Damage) -> Damage:
    return lambda content, rng: gzip.compress(damage(gzip.decompress(content), rng), compresslevel=1)


def _gzip_bomb(content: bytes, rng: random.Random) -> bytes:
    bomb = gzip.compress(b"\0" * (1 << 20), compresslevel=9)
    return (bomb * 300 if rng.random() < 0.2 else bomb) + content


def _archive_member(content: bytes, rng: random.Random) -> bytes:
    """A zip file with one member damaged, renamed or replaced by code for an unpickler."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    names = source.namelist()
    chosen, action = rng.choice(names), rng.randrange(5)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name in names:
            data = source.read(name)
            if name == chosen:
                if action == 0:
                    data = damaged_bytes(data, rng)
                elif action == 1:
                    data = _PICKLES[rng.randrange(len(_PICKLES))]
                elif action == 2:
                    name = rng.choice(("../../outside.npy", "/tmp/outside", name + "/x", "z.npy"))
                elif action == 3:
                    continue
                else:
                    data = data + b"\0" * 1000
            made.writestr(name, data)
    return target.getvalue()


def _arrays(content: bytes, rng: random.Random) -> bytes:
    """Arrays of other kinds, shapes and sizes; a header that promises more than there is; zeros without end."""
    del content
    target = io.BytesIO()
    shape = rng.choice(((4, 1, 8, 8), (4,), (), (0, 2), (4, 8), (3, 1, 8, 8)))
    kind = rng.choice((np.float32, np.float64, np.int8, np.uint64, np.complex64, "datetime64[s]", "U3", np.bool_, np.float16))
    x = np.zeros(shape, np.dtype(kind))
    if x.dtype.kind == "f" and x.size:
        x.flat[0] = rng.choice((np.nan, np.inf, 1e4, 0))
    y: Any = rng.choice(
        (np.arange(4), np.zeros(4), np.array(["a", "b", "c", "d"]), np.zeros((4, 1)), np.array([0, 1, 2, None]))
    )
    np.savez(target, **{rng.choice(("x", "x", "x", "x_val", "../x")): x, rng.choice(("y", "y", "z")): y})
    if rng.random() < 0.3:
        head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 8), }" % rng.choice((10**6, 10**12, 10**30))
        head += b" " * (118 - len(head) - 1) + b"\n" if len(head) < 117 else b"\n"
        with zipfile.ZipFile(target := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * (1 << 16))
    elif rng.random() < 0.03:
        with zipfile.ZipFile(target := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("x.npy", b"\0" * (300 << 20))
    return target.getvalue()


# What an unpickler would run: the canary file would appear. Protocol 0, written out so that nothing here pickles.
_CANARY = "/tmp/hwnas-fault-canary"
_PICKLES = (
    b"cos\nsystem\n(S'touch " + _CANARY.encode() + b"'\ntR.",
    b"cbuiltins\nexec\n(S'open(\"" + _CANARY.encode() + b'", "w")\'\ntR.',
    b"cposix\nsystem\n(S'touch " + _CANARY.encode() + b"'\ntR.",
)


def _pickled(content: bytes, rng: random.Random) -> bytes:
    del content
    return rng.choice(_PICKLES)


def _rows_of_a_database(content: bytes, rng: random.Random) -> bytes:
    """A study with a value changed, removed or of another kind."""
    connection = sqlite3.connect(":memory:")
    connection.deserialize(content)
    tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
    weights = {"trial_user_attributes": 12, "trial_values": 6, "trials": 6, "studies": 3, "study_user_attributes": 3}
    for _ in range(rng.choice((1, 1, 3))):
        table = rng.choices(tables, [weights.get(name, 1) for name in tables])[0]
        columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
        rows = [row[0] for row in connection.execute(f"select rowid from {table}")]
        action = rng.randrange(12)
        try:
            if action == 0:
                connection.execute(f"drop table {table}")
                break
            if not rows:
                continue
            row, column = rng.choice(rows), rng.choice(columns)
            if action == 1:
                connection.execute(f"delete from {table} where rowid = ?", (row,))
                continue
            (before,) = connection.execute(f"select {column} from {table} where rowid = ?", (row,)).fetchone()
            connection.execute(f"update {table} set {column} = ? where rowid = ?", (_cell(before, rng), row))
        except (sqlite3.Error, OverflowError, UnicodeEncodeError):
            continue
    connection.commit()
    return connection.serialize()


def _cell(before: Any, rng: random.Random) -> Any:
    if isinstance(before, str) and before[:1] in '{["' and rng.random() < 0.7:
        try:
            inner = json.loads(before)
            if isinstance(inner, str) and inner[:1] in "{[":
                return json.dumps(json.dumps(damaged_json(json.loads(inner), rng)))
            return json.dumps(damaged_json(inner, rng) if isinstance(inner, dict | list) else hostile_value(rng))
        except ValueError:
            pass
    value = hostile_value(rng)
    return value if isinstance(value, str | int | float | None) else json.dumps(value)


def _image(content: bytes, rng: random.Random) -> bytes:
    """An image whose header promises another size; else any damage."""
    data = bytearray(content)
    if content.startswith(b"\x89PNG") and rng.random() < 0.7:
        import zlib

        side = rng.choice((0, 1, 2, 5000, 100_000, 2**31 - 1, 2**32 - 1))
        data[16:24] = struct.pack(">II", side, rng.choice((side, 1, 8)))
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        return bytes(data)
    return damaged_bytes(content, rng)


def _parquet(content: bytes, rng: random.Random) -> bytes:
    """Other columns and types; one image a hundred thousand times."""
    import pyarrow
    from pyarrow import parquet

    del content
    count = rng.choice((1, 4, 20))
    image: Any = rng.choice((b"", b"x" * 10, None, "text", 7, {"bytes": b"x"}, {"bytes": None}, {"path": "x"}, [b"x"]))
    labels = rng.choice(
        ([0] * count, list(range(count)), [None] * count, ["a"] * count, [0.5] * count, [-(2**63)] * count, [2**64 - 1] * count)
    )
    if rng.random() < 0.1:
        count, image, labels = 20_000, b"\0" * 20_000, [n % 2 for n in range(20_000)]
    names = (rng.choice(("image", "jpeg", "other")), rng.choice(("label", "fine_label", "other2")))
    target = io.BytesIO()
    parquet.write_table(pyarrow.table({names[0]: [image] * count, names[1]: labels}), target)
    return target.getvalue()


def _onnx_fields(content: bytes, rng: random.Random) -> bytes:
    """A model with strange inputs, outputs and external data."""
    model = onnx.load_from_string(content)
    action = rng.randrange(5)
    if action == 0:
        del model.graph.input[:]
    elif action == 1:
        model.graph.output.extend(model.graph.input)
        model.graph.input.extend(model.graph.output)
    elif action == 2:
        constant = model.graph.initializer[0]
        constant.ClearField("raw_data")
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key="location", value=rng.choice(("../../etc/passwd", "/etc/passwd", "x")))
    elif action == 3:
        for dim in model.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_value = rng.choice((-1, 0, 2**62))
    else:
        model.graph.input[0].type.Clear()
    return bytes(model.SerializeToString())


def _pair(folder: Path) -> None:
    read_pair(next((folder / "run/rank_check").glob("*.json")), {"epochs": 1.0, "images": 50})


def _tables(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        import_table(folder / name, SPACE, name="board")

    return read


_JSON = (damaged_json_text, damaged_json_text, damaged_json_text, damaged_bytes)
_TENSORS = (damaged_bytes, _header, _signed)

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("run", "run/run.json", _run, _JSON),
        Reader("latency table", "run/tables/onnxruntime-cpu.json", _table, _JSON),
        Reader("kit", "kit/kit.json", _kit, _JSON),
        Reader("kit results", "kit/results.json", _kit, _JSON),
        Reader("table CSV", "table.csv", _tables("table.csv"), (damaged_text, damaged_bytes)),
        Reader("table YAML", "lookup.yaml", lambda folder: read_lookup(folder / "lookup.yaml"), (damaged_text, damaged_bytes)),
        Reader("front", "run/front.json", _front, _JSON),
        Reader("verified", "run/verified.json", _verified, _JSON),
        Reader("export record", "run/exports/*.json", _export, _JSON),
        Reader("export ONNX", "run/exports/*.onnx", _export, (_any_bit, damaged_bytes), whole=True),
        Reader("baseline", "run/baselines/*.json", lambda folder: read_baselines(Run.open(folder / "run")), _JSON),
        Reader("rank check", "run/rank_check/*.json", _pair, _JSON),
        Reader("predictor", "predictor.json", lambda folder: nas.ArchitecturePredictor.load(folder / "predictor.json"), _JSON),
        Reader("evaluations", "evaluations.json", _evaluations, _JSON),
        Reader("search space", "space.json", _space, (damaged_json_text,)),
        Reader("recipe TOML", "recipe.toml", lambda folder: Recipe.read(folder / "recipe.toml"), (damaged_text, damaged_bytes)),
        Reader(
            "choices TOML", "choices.toml", lambda folder: read_choices(folder / "choices.toml"), (damaged_text, damaged_bytes)
        ),
        Reader("supernet", "run/supernet.safetensors", _supernet, _TENSORS),
        Reader("supernet, a bit", "run/supernet.safetensors", _supernet, (_tensor_bytes,), whole=True),
        Reader("checkpoint", "run/training/checkpoint.safetensors", _checkpoint, _TENSORS),
        Reader("checkpoint, a bit", "run/training/checkpoint.safetensors", _checkpoint, (_tensor_bytes,), whole=True),
        Reader("resumed training", "run/training/checkpoint.safetensors", _resumed, (_signed,), slow=True),
        Reader("network", "run/exports/*.safetensors", _network, _TENSORS),
        Reader("network, a bit", "run/exports/*.safetensors", _network, (_tensor_bytes,), whole=True),
        Reader(
            "pretrained",
            "pretrained.pt",
            lambda folder: read_checkpoint(folder / "pretrained.pt"),
            (_archive_member, _pickled, damaged_bytes),
        ),
        Reader("ONNX file", "run/baselines/*.onnx", _onnx, (damaged_bytes, _onnx_fields)),
        Reader("archive", "run/study.db", _archive, (_rows_of_a_database, _rows_of_a_database, damaged_bytes)),
        Reader("report", "run/*.json", _report, _JSON, slow=True),
        Reader("training log", "run/training/log.*", _report, (damaged_bytes, damaged_text), slow=True),
        Reader("arrays npz", "arrays.npz", _data("npz:{}/arrays.npz"), (_archive_member, _arrays, damaged_bytes)),
        Reader("image folder", "photos/*/*", _data("folder:{}/photos"), (_image, damaged_bytes)),
        Reader("image tables", "tables/*", _data("parquet:{}/tables"), (_parquet, damaged_bytes)),
        Reader("IDX", "mnist/*", _data("fashion-mnist:{}/mnist"), (_unzipped(damaged_bytes), damaged_bytes, _gzip_bomb)),
        Reader("CIFAR binary", "cifar/*", _data("cifar10:{}/cifar"), (damaged_bytes,)),
    )
}
