"""Latency tables beyond profiling here: kits for machines out of reach, tables from files, and tables without a device."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import ElasticSpace, SearchSpace
from search_spaces.checks import check_whole
from search_spaces.errors import UserError

if TYPE_CHECKING:
    import pandas

    from latency_tables import LatencyTable
    from latency_tables.kit import Kit
    from latency_tables.profiling import Writer

__all__ = [
    "STORED",
    "check_amount",
    "import_kit",
    "import_table",
    "make_kit",
    "planned_profile",
    "stored_table",
    "table_path",
    "writer_of",
]

GUESSED_MACS = 2e10  # a second
LOAD_S = 0.01  # of a model
STORED = "table://"  # a device that is only a table
FEWEST_FITTED, FEWEST_HELD_OUT = 3, 2  # whole networks: a model of energy has three terms, an error needs two
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def table_path(out: str | Path | None, device: str) -> Path | None:
    """Where a device's table is: in a run's ``tables``, or the file itself; None for nowhere."""
    from latency_tables import file_name

    if out is None:
        return None
    path = Path(out)
    return path if path.suffix == ".json" else path / "tables" / f"{file_name(device)}.json"


def writer_of(space: SearchSpace) -> Writer | None:
    """What writes the models of networks of the user's own; None for layers that have an ONNX form here."""
    if not isinstance(space, ElasticSpace):
        return None
    from supernets import ElasticWriter

    return ElasticWriter(space)


