"""Fits and proposals leave the process's thread settings as they were."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from nas import SearchSpace, predictor
from predictors.models import PREDICTORS
from predictors.threads import one_thread

SPACE = SearchSpace({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]}, name="threads")


def blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_linear_algebra_takes_one_thread_inside_and_what_it_took_before_afterwards() -> None:
    with threadpool_limits(2, user_api="blas"):
        with suppress(ZeroDivisionError), one_thread(), one_thread():
            assert blas() == {1}
            raise ZeroDivisionError
        assert blas() == {2}


def test_a_predictor_is_fitted_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    ridge = PREDICTORS["ridge"]

    def spy(*args: object) -> object:
        seen.append(blas())
        return ridge(*args)  # type: ignore[arg-type]

    monkeypatch.setitem(PREDICTORS, "ridge", spy)
    rows = SPACE.all_rows()
    with threadpool_limits(2, user_api="blas"):
        predictor("ridge", SPACE).fit(rows, rows.sum(axis=1).astype(np.float64))
        assert blas() == {2}
    assert seen == [{1}]
