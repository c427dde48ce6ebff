"""Tables from elsewhere and for elsewhere: CSV, pandas, and the published look-up tables of Once-for-all and ProxylessNAS.

An imported table has what its file says of single layers, nothing else: its estimate is the plain sum, no error is known, and
it belongs to no device that can be asked. Its device is called ``table://NAME``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_tables.correction import Correction
from latency_tables.entries import Given, NetworkTiming
from latency_tables.table import LatencyTable
from search_spaces.errors import UserError
from search_spaces.layers import Conv, GlobalPool, Layer, Linear, MBConv, parse_layer
from search_spaces.records import reading
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    import pandas

__all__ = ["given_table", "import_frame", "import_table", "merged", "read_lookup", "to_frame"]

MOST_BYTES = 16 << 20
SHOWN = 3  # missing layers in a message
COLUMNS = "The columns layer (a layer's key) and ms"


def to_frame(table: LatencyTable) -> pandas.DataFrame:
    """A row per layer: ``layer`` (key), ``ms`` (inside a network, uncorrected), then what was measured.

    The columns after these two are empty for layers that stand between measured sizes, and absent for imported tables:
    ``alone_ms``, ``alone_low_ms``, ``alone_high_ms``, ``alone_p95_ms``, ``alone_cpu_ms``, ``alone_samples`` and the same of
    ``chain``.
    """
    import pandas  # only here

    rows = []
    for key in sorted({*table.entries, *table.interpolated}):
        entry = table.entries.get(key)
        row: dict[str, Any] = {"layer": key, "ms": table.layer_ms(parse_layer(key))}
        for name, timing in ((n, getattr(entry, n, None)) for n in ("alone", "chain")):
            if timing is not None:
                row |= {f"{name}_ms": timing.median_ms, f"{name}_low_ms": timing.low_ms, f"{name}_high_ms": timing.high_ms}
                row |= {
                    f"{name}_p95_ms": timing.p95_ms,
                    f"{name}_cpu_ms": timing.cpu_median_ms,
                    f"{name}_samples": timing.samples,
                }
        rows.append(row)
    return pandas.DataFrame(rows)


@dataclass(frozen=True)
class _Time:
    """What a file says of one layer, ms."""

    mean: float
    std: float | None = None
    count: int | None = None


def given_table(space: SearchSpace, times: Mapping[str, Given], *, name: str, source: str) -> LatencyTable:
    """A table of given times, one for every layer of a space, by key.

    Raises:
        UserError: layers without a time.
    """
    missing = [layer.key for layer in space.layers() if layer.key not in times]
    if missing:
        raise UserError(
            f"{source} has no time for {len(missing)} of the {len(space.layers())} layers of {space.key}, "
            f"for example {', '.join(missing[:SHOWN])}",
            allowed="A table of the very same layers: space, width, classes and resolutions as it was measured",
            next_step="Restrict the space to what the table covers, e.g. with --resolution",
        )
    entries = {layer.key: times[layer.key] for layer in space.layers()}
    conditions = {"clock": "wall", "imported": source}
    found = LatencyTable(f"table://{name}", {"source": source}, conditions, space, None, entries)
    return replace(found, correction=Correction("none", 0.0, 1.0, 0.0))


def import_table(paths: Sequence[Path], space: SearchSpace, *, name: str) -> LatencyTable:
    """A table from CSV (columns ``layer`` and ``ms``) or from look-up tables in YAML, one file per resolution or one for all.

    Raises:
        UserError: files that are not such tables, hold times that are no times, or lack layers of the space.
    """
    source = ", ".join(path.name for path in paths)
    if all(path.suffix == ".csv" for path in paths):
        times: dict[str, Given] = {}
        for path in paths:
            times |= _read_csv(path)
    else:
        times = _layers_of(space, _joined([read_lookup(path) for path in paths]))
    return given_table(space, times, name=name, source=source)


def import_frame(frame: pandas.DataFrame, space: SearchSpace, *, name: str) -> LatencyTable:
    """A table from a frame with the columns ``layer`` and ``ms``, as `to_frame` makes it.

    Raises:
        UserError: other columns, times that are no times, or a layer of the space without a time.
    """
    return given_table(space, _of_frame(frame, "the frame"), name=name, source="a data frame")


def _read_csv(path: Path) -> dict[str, Given]:
    import pandas  # only here

    _check_file(path)
    with reading(path, allowed=COLUMNS, next_step="Correct the file"):
        frame = pandas.read_csv(path)
    return _of_frame(frame, str(path))


def _of_frame(frame: pandas.DataFrame, source: str) -> dict[str, Given]:
    with reading(source, allowed=COLUMNS, next_step="Correct it"):
        pairs = list(zip(frame["layer"].astype(str), frame["ms"].astype(float), strict=True))
        return {parse_layer(key).key: Given(_time(key, ms)) for key, ms in pairs}


# ---- published look-up tables ---------------------------------------------------------------------------------


def read_lookup(path: Path) -> dict[str, _Time]:
    """A look-up table in YAML: per key of a layer ``mean`` (ms) and, where they are there, ``std`` and ``count``."""
    import yaml  # only here

    _check_file(path)
    allowed = "Per layer a mean in ms, as Once-for-all and ProxylessNAS publish them"
    with reading(path, allowed=allowed, next_step="Correct the file"):
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
        if not isinstance(value, dict) or not value:
            raise ValueError("it is not a table")
        return {str(key): _entry(str(key), entry) for key, entry in value.items()}


def _entry(key: str, entry: Mapping[str, Any]) -> _Time:
    std, count = entry.get("std"), entry.get("count")
    whole = None if count is None else int(_time(f"{key}, count", count))
    return _Time(_time(key, entry["mean"]), None if std is None else _time(f"{key}, std", std), whole)


def _check_file(path: Path) -> None:
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} is not a file of up to 16 MB", allowed="A table of layers", next_step="Name the file itself")


def _time(key: Any, ms: Any) -> float:
    if isinstance(ms, bool) or not isinstance(ms, int | float) or not 0 <= ms < math.inf:
        raise ValueError(f"the time of {key} is {ms!r:.40}, not a finite, positive number")
    return float(ms)


def _joined(tables: Sequence[Mapping[str, _Time]]) -> dict[str, _Time]:
    """One table of several: what several of them have measured is averaged."""
    found: dict[str, list[_Time]] = {}
    for table in tables:
        for key, time in table.items():
            found.setdefault(key, []).append(time)
    return {
        key: times[0] if len(times) == 1 else _Time(float(np.mean([time.mean for time in times])))
        for key, times in found.items()
    }


def _layers_of(space: SearchSpace, lookup: Mapping[str, _Time]) -> dict[str, Given]:
    """Times of the space's layers by their keys in a look-up table."""
    dialect = _ofa_key if any("-se:" in key for key in lookup) else _proxyless_key
    times: dict[str, Given] = {}
    for layer in space.layers():
        key = dialect(layer)
        if key == "":
            times[layer.key] = Given(0.0)  # its time is in another layer's
        elif key is not None and key in lookup:
            time = lookup[key]
            times[layer.key] = Given(time.mean, time.std, time.count)
    return times


