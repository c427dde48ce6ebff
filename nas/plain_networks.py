"""A network as a plain PyTorch file: its tensors, and a description from which it is built without the supernet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.artifacts import atomic_path
from search_spaces.errors import UserError
from search_spaces.layers import parse_layer
from search_spaces.records import reading, record
from supernets import Network, load_tensors, save_tensors

__all__ = ["load_network", "save_network", "save_program"]

NETWORK_VERSION = 1


def save_network(path: Path, network: nn.Module, about: Mapping[str, Any]) -> None:
    """Write tensors (safetensors) and description: the layers by their keys where the network is made of layers.

    Args:
        about: what a user of the file needs to know, JSON values.
    """
    built: dict[str, Any] = {}
    if isinstance(network, Network):
        built = {"layers": [layer.key for layer in network.layers], "traits": network.traits}
    save_tensors(path, network.state_dict(), "network", NETWORK_VERSION, {"about": dict(about), **built})


@dataclass(frozen=True)
class _About:
    """What every description has; `load_network` gives all of it."""

    architecture: dict[str, Any]


def load_network(path: str | Path, *, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The network of an exported file, ready to run: plain PyTorch, in evaluation mode.

    Input float32 (B, C, H, W), normalised as ``network.about["input"]`` says; output logits (B, classes). ``network.about``
    also has the class names, the architecture and the promised values.

    Args:
        path: the ``.safetensors`` file that `nas.export` wrote, or the ``.onnx`` file beside it.
        build: makes the network, untrained; for networks of your own, whose code is not in the file.

    Raises:
        UserError: missing, damaged, not such a file, or a network of your own without ``build``.
    """
    file = Path(path)
    if file.suffix == ".onnx":
        file = file.with_name(file.name.removesuffix(".onnx").removesuffix(".unproven") + ".safetensors")
    make = f"nas export {file.parent.parent} --pick {file.stem} --force"
    tensors, header = load_tensors(file, "network", NETWORK_VERSION, make=make)
    with reading(file, allowed="The file as nas export writes it", next_step=f"Run: {make}"):
        about = record(_About, header["about"])
    if build is not None:
        network = build()
    elif "layers" in header:
        with reading(file, allowed="The file as nas export writes it", next_step=f"Run: {make}"):
            network = _built(header, tensors)
    else:
        raise UserError(
            f"{file} holds a network of your own code",
            allowed="The file has the tensors, not the code",
            next_step="Give what makes it: nas.load_network(PATH, build=lambda: my_model(...)) with "
            + ", ".join(f"{name}={value}" for name, value in about.architecture.items()),
        )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{file} does not fit the network ({str(error).strip().splitlines()[-1].strip()})",
            allowed="The network that was exported",
            next_step="Build it with the choices in the file, or export it again",
        ) from None
    network.about = header["about"]  # torch lets modules carry what they like
    return network.eval()


def _built(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that a description names, not larger than the tensors beside it; ValueError for what is none."""
    layers = [parse_layer(key) for key in header["layers"]]
    if sum(layer.params for layer in layers) > sum(tensor.numel() for tensor in tensors.values()):
        raise ValueError("its layers have more parameters than its tensors")
    return Network(layers, header["traits"])


def save_program(path: Path, network: nn.Module, example: Tensor, *, batch: int | None) -> None:
    """Write what `torch.export` makes of the network (``.pt2``): runs in C++ and in later versions of torch.

    Args:
        example: two or more inputs; only their shape matters.
        batch: images per run; None leaves it open.

    Raises:
        UserError: torch cannot capture the network.
    """
    open_first = None if batch else ({0: torch.export.Dim("N")},)
    inputs = example[:1].repeat(batch, *[1] * (example.ndim - 1)) if batch else example
    try:
        program = torch.export.export(network, (inputs,), dynamic_shapes=open_first)
    except Exception as error:
        raise UserError(
            f"torch.export cannot capture {type(network).__name__} ({str(error).strip()[:300]})",
            allowed="A forward without steps that depend on values",
            next_step="Leave --pt2 out, or change the forward",
        ) from error
    with atomic_path(path) as temporary:
        torch.export.save(program, temporary)
