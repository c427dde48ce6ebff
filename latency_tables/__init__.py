"""Latency tables: devices, how they are timed, and from the times of layers the latency of every network.

Importing this package imports no runtime, onnx or pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency_tables.correction import Correction, Errors, Quality
    from latency_tables.device import Candidate, Device, Runner, file_name
    from latency_tables.devices import DeviceRow, list_devices, open_device
    from latency_tables.onnx_graph import build_onnx
    from latency_tables.profiling import Amount, profile
    from latency_tables.stopwatch import Clock, Measurement, Plan, measure
    from latency_tables.table import LatencyTable

__all__ = [
    "Amount",
    "Candidate",
    "Clock",
    "Correction",
    "Device",
    "DeviceRow",
    "Errors",
    "LatencyTable",
    "Measurement",
    "Plan",
    "Quality",
    "Runner",
    "build_onnx",
    "file_name",
    "list_devices",
    "measure",
    "open_device",
    "profile",
]

_HOMES = {
    "Amount": "profiling",
    "Candidate": "device",
    "Clock": "stopwatch",
    "Correction": "correction",
    "Device": "device",
    "DeviceRow": "devices",
    "Errors": "correction",
    "LatencyTable": "table",
    "Measurement": "stopwatch",
    "Plan": "stopwatch",
    "Quality": "correction",
    "Runner": "device",
    "build_onnx": "onnx_graph",
    "file_name": "device",
    "list_devices": "devices",
    "measure": "stopwatch",
    "open_device": "devices",
    "profile": "profiling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latency_tables' has no attribute '{name}'")
    return getattr(importlib.import_module(f"latency_tables.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
