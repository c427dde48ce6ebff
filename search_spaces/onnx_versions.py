"""The versions of ONNX that networks are written in, whoever writes them."""

from __future__ import annotations

__all__ = ["DEFAULT_IR", "DEFAULT_OPSET", "FIRST_OPSET"]

FIRST_OPSET = 14  # HardSwish appears here
DEFAULT_OPSET = 17  # of 2022: what a runtime two years old or more still loads
DEFAULT_IR = 8  # the oldest that knows it
