"""Laws of predictors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict, cross_val_score

import predictors
import search_spaces
from search_spaces import SearchSpace, UserError


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return search_spaces.build("small-mobilenet")


def planted(space: SearchSpace, n: int, *, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values that are additive in the options of active genes, as shares between 0 and 1."""
    rng = np.random.default_rng(seed)
    rows = space.sample_rows(n, rng, per_gene=True)
    weights = np.random.default_rng(99).normal(size=int(space.lengths.sum()))
    values = 0.8 + 0.01 * (space.encode(rows) @ weights) + rng.normal(0, noise, n)
    return rows, np.clip(values, 0, 1)


QUICK = [kind for kind in (*predictors.PREDICTORS, "auto") if kind not in ("mlp", "nearest-neighbour", "stack")]


@pytest.mark.parametrize(("kind", "shares"), [*((k, s) for k in QUICK for s in (False, True)), ("stack", True)])
def test_a_planted_function_is_found(space: SearchSpace, kind: str, shares: bool) -> None:
    rows, values = planted(space, 150 if kind == "stack" else 300, noise=0.002)  # a stack fits a hundred models
    unseen, truth = planted(space, 200, noise=0.0, seed=1)
    prediction = predictors.build(kind, space, shares=shares).fit(rows, values).predict(unseen)
    assert prediction.mean.shape == prediction.std.shape == (200,)
    assert np.corrcoef(prediction.mean, truth)[0, 1] > 0.95
    assert (prediction.std > 0).all()
    assert np.mean(np.abs(prediction.mean - truth) < 3 * prediction.std) > 0.9
    if shares:
        assert ((prediction.mean > 0) & (prediction.mean < 1)).all()


def test_fit_is_repeatable_and_does_not_change_its_input(space: SearchSpace) -> None:
    rows, values = planted(space, 60, noise=0.01)
    before = rows.copy(), values.copy()
    a = predictors.build("auto", space).fit(rows, values)
    b = clone(a).fit(rows, values)
    assert (a.predict(rows).mean == b.predict(rows).mean).all()
    assert (rows == before[0]).all()
    assert (values == before[1]).all()
    assert a.fit(rows, values) is a
    archs = space.from_array(rows)
    assert np.allclose(a.predict(archs).mean, a.predict(rows).mean)


def test_auto_takes_the_kind_with_the_smallest_error(space: SearchSpace) -> None:
    rows, values = planted(space, 120, noise=0.005)
    auto = predictors.build("auto", space).fit(rows, values)
    assert auto.errors_[auto.kind_] == min(auto.errors_.values())
    assert set(auto.errors_) == set(predictors.AUTO)


def test_the_card_is_honest_about_noise(space: SearchSpace) -> None:
    rows, values = planted(space, 120, noise=0.002)
    card = predictors.report_card(predictors.build("ridge", space), rows, values)
    assert card.kendall is not None
    assert card.kendall > 0.8
    assert card.rmse < 0.5 * card.spread
    assert 0.8 < card.covered_90 <= 1.0
    assert card.top_recall > 0.7
    nothing = np.random.default_rng(5).normal(0.5, 0.1, 120)
    blind = predictors.report_card(predictors.build("ridge", space), rows, nothing)
    assert blind.rmse > 0.9 * blind.spread
    assert blind.kendall is None or abs(blind.kendall) < 0.3
    assert blind.top_recall < 0.5
    flat = predictors.report_card(predictors.build("ridge", space), rows, np.full(120, 0.5))
    assert flat.kendall is None
    assert flat.rmse == pytest.approx(0.0, abs=1e-9)


def test_bad_input_is_named(space: SearchSpace) -> None:
    rows, values = planted(space, 30, noise=0.01)
    with pytest.raises(UserError, match="did you mean 'ridge'"):
        predictors.build("rigde", space)
    for bad, message in (
        (values[:5], r"of shape \(5,\)"),
        (values[:, None], r"of shape \(30, 1\)"),
        (np.append(values[:-1], np.nan), "value 29 is nan"),
        (["good"] * 30, "no numbers"),
    ):
        with pytest.raises(UserError, match=message):
            predictors.build("ridge", space).fit(rows, bad)
    with pytest.raises(UserError, match="At least 10"):
        predictors.build("ridge", space).fit(rows[:4], values[:4])
    with pytest.raises(UserError, match="1 of them different"):
        predictors.build("ridge", space).fit(rows[[0] * 20], values[:20])
    for early in (lambda p: p.predict(rows), lambda p: p.mean(rows), lambda p: p.save("predictor.json")):
        with pytest.raises(UserError, match="was not fitted"):
            early(predictors.build("ridge", space))
    with pytest.raises(UserError, match="space is a str"):
        predictors.build("ridge", "small-mobilenet")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="from 60 to 90") as caught:
        predictors.build("ridge", space, shares=True).fit(rows, np.linspace(60, 90, 30))
    assert "100" in caught.value.next_step
    for wrong in (values[:20], np.append(values, 0.5)):
        with pytest.raises(UserError, match="30 architectures with values of shape"):
            predictors.report_card(predictors.build("ridge", space), rows, wrong)
    with pytest.raises(UserError, match="At least 13"):
        predictors.report_card(predictors.build("ridge", space), rows[:12], values[:12])


def test_predictions_serve_where_scikit_learn_takes_arrays(space: SearchSpace) -> None:
    rows, values = planted(space, 60, noise=0.001)
    ridge = predictors.build("ridge", space)
    told = cross_val_predict(ridge, space.from_array(rows), values, cv=4)
    np.testing.assert_array_equal(told, cross_val_predict(ridge, rows, values, cv=4))
    assert 0 < np.sqrt(np.mean((told - values) ** 2)) < values.std()
    errors = cross_val_score(ridge, rows, values, cv=4, scoring="neg_mean_absolute_error")
    assert (errors < 0).all()
    prediction = ridge.fit(rows, values).predict(rows)
    np.testing.assert_array_equal(np.asarray(prediction), prediction.mean)
    assert len(prediction) == 60
    assert len(ridge.predict([])) == len(ridge.mean([])) == 0


