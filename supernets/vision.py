"""torchvision beside a torch that cannot load its compiled operators.

The torchvision wheels on the package index are compiled for CUDA. Beside a CPU-only torch their operators do not load,
and torchvision's import then fails: it registers shape functions for ``torchvision::nms``, an operator that does not
exist. Its data sets, transforms and models need no operator, so declaring the missing names is enough. The declaration
has to happen during torchvision's own import and in every process, workers included; hence an import hook, installed by
``supernets/__init__.py``. Where the compiled operators load, the hook does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["install"]


class _MissingOperators(MetaPathFinder):
    """Declares torchvision's operators when its import reaches the module that needs them; never finds a module."""

    def __init__(self) -> None:
        self._declared: Any = None  # the declarations live as long as this object; it stays in sys.meta_path

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        # torchvision has tried to load its compiled operators before it asks for this module
        if fullname == "torchvision._meta_registrations" and self._declared is None:
            import torch

            if not hasattr(torch.ops.torchvision, "nms"):
                library: Any = torch.library.Library  # torch gives it no types
                self._declared = library("torchvision", "FRAGMENT")
                for name in ("nms", "qnms"):
                    self._declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


def install() -> None:
    """Put the hook in front of the import system; once a process, however often it is called. Imports nothing."""
    if not any(isinstance(finder, _MissingOperators) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MissingOperators())
