"""What the verbs take when nothing is said; the command line says the same."""

from __future__ import annotations

__all__ = ["DEFAULT_DEVICE", "DEFAULT_HEARTBEAT", "DEFAULT_IDLE", "DEFAULT_IMAGES", "DEFAULT_POINTS", "DEFAULT_SAMPLES"]

DEFAULT_DEVICE = "onnxruntime-cpu"
DEFAULT_SAMPLES = 100
DEFAULT_IMAGES = 2000
DEFAULT_POINTS = 16
DEFAULT_IDLE = 300.0
DEFAULT_HEARTBEAT = 20