def test_nothing_is_ranked_where_nothing_varies(space: SearchSpace) -> None:
    rows = planted(space, 60, noise=0.0)[0]
    curve = predictors.learning_curve(predictors.build("ridge", space), rows, np.ones(60))
    assert set(curve.kendall) == {None}
    assert curve.more_for(0.9) is None


@pytest.mark.parametrize(("kind", "least"), [("mlp", 0.9), ("nearest-neighbour", 0.4)])
def test_kinds_that_need_more_data_find_it_roughly(space: SearchSpace, kind: str, least: float) -> None:
    rows, values = planted(space, 300, noise=0.002)
    unseen, truth = planted(space, 200, noise=0.0, seed=1)
    layers = (32, 32) if kind == "mlp" else None
    predictor = predictors.build(kind, space, hidden_layer_sizes=layers).fit(rows, values)
    prediction = predictor.predict(unseen)
    assert np.corrcoef(prediction.mean, truth)[0, 1] > least
    assert np.mean(np.abs(prediction.mean - truth) < 3 * prediction.std) > 0.9
    np.testing.assert_allclose(clone(predictor).fit(rows, values).predict(unseen).mean, prediction.mean)


def test_hidden_layers_belong_to_neural_networks(space: SearchSpace) -> None:
    for kind, layers in (("ridge", (3,)), ("mlp", ()), ("mlp", (8, 0))):
        with pytest.raises(UserError, match="hidden_layer_sizes"):
            predictors.build(kind, space, hidden_layer_sizes=layers)


@pytest.mark.parametrize("kind", [kind for kind in predictors.PREDICTORS if kind != "stack"])
@pytest.mark.parametrize("shares", [False, True])
def test_a_saved_predictor_predicts_exactly_the_same(space: SearchSpace, tmp_path: Path, kind: str, shares: bool) -> None:
    rows, values = planted(space, 40, noise=0.01)
    layers = (8,) if kind == "mlp" else None
    predictor = predictors.build(kind, space, shares=shares, hidden_layer_sizes=layers).fit(rows, values)
    predictor.save(tmp_path / "predictor.json")
    twin = predictors.ArchitecturePredictor.load(tmp_path / "predictor.json")
    before, after = predictor.predict(rows), twin.predict(rows)
    assert (before.mean == after.mean).all()
    assert (before.std == after.std).all()
    np.testing.assert_allclose(predictor.mean(rows), before.mean, rtol=1e-9)
    assert twin.get_params() == predictor.get_params()


def test_files_of_predictors_that_cannot_be_read_are_named(space: SearchSpace, tmp_path: Path) -> None:
    file = tmp_path / "predictor.json"
    with pytest.raises(UserError, match="was not fitted"):
        predictors.build("ridge", space).save(file)
    with pytest.raises(UserError, match="does not exist"):
        predictors.ArchitecturePredictor.load(file)
    rows, values = planted(space, 30, noise=0.01)
    predictors.build("ridge", space).fit(rows, values).save(file)
    text = file.read_text(encoding="utf-8")
    for changed, message in (
        (text.replace('"values"', '"valeus"'), "is damaged"),
        (text.replace('"ridge"', '"rigde"'), "did you mean 'ridge'"),
        (text.replace('"version": 1', '"version": 99', 1), "format version 99"),
        (text[:100], "is damaged"),
    ):
        file.write_text(changed, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            predictors.ArchitecturePredictor.load(file)


def test_the_learning_curve_rises_and_says_how_many_more(space: SearchSpace) -> None:
    rows, values = planted(space, 400, noise=0.003)
    curve = predictors.learning_curve(predictors.build("ridge", space), rows, values)
    assert curve.networks[-1] == 320
    assert curve.kendall[-1] > curve.kendall[0]
    assert curve.more_for(curve.kendall[-1]) == 0
    wanted = (1 + curve.kendall[-1]) / 2
    more = curve.more_for(wanted)
    assert more is None or more > 0
    with pytest.raises(UserError, match="for a learning curve"):
        predictors.learning_curve(predictors.build("ridge", space), rows[:24], values[:24])


def test_the_extrapolation_of_a_known_curve() -> None:
    sizes = (40, 80, 160, 320)
    curve = predictors.LearningCurve("ridge", sizes, tuple(1 - 2 / np.sqrt(n) for n in sizes))
    assert curve.more_for(0.9) == pytest.approx(80, abs=1)  # 1 - 2 / sqrt(400)
    assert curve.more_for(0.5) == 0
    assert curve.more_for(0.999) is None  # four million networks
    assert curve.more_for(1.0) is None
    flat = predictors.LearningCurve("ridge", sizes, (0.5, 0.4, 0.5, 0.4))
    assert flat.more_for(0.6) is None


def test_features_that_know_more_help_and_others_do_not(space: SearchSpace) -> None:
    rows, values = planted(space, 120, noise=0.002)
    hidden = np.random.default_rng(7).normal(size=120)  # in no encoding
    told = predictors.feature_gain(space, rows, values + 0.02 * hidden, hidden[:, None] * 1e6)
    assert told.kendall is not None
    assert told.kendall_with is not None
    assert told.kendall_with > told.kendall + 0.1
    assert told.rmse_with < 0.5 * told.rmse
    useless = predictors.feature_gain(space, rows, values, np.ones((120, 2)))
    assert useless.rmse_with == pytest.approx(useless.rmse, rel=1e-3)
