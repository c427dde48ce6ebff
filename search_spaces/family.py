"""What the families of networks share: sizes, elastic depth, and the check of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.architecture import Value
from search_spaces.errors import UserError
from search_spaces.ops import out_size

__all__ = ["Rule", "check_parameters", "depth_rules", "shrunk"]

Rule = tuple[str, tuple[Value, ...]]  # a gene, and the values of it under which something is active


def shrunk(size: int, strides: Sequence[int]) -> int:
    """Side of the map after some strides."""
    for stride in strides:
        size = out_size(size, stride)
    return size


def depth_rules(gene: str, options: Sequence[int], *, base: int = 0) -> list[Rule | None]:
    """When each block of a stage of ``base`` plus the gene's value blocks is present; None for always."""
    rules: list[Rule | None] = []
    for block in range(base + max(options)):
        present = tuple(depth for depth in options if base + depth > block)
        rules.append(None if len(present) == len(options) else (gene, present))
    return rules


def check_parameters(name: str, parameters: Mapping[str, float], resolution: Sequence[int]) -> None:
    """Refuse parameters of a family that no network can have.

    Raises:
        UserError: a width multiplier, class or channel count out of range, or resolutions that do not ascend.
    """
    good = 0.1 <= parameters.get("width", 1.0) <= 10 and parameters["classes"] >= 2 and parameters["channels"] >= 1
    if not good or not resolution or min(resolution) < 1 or list(resolution) != sorted(set(resolution)):
        given = ", ".join(f"{key}={value}" for key, value in parameters.items())
        raise UserError(
            f"{name} with {given}, resolution={list(resolution)}",
            allowed="width lies in 0.1 to 10, classes is at least 2, channels and every resolution at least 1; "
            "resolutions ascend",
            next_step="Correct the parameter",
        )
