"""Start from pretrained weights: a plain checkpoint of the largest network becomes the supernet's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from search_spaces.errors import UserError
from supernets.supernet import Supernet

__all__ = ["Matched", "read_checkpoint", "start_from"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights in a checkpoint
_OPTIONAL = "num_batches_tracked"  # a counter that older checkpoints lack and that nothing here depends on

Rename = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True)
class Matched:
    """What `start_from` did.

    Attributes:
        source: the file, or ``"state dict"``.
        names: of the supernet's tensors that were set.
        values: numbers in them.
        kept: tensors of the supernet that stayed as they were, because they were skipped.
        unused: tensors of the checkpoint that were skipped.
    """

    source: str
    names: tuple[str, ...]
    values: int
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.names)} tensors ({self.values:,} numbers) from {self.source}"
        if self.kept:
            text += f"; not set: {', '.join(self.kept)}"
        return text + (f"; not used: {', '.join(self.unused)}" if self.unused else "")


@torch.no_grad()
def start_from(
    supernet: Supernet, weights: str | Path | Mapping[str, Tensor], *, rename: Rename | None = None, skip: Sequence[str] = ()
) -> Matched:
    """Set the supernet's weights from a checkpoint of the largest network, or of the whole supernet.

    Strict: every tensor must be there with the same shape and nothing may be left over, unless it is skipped by name.
    Weights that the largest network does not have (kernel maps, shortcuts of smaller ones) stay as they are.

    Args:
        weights: a file (.safetensors, or what ``torch.save`` wrote: plain tensors only) or a state dict. The names are those
            of the largest network: ``supernet.extract(supernet.space.largest).state_dict()``; for a network of your own
            they are those of your own class (and so a torchvision checkpoint fits a torchvision network).
        rename: beginning of a name in the checkpoint -> what stands there instead, e.g. {"module.": ""}; or a function.
        skip: patterns (as of files) of names that need not match, e.g. ["fc.*"] for a classifier of other classes.

    Raises:
        UserError: not a checkpoint, or names or shapes differ; up to five of them are named. Nothing is changed then.
    """
    source = "state dict" if isinstance(weights, Mapping) else str(weights)
    given = {_renamed(name, rename): t for name, t in _tensors(weights).items()}
    own = dict(supernet.state_dict())
    if not given.keys() & own.keys():  # not a supernet's own names
        own = supernet.largest_tensors()

    def skipped(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in skip)

    wrong = [f"'{name}' is missing" for name in own if name not in given and not skipped(name) and not name.endswith(_OPTIONAL)]
    wrong += [f"'{name}' is not in the network" for name in given if name not in own and not skipped(name)]
    wrong += [
        f"'{name}' is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape and not skipped(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{source} does not fit the largest network of {supernet.space.key}: {'; '.join(wrong[:5])}{more}",
            allowed="The tensors of the largest network by name and shape",
            next_step="Rename with rename={'prefix': ''}, leave tensors out with skip=['fc.*'], or use another checkpoint",
        )
    names = [name for name in own if name in given and not skipped(name)]
    for name in names:
        own[name].copy_(given[name])
    return Matched(
        source,
        tuple(names),
        sum(own[name].numel() for name in names),
        tuple(name for name in own if name not in names and not name.endswith(_OPTIONAL)),
        tuple(name for name in given if name not in names),
    )


def _renamed(name: str, rename: Rename | None) -> str:
    if rename is None:
        return name
    if not isinstance(rename, Mapping):
        return rename(name)
    for old, new in rename.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _tensors(weights: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    value: Any = weights if isinstance(weights, Mapping) else read_checkpoint(Path(weights))
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    if not isinstance(value, Mapping) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        where = "the state dict" if isinstance(weights, Mapping) else str(weights)
        raise UserError(
            f"{where} is not a checkpoint of a network",
            allowed=f"Names and tensors, alone or under one of {', '.join(_WRAPPERS)}",
            next_step="Save it with: torch.save(network.state_dict(), PATH)",
        )
    return dict(value)


def read_checkpoint(path: Path) -> Any:
    """What a .safetensors or a torch file holds; no code in it is run.

    Raises:
        UserError: missing, damaged, or more than plain values and tensors in it.
    """
    if not path.is_file():
        raise UserError(f"weights {path} do not exist", allowed="A .safetensors or torch file", next_step="Correct the path")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stream:
                return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (a damaged file raises whatever the reader happens to come across)
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    first = (str(error).strip().splitlines() or ["no reason given"])[0]
    return UserError(
        f"{path} cannot be read as weights ({type(error).__name__}: {first[:200].rstrip('.')})",
        allowed="A .safetensors file, or a torch file with tensors and plain values only",
        next_step="Save it anew with: torch.save(network.state_dict(), PATH)",
    )