def _named(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(
            f"name '{name}'", allowed="Letters, digits, dots and dashes, at most 64", next_step="Choose another --name"
        )
    return STORED + name


def stored_table(device: str, out: str | Path | None, space: SearchSpace) -> LatencyTable:
    """The table of a device that cannot be asked again (``table://NAME``), for a space or a part of it.

    Raises:
        UserError: there is none, or it is of another space.
    """
    from latency_tables import LatencyTable

    name = device.removeprefix(STORED)
    make = f"nas table-import or nas kit import, with --name {name}"
    path = table_path(out, _named(name))
    if path is None or not path.exists():
        raise UserError(
            f"{path} does not exist", allowed=f"{device} is a table that was brought here", next_step=f"Bring it with: {make}"
        )
    table = LatencyTable.load(path)
    if not table.covers(space):
        raise UserError(
            f"{path} is a table of {table.space}", allowed=f"A table of {space}", next_step=f"Bring one with: {make}"
        )
    return table.bind(space)


def check_amount(networks: int | None, held_out: int | None = None) -> None:
    """Refuse fewer whole networks than a correction and a model of energy need; None is the usual number.

    Raises:
        UserError: as said.
    """
    for name, number, least in (("networks", networks, FEWEST_FITTED), ("held_out", held_out, FEWEST_HELD_OUT)):
        if number is not None:
            check_whole(name, number, least)


@dataclass(frozen=True)
class Planned:
    """What a profile would do.

    Attributes:
        layers: distinct layers that would be measured; ``known`` of the space's are in the table already.
        interpolated: layers that would stand between measured sizes.
        networks: whole networks, each measured twice.
        minutes: a rough guess, for a processor that does twenty billion multiply-accumulates a second.
    """

    device: str
    layers: int
    known: int
    interpolated: int
    networks: int
    minutes: float

    @property
    def complete(self) -> bool:
        """Whether nothing would be measured."""
        return not self.layers and not self.networks


def planned_profile(
    space: SearchSpace,
    *,
    device: str,
    out: str | Path | None = None,
    resolutions: int | None = None,
    networks: int | None = None,
    like: LatencyTable | None = None,
) -> Planned:
    """What `nas.profile` would measure, without measuring anything.

    Raises:
        UserError: as `nas.profile`: an unknown device, too few networks, or a table of another device or machine at ``out``.
    """
    from latency_tables import Amount, LatencyTable, Plan, open_device
    from latency_tables.profiling import CHUNK_NETWORKS, WHOLE_SECONDS, measured_part

    check_amount(networks)
    opened, amount, plan = open_device(device), Amount(), Plan()
    path, known, done = table_path(out, opened.name), set[str](), False
    if path is not None and path.exists():
        found = LatencyTable.load(path)
        found.check_same(opened.name, opened.fingerprint())
        known = {*found.entries, *found.interpolated}
        done = found.correction is not None and found.covers(space)
    wanted = measured_part(space, resolutions).layers() if like is None else []
    missing = [layer for layer in wanted if layer.key not in known]
    networks = (amount.networks if networks is None else networks) + amount.held_out
    networks = 0 if done and not missing else networks

    def lasting(macs: Sequence[int]) -> float:
        return sum(plan.rounds * 2 * max(plan.sample_ms * 1e-3, m / GUESSED_MACS) for m in macs)

    layers = lasting([(1 + 3 * (layer.in_shape == layer.out_shape)) * layer.macs for layer in missing])
    wholes = networks * lasting([space.macs(space.largest)])  # measured twice, on average half the largest
    wholes = max(wholes, 2 * math.ceil(networks / CHUNK_NETWORKS) * WHOLE_SECONDS)
    seconds = layers + wholes + LOAD_S * (len(missing) + networks)
    interpolated = len(space.layers()) - len(wanted) if resolutions and like is None else 0
    return Planned(opened.name, len(missing), len(wanted) - len(missing), interpolated, networks, opened.batch * seconds / 60)


def make_kit(
    space: SearchSpace, *, out: str | Path, device: str = "onnxruntime-cpu", seed: int = 0, resolutions: int | None = None
) -> Kit:
    """Write a folder that measures a space on a machine that nothing here can reach.

    Copy it there, run ``python3 run_kit.py`` in it (Python 3.8 or newer, numpy, onnxruntime), bring ``results.json`` back into
    it, and call `import_kit`.

    Args:
        device: with its options, as it will be there: ``onnxruntime-cpu:threads=4``.
        resolutions: how many input sizes to measure; the others are interpolated.

    Raises:
        UserError: the folder is not empty, or no kit runs on the device.
    """
    from latency_tables.by_hand import make_kit as write_kit
    from latency_tables.devices import parse_device
    from latency_tables.profiling import Amount

    check_whole("seed", seed, 0)
    kind, options = parse_device(device)
    amount = Amount(resolutions=resolutions)
    return write_kit(space, Path(out), kind=kind, options=options, seed=seed, amount=amount, writer=writer_of(space))


def import_kit(
    kit: str | Path,
    *,
    name: str,
    out: str | Path | None = None,
    space: SearchSpace | None = None,
    results: str | Path | None = None,
) -> LatencyTable:
    """The table of the machine that a kit ran on; as a device it is called ``table://NAME``.

    Args:
        out: a run folder or a ``.json`` file; None keeps the table in memory.
        space: of networks of your own; default: the space that the kit was made for.
        results: default: ``results.json`` in the kit's folder.

    Raises:
        UserError: results that are missing, half-written, of another kit, or make no sense; nothing is written then.
    """
    from latency_tables import by_hand

    path = table_path(out, _named(name))
    given: dict[str, Any] = {"space": space, "results": None if results is None else Path(results)}
    writer = None if space is None else writer_of(space)
    return by_hand.import_kit(Path(kit), _named(name), out=path, writer=writer, **given)


def import_table(
    source: str | Path | Sequence[str | Path] | pandas.DataFrame,
    space: SearchSpace,
    *,
    name: str,
    out: str | Path | None = None,
) -> LatencyTable:
    """A table from CSV or pandas (columns ``layer``, ``ms``), or from Once-for-all's and ProxylessNAS's look-up tables (YAML).

    Args:
        source: one file, one per resolution, or a frame.
        space: the space that the table was measured for: its width, classes and resolutions must agree.
        out: a run folder or a ``.json`` file; None keeps the table in memory.

    Raises:
        UserError: not such a table, a layer of the space without a time, or ``out`` exists already.
    """
    from latency_tables import exchange

    target = table_path(out, _named(name))
    if target is not None and target.exists():
        raise UserError(f"{target} is there already", allowed="A new file", next_step="Choose another --name, or remove it")
    if isinstance(source, str | Path):
        table = exchange.import_table([Path(source)], space, name=name)
    elif isinstance(source, Sequence):
        table = exchange.import_table([Path(path) for path in source], space, name=name)
    else:
        table = exchange.import_frame(source, space, name=name)
    if target is not None:
        table.save(target)
    return table
