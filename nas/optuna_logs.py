"""Optuna's own messages, kept from stderr: ours is the only voice there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

__all__ = ["quiet_optuna"]


@contextmanager
def quiet_optuna(*, ignored: type[Warning] = optuna.exceptions.ExperimentalWarning) -> Iterator[None]:
    """Inside, Optuna reports no study and no trial, and warnings of one category are dropped."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ignored)
            yield
    finally:
        optuna.logging.set_verbosity(before)