def _maps(layer: Layer) -> str:
    """``input:HxWxC-output:HxWxC``."""
    (cin, height, width), (cout, out_height, out_width) = layer.in_shape, layer.out_shape
    return f"input:{height}x{width}x{cin}-output:{out_height}x{out_width}x{cout}"


def _common_key(layer: Layer, expand: Callable[[MBConv], int]) -> str | None:
    if isinstance(layer, MBConv):
        skip = int(layer.shortcut)
        return f"expanded_conv-{_maps(layer)}-expand:{expand(layer)}-kernel:{layer.kernel}-stride:{layer.stride}-idskip:{skip}"
    if isinstance(layer, Conv):
        name = "Conv" if layer.kernel > 1 else "Conv_2" if layer.size == 1 else "Conv_1"
        return f"{name}-{_maps(layer)}"
    return None


def _ofa_key(layer: Layer) -> str | None:
    """Once-for-all's tables: hidden channels, squeeze-and-excite and h-swish are in the key."""
    key = _common_key(layer, lambda block: block.mid_channels)
    if isinstance(layer, MBConv):
        return f"{key}-se:{int(layer.se_channels > 0)}-hs:{int(layer.act == 'hswish')}"
    if isinstance(layer, GlobalPool):
        return f"AvgPool2D-{_maps(layer)}"
    if isinstance(layer, Linear):
        return f"Logits-input:1x1x{layer.in_channels}-output:{layer.out_channels}"
    return key


def _proxyless_key(layer: Layer) -> str | None:
    """ProxylessNAS's tables: ratios instead of hidden channels; pooling and the classifier are one."""
    if isinstance(layer, GlobalPool):
        return f"Logits-input:{layer.size}x{layer.size}x{layer.channels}-output:1000"
    if isinstance(layer, Linear):
        return "" if layer.out_channels == 1000 else None
    return _common_key(layer, lambda block: round(block.mid_channels / block.in_channels))


# ---- several tables -------------------------------------------------------------------------------------------


def merged(first: LatencyTable, second: LatencyTable) -> LatencyTable:
    """One table with the layers of both, and the whole networks of both where they are of one space.

    Entries keep the level that was measured beside them. A layer that both have is the first one's.

    Raises:
        UserError: another device, other conditions, or another space.
    """
    first.check_same(second.device, second.fingerprint)
    if first.space.key != second.space.key or not (first.covers(second.space) or second.covers(first.space)):
        raise UserError(
            f"tables of {first.space.key} and {second.space.key}",
            allowed="Tables of one space, or of parts of it",
            next_step="Keep them apart: a layer that spaces share is measured quickly",
        )
    wide = first if first.covers(second.space) else second
    shift = len(first.levels)
    shifted = {
        key: entry if entry.level is None else replace(entry, level=entry.level + shift)
        for key, entry in second.entries.items()
    }

    taken = 1 + max((chunk for network in first.networks for chunk in network.chunks or ()), default=-1)

    def shifted_network(network: NetworkTiming) -> NetworkTiming:
        chunks = network.chunks
        return network if chunks is None else replace(network, chunks=(chunks[0] + taken, chunks[1] + taken))

    entries = {**shifted, **first.entries}
    networks = (*first.networks, *(shifted_network(network) for network in second.networks if network not in first.networks))
    joined = replace(
        wide, entries=entries, levels=(*first.levels, *second.levels), networks=networks, overhead=first.overhead, anchor=None
    )
    if not networks:
        return joined
    from latency_tables.judging import finish

    interpolated = frozenset(key for key in {*first.interpolated, *second.interpolated} if key not in entries)
    return finish(replace(joined, interpolated=interpolated))
