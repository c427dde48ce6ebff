"""ONNX files as a caller sees them: how one is written, what it takes and gives, and how images are fed to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from latency_tables import Device, open_device
from search_spaces.errors import UserError
from search_spaces.onnx_versions import DEFAULT_OPSET, FIRST_OPSET
from supernets import Examples, ImageData, Split

__all__ = ["Format", "Signature", "check_batch", "feed", "outputs", "wrapped"]

LAYOUTS = ("nhwc", "nchw")
_BATCH = 256


@dataclass(frozen=True)
class Format:
    """How a network is written as ONNX.

    Attributes:
        opset: of the operators.
        ir_version: of the file; None: the oldest that knows the opset, so that old runtimes load it.
        batch: images per run; None leaves the first axis open.
        pixels: ``"nhwc"`` or ``"nchw"``: the input is uint8 pixels in that order, normalised inside the graph; None: float32
            (N, C, H, W), normalised by the caller.
        softmax: the output is probabilities instead of logits.

    Raises:
        UserError: a value that ONNX or this toolkit does not have.
    """

    opset: int = DEFAULT_OPSET
    ir_version: int | None = None
    batch: int | None = None
    pixels: str | None = None
    softmax: bool = False

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if not FIRST_OPSET <= self.opset <= newest:
            raise UserError(
                f"ONNX opset {self.opset}",
                allowed=f"{FIRST_OPSET} to {newest}; older ones lack operators that the networks need",
                next_step=f"Use --opset {DEFAULT_OPSET}",
            )
        least = helper.find_min_ir_version_for([helper.make_opsetid("", self.opset)])
        if self.ir_version is not None and not least <= self.ir_version <= onnx.IR_VERSION:
            raise UserError(
                f"ONNX IR version {self.ir_version} with opset {self.opset}",
                allowed=f"{least} to {onnx.IR_VERSION}",
                next_step="Leave --ir-version out: the oldest one that knows the opset is taken",
            )
        if self.batch is not None and self.batch < 1:
            raise UserError(
                f"batch {self.batch}", allowed="A whole number from 1", next_step="Leave --batch out for any number"
            )
        if self.pixels is not None and self.pixels not in LAYOUTS:
            raise UserError(
                f"pixels '{self.pixels}'", allowed=f"One of {', '.join(LAYOUTS)}", next_step="Give one, or leave --pixels out"
            )

    @property
    def ir(self) -> int:
        """The IR version that is written."""
        return self.ir_version or helper.find_min_ir_version_for([helper.make_opsetid("", self.opset)])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def options(self) -> str:
        """What `nas export` needs for it, beginning with a space; nothing for the usual format."""
        usual = Format().to_dict()
        given = {name.replace("_", "-"): value for name, value in self.to_dict().items() if value != usual[name]}
        return "".join(f" --{name}" if value is True else f" --{name} {value}" for name, value in given.items())


@dataclass(frozen=True)
class Signature:
    """What an ONNX file takes and gives, read off the file.

    Attributes:
        pixels: layout of a uint8 image input; None for float input.
        batch: images per run where it is fixed.
        shape: of the input without its first axis; None where an axis is open.
        classes: width of a (N, classes) output; None for any other one.
    """

    pixels: str | None
    batch: int | None
    shape: tuple[int | None, ...]
    classes: int | None

    @classmethod
    def of(cls, path: Path) -> Signature:
        """Read the signature of a file.

        Raises:
            UserError: not an ONNX file with one input and at least one output.
        """
        try:
            graph = onnx.load(path, load_external_data=False).graph
        except Exception as error:  # noqa: BLE001 (protobuf and the loader raise types of their own)
            raise UserError(
                f"{path} is not an ONNX file ({type(error).__name__})",
                allowed="A file that an ONNX exporter wrote",
                next_step="Give the path of one",
            ) from None
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        if len(inputs) != 1 or not graph.output:
            raise UserError(
                f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs",
                allowed="Networks with one input; the first output counts",
                next_step="Export the network with one input",
            )
        first, *shape = _shape(inputs[0])
        made = _shape(graph.output[0])
        layout = None
        if inputs[0].type.tensor_type.elem_type == TensorProto.UINT8:
            layout = "nchw" if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3) else "nhwc"
        return cls(layout, first, tuple(shape), made[1] if len(made) == 2 else None)

    @property
    def channels(self) -> int | None:
        """Of an image input; None where the input is none or leaves it open."""
        if len(self.shape) != 3:
            return None
        return self.shape[2] if self.pixels == "nhwc" else self.shape[0]

    def side(self, default: int) -> int:
        """Side of a square image input in px; the default where the file leaves it open or takes no images."""
        sides = [*self.shape[:2]] if self.pixels == "nhwc" else [*self.shape[1:]]
        known = [side for side in sides if side is not None] if len(self.shape) == 3 else []
        return known[0] if known else default


def check_batch(path: Path, device: str, batch: int, *, again: str) -> None:
    """A file is timed as it is: one that fixes another number of images per run than the device has no time there.

    Raises:
        UserError: such a file; ``again`` is the command that makes it anew.
    """
    fixed = Signature.of(path).batch
    if fixed not in (None, batch):
        raise UserError(
            f"{path} takes {fixed} images per run, {device} is measured with {batch}",
            allowed=f"A file whose first axis is open or {batch}, or a device with the option batch={fixed}",
            next_step=f"Make it with an open batch: {again}",
        )


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.dim_value > 0 else None for dim in dims] or [None]  # some writers have -1 for an open axis


def wrapped(model: onnx.ModelProto, form: Format, data: ImageData) -> onnx.ModelProto:
    """The model with what the format puts around a network: pixels are normalised before it, a softmax stands after it.

    Args:
        model: input float32 (N, C, H, W), output logits (N, classes); changed in place.

    Raises:
        UserError: pixels are asked for, but the data are not images.
    """
    graph = model.graph
    if form.pixels is not None:
        _normalising(graph, form.pixels, data)
    if form.softmax:
        logits = graph.output[0]
        last = [str(dim.dim_param) or dim.dim_value for dim in logits.type.tensor_type.shape.dim]
        graph.node.append(helper.make_node("Softmax", [logits.name], ["probabilities"], name="Softmax", axis=-1))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, last))
    model.ir_version = form.ir
    return model


def _normalising(graph: onnx.GraphProto, layout: str, data: ImageData) -> None:
    """Put uint8 -> float32, the layout's order and (x / 255 - mean) / std before the graph's input."""
    source = graph.input[0]
    dims = [str(dim.dim_param) or dim.dim_value for dim in source.type.tensor_type.shape.dim]
    if not isinstance(data.train, Split) or len(dims) != 4:
        raise UserError(
            f"{data.name} has arrays, not images; there are no pixels to normalise",
            allowed="--pixels is for images",
            next_step="Leave --pixels out",
        )
    std = np.array(data.std, np.float64).reshape(1, -1, 1, 1)
    scale, offset = 1 / (255 * std), -np.array(data.mean, np.float64).reshape(1, -1, 1, 1) / std
    inner = source.name
    steps = [helper.make_node("Cast", ["pixels"], ["pixels/float"], name="pixels/Cast", to=TensorProto.FLOAT)]
    value = "pixels/float"
    if layout == "nhwc":
        dims = [dims[0], dims[2], dims[3], dims[1]]
        steps.append(helper.make_node("Transpose", [value], ["pixels/nchw"], name="pixels/Transpose", perm=[0, 3, 1, 2]))
        value = "pixels/nchw"
    for name, array in (("pixels/scale", scale), ("pixels/offset", offset)):
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    steps.append(helper.make_node("Mul", [value, "pixels/scale"], ["pixels/scaled"], name="pixels/Mul"))
    steps.append(helper.make_node("Add", ["pixels/scaled", "pixels/offset"], [inner], name="pixels/Add"))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*steps, *rest])
    graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.UINT8, dims))


# ---- running ------------------------------------------------------------------------------------------------


def feed(split: Examples, indices: Sequence[int] | NDArray[np.int64], resolution: int, signature: Signature) -> NDArray[Any]:
    """The examples at B positions as a file with this signature takes them: float32, or uint8 pixels."""
    if signature.pixels is None:
        return split.batch(indices, resolution).numpy()
    if not isinstance(split, Split):
        raise UserError(
            "the file takes pixels, the data are arrays", allowed="Images", next_step="Use a file that takes float32 arrays"
        )
    images = split.pixels.read(np.asarray(indices, np.int64), resolution, None).repeat(split.repeat, axis=-1)  # (B, R, R, C)
    return images if signature.pixels == "nhwc" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def outputs(
    device: Device | str, path: Path, split: Examples, resolution: int, *, indices: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """First output of an ONNX file, (N, classes), on the images of a split (or those at ``indices``) through a runtime."""
    runner = (open_device(device) if isinstance(device, str) else device).load(path.read_bytes())
    signature = Signature.of(path)
    chosen = np.arange(len(split)) if indices is None else indices
    size = signature.batch or _BATCH
    found = []
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        # A file with a fixed batch gets the last images again where they do not fill one.
        padded = part if signature.batch is None else np.concatenate([part, np.repeat(part[-1:], size - len(part))])
        found.append(runner.infer(feed(split, padded, resolution, signature))[: len(part)])
    return np.concatenate(found)
