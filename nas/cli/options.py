"""Options that commands share, and what several of them do with theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.terminal import EXIT_INTERRUPTED, Stop, TerminalProgress
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from search_spaces import SearchSpace

__all__ = [
    "AsJson",
    "DeviceName",
    "Force",
    "Quiet",
    "RunFolder",
    "Seed",
    "TorchDevice",
    "check_one",
    "chosen_space",
    "finite",
    "interruptible",
    "seedable",
]

LARGEST_SEED = 2**63 - 1  # that torch takes

RunFolder = Annotated[Path, typer.Argument(help="Run folder, as nas train-supernet made it.")]
DeviceName = Annotated[str, typer.Option("--device", help="Device; see nas devices.")]
AsJson = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
TorchDevice = Annotated[str, typer.Option("--torch-device", help="Where torch runs networks: cpu, cuda, or cuda:1 ...")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def seedable(value: int | None) -> int | None:
    """For options: seeds that torch does not take are refused."""
    if value is not None and not 0 <= value <= LARGEST_SEED:
        raise typer.BadParameter(f"{value} is not a seed: those are 0 to {LARGEST_SEED}")
    return value


Seed = Annotated[int, typer.Option(min=0, callback=seedable, help="Of everything random.")]


def finite(value: float | None) -> float | None:
    """For options: numbers that are none are refused."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def check_one(first: str, given: object, second: str, other: object) -> None:
    """Refuse two options that exclude each other."""
    if given and other:
        said = [name if value is True else f"{name} {value}" for name, value in ((first, given), (second, other))]
        raise UserError(" and ".join(said), allowed="One of the two", next_step="Leave one out")


@contextmanager
def interruptible(progress: TerminalProgress) -> Iterator[Stop]:
    """Long training inside: Ctrl-C finishes the step, saves, and exits with 130."""
    from supernets import Interrupted

    with Stop().listening() as stop:
        try:
            yield stop
        except Interrupted as event:
            progress.say(f"{event}; run the same command again to go on")
            raise typer.Exit(EXIT_INTERRUPTED) from None


def chosen_space(name: str, width: float | None, image: int | None, resolution: str | None) -> SearchSpace:
    """A built-in space with the parameters that were given."""
    import nas

    given: dict[str, Any] = {"width": width, "image": image}
    if resolution:
        try:
            given["resolution"] = sorted({int(part) for part in resolution.split(",")})
        except ValueError:
            raise UserError(
                f"--resolution {resolution}", allowed="Whole numbers with commas", next_step="Write: --resolution 24,28,32"
            ) from None
    return nas.space(name, **{key: value for key, value in given.items() if value is not None})
