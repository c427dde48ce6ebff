"""Latency tables: devices, how they are timed, and from the times of layers the latency of every network.

Importing this package imports no runtime, onnx or pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency_tables.correction import Correction, Errors, Quality
    from latency_tables.device import Device, DeviceRow, Runner, list_devices, open_device
    from latency_tables.onnx_graph import build_onnx
    from latency_tables.profiling import profile
    from latency_tables.stopwatch import Clock, Measurement, measure
    from latency_tables.table import LatencyTable

__all__ = [
    "Clock",
    "Correction",
    "Device",
    "DeviceRow",
    "Errors",
    "LatencyTable",
    "Measurement",
    "Quality",
    "Runner",
    "build_onnx",
    "list_devices",
    "measure",
    "open_device",
    "profile",
]

_HOMES = {
    "Clock": "stopwatch",
    "Correction": "correction",
    "Device": "device",
    "DeviceRow": "device",
    "Errors": "correction",
    "LatencyTable": "table",
    "Measurement": "stopwatch",
    "Quality": "correction",
    "Runner": "device",
    "build_onnx": "onnx_graph",
    "list_devices": "device",
    "measure": "stopwatch",
    "open_device": "device",
    "profile": "profiling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latency_tables' has no attribute '{name}'")
    return getattr(importlib.import_module(f"latency_tables.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
