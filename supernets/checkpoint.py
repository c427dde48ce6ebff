"""Tensors in files: safetensors with a checksum, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from search_spaces.artifacts import atomic_path, made_by, value_hash
from search_spaces.errors import UserError
from search_spaces.records import parse_json

__all__ = ["load_tensors", "save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], kind: str, version: int, meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description; the old file stays until the new one is complete.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    plain = _separate({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()})
    about = {"kind": kind, "version": version, "made_by": made_by(), **meta}
    header = {**about, "checksum": _checksum(plain), "about_checksum": value_hash(about)}
    try:
        with atomic_path(path) as temporary:
            save_file(plain, temporary, metadata={"hwnas": json.dumps(header, allow_nan=False)})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written ({error})",
            allowed=f"Space for {sum(t.nbytes for t in plain.values()) / 2**20:.1f} MiB; what was there before is unchanged",
            next_step="Free some space, then run the same command again: it goes on from the last checkpoint",
        ) from None


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that share memory (tied weights) as copies: a file has every name's own."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def load_tensors(path: Path, kind: str, version: int, *, make: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors by name, and the description.

    Args:
        version: the newest format version that this code reads.
        make: the command that makes such a file, for error messages.

    Raises:
        UserError: missing, damaged (checksum), of another kind, or newer than this toolkit.
    """
    allowed = f"A {kind} file, format version 1 to {version}, is needed"
    if not path.is_file():
        raise UserError(f"{path} does not exist", allowed=allowed, next_step=f"Make it with: {make}")
    try:
        with safe_open(path, framework="pt") as stream:
            header = parse_json((stream.metadata() or {})["hwnas"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        found, number, checksum = header["kind"], header["version"], header["checksum"]
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, OSError, MemoryError) as error:
        raise _damaged(path, str(error), allowed, make) from None
    if found != kind:
        raise UserError(f"{path} holds '{found!s:.60}'", allowed=allowed, next_step=f"Make one with: {make}")
    if type(number) is not int or not 1 <= number <= version:
        raise UserError(
            f"{path} has format version {number!r:.60}, made by {header.get('made_by')!s:.60}",
            allowed=allowed,
            next_step="Install a newer version of the toolkit: pip install --upgrade hwnas",
        )
    about = {name: value for name, value in header.items() if name not in ("checksum", "about_checksum")}
    known = header.get("about_checksum")  # files of before have none
    if checksum != _checksum(tensors) or (known is not None and known != value_hash(about)):
        raise _damaged(path, "its checksum does not match", allowed, make)
    return tensors, header


def _damaged(path: Path, why: str, allowed: str, make: str) -> UserError:
    return UserError(
        f"{path} is damaged ({why})", allowed=allowed, next_step=f"Restore it from a copy, or remove it and run: {make}"
    )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
