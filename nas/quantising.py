"""INT8 by static post-training quantisation of exported networks, with the layers that cost accuracy kept in float.

Where that loses too much, the network can be trained on with INT8's rounding first (`supernets.rounding`).

ONNX Runtime's QDQ form: unsigned activations, signed weights per channel, ranges from training images. Accuracy is taken on
validation images here; test images and clocks are `nas.verify`'s, and whether INT8 is faster is measured there, never assumed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from latency_tables.standalone.runtime import quiet_onnxruntime
from nas.exporting import Export, onnx_model, read_export
from nas.finetuning import deployed_network
from nas.onnx_files import Signature, feed, outputs, wrapped
from nas.pareto import Point
from nas.runs import Run
from search_spaces.artifacts import atomic_path, file_hash, read_json, write_json
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from search_spaces.records import member, reading, record
from supernets import train_rounded

__all__ = ["LayerLoss", "Quantised", "quantise_points", "read_quantised"]

QUANTISED_VERSION = 1
DEFAULT_IMAGES, DEFAULT_LOSS = 512, 0.01
VALIDATION_IMAGES = 2000
SENSITIVITY_IMAGES = 500
AWARE_STEPS = 200
_CALIBRATION, _AWARE = 5, 6  # streams of random numbers
_BATCH = 32
_HEAVY = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_AROUND = ("Softmax", "pixels/")  # what the format puts around a network stays in float


@dataclass(frozen=True)
class LayerLoss:
    """What quantising one layer alone costs.

    Attributes:
        layer: prefix of its nodes' names.
        accuracy_loss: fraction of validation images that are lost; negative where it gains.
        error: root mean square change of the outputs over their standard deviation.
    """

    layer: str
    accuracy_loss: float
    error: float


@dataclass(frozen=True)
class Quantised:
    """An INT8 twin of an exported network.

    Attributes:
        id: the network's id with ``-int8``.
        network: id of the network.
        file, sha256: the ONNX file in the run's ``exports`` folder.
        source: SHA-256 of the float file that it was made from.
        calibration_images: training images that the ranges of activations come from.
        images: validation images of both accuracies.
        float_accuracy, accuracy: fractions of them.
        allowed_loss: beyond which layers were kept in float.
        kept: layers kept in float, by name.
        sensitivity: each layer alone, the most costly first; empty where nothing asked for it.
        steps: of quantisation-aware training before; 0 where the exported weights were quantised.
    """

    id: str
    network: str
    file: str
    sha256: str
    source: str
    resolution: int
    calibration_images: int
    images: int
    float_accuracy: float
    accuracy: float
    float_bytes: int
    bytes: int
    allowed_loss: float
    kept: tuple[str, ...] = ()
    sensitivity: tuple[LayerLoss, ...] = ()
    steps: int = 0

    @property
    def loss(self) -> float:
        """Accuracy lost on the validation images, a fraction."""
        return self.float_accuracy - self.accuracy

    @property
    def options(self) -> str:
        """What `nas quantize` needs to make it as it is, beginning with a space."""
        aware = " --aware" if self.steps else ""
        return f" --images {self.calibration_images} --max-loss {100 * self.allowed_loss:g}{aware}"

    @property
    def within(self) -> bool:
        """Whether the loss is within what was allowed."""
        return self.loss <= self.allowed_loss


def quantise_points(
    run: Run,
    points: Sequence[Point],
    *,
    images: int | None,
    max_loss: float | None,
    sensitivity: bool,
    aware: bool,
    force: bool,
    progress: Progress,
) -> list[Quantised]:
    """Quantise exported points of the front that have no INT8 twin yet (all of them with ``force``).

    Args:
        images: training images for calibration, at most; None: 512, and whatever an existing twin was made with.
        max_loss: fraction of accuracy on validation images; where quantising everything loses more, layers stay in float. None:
            0.01, and as for ``images``.
        sensitivity: measure each layer alone, also where nothing is lost.
        aware: where quantising everything loses more, train with INT8's rounding before layers are kept in float.

    Raises:
        UserError: a network is not exported, or a number out of range.
    """
    count, allowed = DEFAULT_IMAGES if images is None else images, DEFAULT_LOSS if max_loss is None else max_loss
    if count < 1 or not 0 <= allowed < 1:
        raise UserError(
            f"{count} calibration images, at most {allowed:.1%} lost",
            allowed="At least one image, and a loss from 0 to 100 %",
            next_step="Leave them out for 512 images and 1 %",
        )
    exports = [read_export(run, point.arch.id) for point in points]
    done: list[Quantised] = []
    progress.start("quantise", len(points))
    try:
        for point, export in zip(points, exports, strict=True):
            existing = None if force else _existing(run, export)
            if existing is not None:
                _check_options(run, existing, images, max_loss, aware=aware)
            if existing is None:
                retrain = partial(_trained, run, point, export) if aware else None
                existing = _quantise(run, export, count, allowed, sensitivity, retrain)
            elif sensitivity and not existing.sensitivity:
                existing = _with_sensitivity(run, export, existing)
            done.append(existing)
            progress.advance()
    finally:
        progress.stop()
    return done


def _check_options(run: Run, twin: Quantised, images: int | None, max_loss: float | None, *, aware: bool) -> None:
    """Refuse to pass a twin off as one that was made with the options given."""
    other = images is not None and twin.calibration_images != min(images, len(run.data().train))
    asked_to_train = aware and not twin.steps and twin.kept  # layers stayed in float where training would have come first
    if other or max_loss not in (None, twin.allowed_loss) or asked_to_train:
        raise UserError(
            f"{twin.id} was made from {twin.calibration_images} images, with {twin.allowed_loss:.2%} allowed to be lost"
            + ("" if twin.steps else ", without training"),
            allowed="The same options, or a new file",
            next_step=f"Make it anew: nas quantize {run.path} --pick {twin.network} --force and the options",
        )


def read_quantised(run: Run, export: Export) -> Quantised | None:
    """The INT8 twin of an export; None where there is none.

    Raises:
        UserError: its file is missing or was changed, or it was made from another export of the network.
    """
    source = run.exports / f"{export.id}-int8.json"
    if not source.exists():
        return None
    make = f"nas quantize {run.path} --pick {export.id} --force"
    value = read_json(source, "quantised", QUANTISED_VERSION, make=make)
    with reading(source, allowed="The record as nas quantize writes it", next_step=f"Run: {make}"):
        found = record(Quantised, value)
        path = member(run.exports, found.file)
        if (found.id, found.network) != (f"{export.id}-int8", export.id):
            raise ValueError(f"it is of {found.id!r:.60}")
    if not path.is_file() or file_hash(path) != found.sha256:
        raise UserError(f"{path} is missing or was changed", allowed="The file that was written", next_step=f"Run: {make}")
    if found.source != export.sha256:
        raise UserError(
            f"{path} was made from another export of {export.id}",
            allowed="An INT8 file belongs to the float file that it was made from",
            next_step=f"Run: {make}",
        )
    return found


def _existing(run: Run, export: Export) -> Quantised | None:
    """The twin, where it still belongs to the export; a newer export gets a new one."""
    try:
        return read_quantised(run, export)
    except UserError:
        return None


class _Bench:
    """One exported network on its way to INT8: quantised in any part, and judged on validation images."""

    def __init__(self, run: Run, export: Export, images: int, path: Path) -> None:
        self.path = path
        data, self.resolution = run.data(), export.resolution
        rng = np.random.default_rng([run.settings["seed"], _CALIBRATION])
        self.calibration = rng.permutation(len(data.train))[:images]  # unsorted: any part of it has all classes
        self.train, self.val = data.train, data.val
        self.chosen = np.linspace(0, len(data.val) - 1, min(VALIDATION_IMAGES, len(data.val))).astype(np.int64)
        self.labels = data.val.labels.numpy()
        graph = onnx.load(self.path).graph
        self.around = [node.name for node in graph.node if node.name.startswith(_AROUND)]
        self.nodes = {node.name: _layer_of(node.name) for node in graph.node if node.name not in self.around}
        heavy = [self.nodes[node.name] for node in graph.node if node.op_type in _HEAVY and node.name in self.nodes]
        self.layers = list(dict.fromkeys(heavy))

    def quantise(self, target: Path, *, kept: Sequence[str] = (), only: str | None = None, images: int | None = None) -> None:
        """Write the network with its layers in INT8, except those kept, or one layer alone."""
        quiet_onnxruntime()
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = target.with_suffix(".prepared.onnx")
        quant_pre_process(self.path, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _reader(self._batches(self.calibration[:images])),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[name for name, layer in self.nodes.items() if layer == only] if only else None,
            nodes_to_exclude=self.around + [name for name, layer in self.nodes.items() if layer in kept],
            # Logits in eight bits would tie.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        prepared.unlink()

    def _batches(self, chosen: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        signature = Signature.of(self.path)
        size = signature.batch or _BATCH
        name = onnx.load(self.path, load_external_data=False).graph.input[0].name
        whole = -(-len(chosen) // size) * size  # every batch has the same size: some files take no other
        for part in np.resize(chosen, whole).reshape(-1, size):
            yield {name: feed(self.train, part, self.resolution, signature)}

    def outputs(self, path: Path, *, most: int | None = None) -> NDArray[np.float32]:
        """Of a file on the validation images."""
        return outputs("onnxruntime-cpu", path, self.val, self.resolution, indices=self.chosen[:: self._step(most)])

    def accuracy(self, found: NDArray[np.float32], *, most: int | None = None) -> float:
        return float((found.argmax(1) == self.labels[self.chosen[:: self._step(most)]]).mean())

    def _step(self, most: int | None) -> int:
        return 1 if most is None else max(1, -(-len(self.chosen) // most))

    def sensitivity(self, folder: Path) -> list[LayerLoss]:
        """Each layer quantised alone; the most costly first."""
        most = SENSITIVITY_IMAGES
        plain = self.outputs(self.path, most=most)
        right, spread = self.accuracy(plain, most=most), float(plain.std())
        found = []
        for layer in self.layers:
            self.quantise(folder / "alone.onnx", only=layer, images=2 * _BATCH)
            changed = self.outputs(folder / "alone.onnx", most=most)
            error = float(np.sqrt(np.square(changed - plain).mean())) / (spread or 1.0)
            found.append(LayerLoss(layer, right - self.accuracy(changed, most=most), error))
        return sorted(found, key=lambda loss: -loss.error)


def _reader(batches: Iterator[dict[str, Any]]) -> Any:
    quiet_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    return Reader()


def _layer_of(node: str) -> str:
    """The layer of a node: ``blocks.3`` of ``blocks.3.expand.conv/Conv``; any other node is a layer of its own."""
    parts = node.split(".")
    return ".".join(parts[:2]).split("/")[0] if parts[0] == "blocks" and len(parts) > 1 else node


def _quantise(
    run: Run, export: Export, images: int, max_loss: float, sensitivity: bool, retrain: Callable[[Path], Path] | None
) -> Quantised:
    source = run.exports / export.file
    bench = _Bench(run, export, images, source)
    right, steps = bench.accuracy(bench.outputs(bench.path)), 0
    path = run.exports / f"{export.id}-int8.onnx"
    with tempfile.TemporaryDirectory() as name, atomic_path(path) as temporary:
        folder, target = Path(name), Path(name) / "int8.onnx"
        bench.quantise(target)
        accuracy = bench.accuracy(bench.outputs(target))
        if retrain is not None and right - accuracy > max_loss:
            trained = _Bench(run, export, images, retrain(folder / "trained.onnx"))
            trained.quantise(folder / "aware.onnx")
            better = trained.accuracy(trained.outputs(folder / "aware.onnx"))
            if better > accuracy:
                bench, target, accuracy, steps = trained, folder / "aware.onnx", better, AWARE_STEPS
        losses = bench.sensitivity(folder) if sensitivity or right - accuracy > max_loss else []
        kept: list[str] = []
        # One layer, two, four ... of the most costly ones: few tries, and the last one keeps them all.
        while right - accuracy > max_loss and len(kept) < len(losses):
            kept = [loss.layer for loss in losses[: max(1, 2 * len(kept))]]
            bench.quantise(target, kept=kept)
            accuracy = bench.accuracy(bench.outputs(target))
        _describe(target, source, temporary)
    quantised = Quantised(
        id=f"{export.id}-int8",
        network=export.id,
        file=path.name,
        sha256=file_hash(path),
        source=export.sha256,
        resolution=export.resolution,
        calibration_images=len(bench.calibration),
        images=len(bench.chosen),
        float_accuracy=right,
        accuracy=accuracy,
        float_bytes=source.stat().st_size,
        bytes=path.stat().st_size,
        allowed_loss=max_loss,
        kept=tuple(kept),
        sensitivity=tuple(losses),
        steps=steps,
    )
    write_json(run.exports / f"{export.id}-int8.json", "quantised", QUANTISED_VERSION, asdict(quantised))
    return quantised


def _with_sensitivity(run: Run, export: Export, twin: Quantised) -> Quantised:
    """The twin's record with what each layer costs alone; the twin stays as it is.

    Raises:
        UserError: the twin was trained with INT8's rounding: the float network that it was made of is not kept.
    """
    if twin.steps:
        again = f"nas quantize {run.path} --pick {twin.network}{twin.options} --sensitivity --force"
        raise UserError(
            f"{twin.id} was trained with INT8's rounding, and what its layers cost was not measured then",
            allowed="A twin of the exported weights; the trained network is not kept in float",
            next_step=f"Make it anew: {again}",
        )
    bench = _Bench(run, export, twin.calibration_images, run.exports / export.file)
    with tempfile.TemporaryDirectory() as name:
        found = replace(twin, sensitivity=tuple(bench.sensitivity(Path(name))))
    write_json(run.exports / f"{twin.id}.json", "quantised", QUANTISED_VERSION, asdict(found))
    return found


def _trained(run: Run, point: Point, export: Export, target: Path) -> Path:
    """The network trained on with INT8's rounding, as a float ONNX file in the export's format."""
    data = run.data()
    network = deployed_network(run, point.arch, data)
    rng = np.random.default_rng([run.settings["seed"], _AWARE])
    size = min(_BATCH, len(data.train))
    known = np.array_split(rng.permutation(len(data.train))[: 4 * size], 4)
    calibration = (data.train.batch(part, export.resolution) for part in known)
    drawn = (rng.permutation(len(data.train))[:size] for _ in range(AWARE_STEPS))
    batches = (data.train.batch(part, export.resolution, rng=rng) for part in drawn)
    train_rounded(network, calibration, batches, steps=AWARE_STEPS)
    model = onnx_model(network, data.test.batch([0, 1], export.resolution), {}, form=export.format)
    target.write_bytes(wrapped(model, export.format, data).SerializeToString())
    return target


def _describe(made: Path, source: Path, target: Path) -> None:
    """The quantised file with the float file's metadata, after onnx's full check."""
    model, float_model = onnx.load(made), onnx.load(source)
    facts = {item.key: item.value for item in float_model.metadata_props if item.key != "promised"}  # it is another network's
    onnx.helper.set_model_props(model, {**facts, "precision": "int8"})
    model.ir_version = float_model.ir_version
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString())
