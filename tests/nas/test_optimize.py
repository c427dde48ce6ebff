"""nas.optimize: what is paid for, what is promised, and what is said when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas
from nas.optimizing import OptimizeResult
from search_spaces.artifacts import locked

SPACE = nas.SearchSpace({f"gene_{i}": [0, 1, 2, 3] for i in range(6)}, name="small")  # 4,096 networks
BOTH = {"accuracy": "max", "latency_ms": "min"}
WORTH = np.random.default_rng(0).random((6, 4))


def size(archs: list[nas.Architecture]) -> np.ndarray:
    return SPACE.to_array(archs).sum(axis=1).astype(float)


class Counted:
    """An evaluation that remembers every network that it was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[nas.Architecture]] = []

    def __call__(self, archs: list[nas.Architecture]) -> dict[str, Any]:
        self.calls.append(list(archs))
        rows = SPACE.to_array(archs)
        worth = WORTH[np.arange(6), rows].sum(axis=1)
        return {"accuracy": worth / 6, "latency_ms": 1.0 + rows @ np.arange(1.0, 7.0)}

    @property
    def archs(self) -> list[nas.Architecture]:
        return [arch for call in self.calls for arch in call]


@pytest.mark.parametrize("strategy", ["default", "random"])
@pytest.mark.parametrize(("budget", "batch"), [(1, 20), (23, 7), (30, 30)])
def test_the_budget_is_never_exceeded_and_no_network_is_paid_for_twice(strategy: str, budget: int, batch: int) -> None:
    evaluate = Counted()
    result = nas.optimize(SPACE, evaluate, objectives=BOTH, budget=budget, batch=batch, strategy=strategy)
    assert len(evaluate.archs) == len(result.trials) == len(set(evaluate.archs)) == budget
    assert max(map(len, evaluate.calls)) <= batch
    assert list(result.trials["architecture"]) == evaluate.archs
    assert list(result.trials.columns) == ["architecture", "accuracy", "latency_ms"]
    assert result.front.provenance["evaluations"] == budget


def test_known_costs_are_exact_and_free() -> None:
    evaluate, priced = Counted(), []

    def known(archs: list[nas.Architecture]) -> np.ndarray:
        priced.extend(archs)
        return size(archs)

    result = nas.optimize(SPACE, evaluate, objectives={"accuracy": "max", "size": "min"}, known={"size": known}, budget=40)
    assert len(evaluate.archs) == 40
    assert (result.trials["size"] == size(evaluate.archs)).all()
    assert len(priced) == len(set(priced)) > 40  # called for many more networks, but never twice for one


def test_a_known_cost_can_be_a_limit_only_and_a_method_of_the_space() -> None:
    space = nas.space("small-mobilenet", width=0.25, image=28, channels=1)
    bound = float(np.median(space.macs(space.sample(50))))
    result = nas.optimize(
        space,
        lambda archs: {"accuracy": np.sqrt(space.params(archs))},
        objectives={"accuracy": "max"},
        known={"macs": space.macs},
        limits={"macs": bound},
        budget=30,
        batch=10,
    )
    assert (result.trials["macs"] <= bound).all()
    assert (result.trials["macs"] == space.macs(list(result.trials["architecture"]))).all()
    assert len(result.front) == 1


def test_limits_hold_on_the_front_and_a_measured_one_is_learnt() -> None:
    limits = {"latency_ms": 25.0, "accuracy": 0.5}
    result = nas.optimize(SPACE, Counted(), objectives=BOTH, limits=limits, budget=60, batch=10)
    assert len(result.front) > 1
    assert all(p.values["latency_ms"] <= 25.0 and p.values["accuracy"] >= 0.5 for p in result.front)
    within = (result.trials["latency_ms"] <= 25.0) & (result.trials["accuracy"] >= 0.5)
    assert within[30:].mean() > 0.6
    nothing = nas.optimize(SPACE, Counted(), objectives=BOTH, limits={"accuracy": 2.0}, budget=20)
    assert len(nothing.front) == 0
    assert len(nothing.trials) == 20
    assert (nothing.hypervolume({"accuracy": 0.0, "latency_ms": 100.0}) == 0).all()


@pytest.mark.parametrize("strategy", ["default", "nsga2"])
def test_the_same_seed_gives_the_same_result(strategy: str) -> None:
    runs = [nas.optimize(SPACE, Counted(), objectives=BOTH, budget=50, strategy=strategy, seed=s) for s in (3, 3, 4)]
    same, again, other = (list(run.trials["architecture"]) for run in runs)
    assert same == again != other


def test_a_small_space_is_evaluated_completely() -> None:
    tiny = nas.SearchSpace({"a": [0, 1, 2], "b": ["x", "y"]}, name="tiny")

    def evaluate(archs: list[nas.Architecture]) -> dict[str, list[float]]:
        return {"accuracy": [arch["a"] + (arch["b"] == "x") for arch in archs], "cost": [arch["a"] for arch in archs]}

    result = nas.optimize(tiny, evaluate, objectives={"accuracy": "max", "cost": "min"}, budget=50, batch=4)
    assert len(result.trials) == tiny.count() == 6
    assert [point.values["accuracy"] for point in result.front] == [1, 2, 3]


def test_hypervolume_grows_with_evaluations_and_patience_stops_a_run_that_stalls() -> None:
    result = nas.optimize(SPACE, Counted(), objectives=BOTH, budget=400, batch=20, patience=40)
    volume = result.hypervolume({"accuracy": 0.0, "latency_ms": 70.0})
    assert volume.shape == (len(result.trials),)
    assert (np.diff(volume) >= 0).all()
    assert volume[0] > 0
    assert 40 < len(result.trials) < 400
    with pytest.raises(nas.UserError, match="reference point"):
        result.hypervolume({"accuracy": 0.0})


@pytest.mark.parametrize(("bound", "direction", "keeps"), [(">= 9", "max", np.greater_equal), ("<= 9", "min", np.less_equal)])
def test_a_limit_may_say_which_way_it_bounds(tmp_path: Path, bound: str, direction: str, keeps: Any) -> None:
    counted = Counted()

    def evaluate(archs: list[nas.Architecture]) -> dict[str, Any]:
        return {**counted(archs), "top5": size(archs)}

    result = nas.optimize(SPACE, evaluate, objectives=BOTH, limits={"top5": bound}, budget=40)
    assert keeps([point.values["top5"] for point in result.front], 9.0).all()
    assert result.front.limits == {"top5": 9.0}
    assert result.front.direction("top5") == direction
    kept = keeps(result.trials["top5"], 9.0)
    assert kept.any()
    assert not kept.all()
    first = int(kept.to_numpy().argmax())
    volume = result.hypervolume({"accuracy": 0.0, "latency_ms": 1e3})
    assert (volume[:first] == 0).all()
    assert volume[first] > 0
    result.front.save(tmp_path / "front.json")
    assert nas.ParetoFront.load(tmp_path / "front.json") == result.front


def test_a_known_cost_of_any_object_is_a_function() -> None:
    class Odd:
        def __eq__(self, other: object) -> Any:
            return np.array([True, False])

        __hash__ = None  # type: ignore[assignment]

        def size(self, archs: list[nas.Architecture]) -> Any:
            return size(archs)

    result = nas.optimize(SPACE, Counted(), objectives=BOTH, known={"size": Odd().size}, limits={"size": 6.0}, budget=20)
    assert (result.trials["size"] <= 6.0).all()


def test_an_interrupted_run_keeps_what_is_paid_for() -> None:
    counted, seen = Counted(), []

    def evaluate(archs: list[nas.Architecture]) -> dict[str, Any]:
        if len(counted.calls) == 2:
            raise KeyboardInterrupt
        return counted(archs)

    with pytest.raises(KeyboardInterrupt) as caught:
        nas.optimize(SPACE, evaluate, objectives=BOTH, budget=60, batch=10, callback=seen.append)
    result: OptimizeResult = caught.value.result  # type: ignore[attr-defined]
    assert list(result.trials["architecture"]) == counted.archs
    assert [len(so_far.trials) for so_far in seen] == [10, 20]
    assert len(result.front) > 0


class Stopping(Counted):
    """An evaluation that ends the run at a call, or returns values of which half are missing."""

    def __init__(self, *, stop: int = 0, break_at: int = 0) -> None:
        super().__init__()
        self.stop, self.break_at = stop, break_at

    def __call__(self, archs: list[nas.Architecture]) -> dict[str, Any]:
        if len(self.calls) + 1 == self.stop:
            raise KeyboardInterrupt
        values = super().__call__(archs)
        if len(self.calls) == self.break_at:
            values["accuracy"][::2] = np.nan
        return values


def test_the_callback_sees_every_batch_in_which_something_was_evaluated(tmp_path: Path) -> None:
    options: dict[str, Any] = {"objectives": BOTH, "budget": 30, "batch": 10, "archive": tmp_path / "search.json"}
    with pytest.raises(nas.UserError):
        nas.optimize(SPACE, Stopping(break_at=2), **options)
    seen: list[int] = []
    nas.optimize(SPACE, Counted(), callback=lambda result: seen.append(len(result.trials)), **options)
    assert seen == [20, 30]


def same(a: OptimizeResult, b: OptimizeResult) -> bool:
    return bool((a.trials.to_numpy() == b.trials.to_numpy()).all()) and list(a.front) == list(b.front)


@pytest.mark.parametrize("strategy", ["default", "random", "nsga2", "optuna-tpe", "evolution", "linas"])
def test_an_interrupted_run_goes_on_from_its_archive_as_if_it_had_not_been(tmp_path: Path, strategy: str) -> None:
    options: dict[str, Any] = {"objectives": BOTH, "budget": 50, "batch": 10, "strategy": strategy, "seed": 3}
    unbroken = nas.optimize(SPACE, Counted(), **options)
    file = tmp_path / "search.json"
    # Killed at the third call; then a call whose values are partly missing; then to the end.
    with pytest.raises(KeyboardInterrupt):
        nas.optimize(SPACE, Stopping(stop=3), archive=file, **options)
    broken = Stopping(break_at=1)
    with pytest.raises(nas.UserError, match="accuracy = nan") as caught:
        nas.optimize(SPACE, broken, archive=file, **options)
    finished = len(caught.value.result.trials)  # type: ignore[attr-defined]
    last = Counted()
    resumed = nas.optimize(SPACE, last, archive=file, **options)
    assert same(resumed, unbroken)
    assert len(last.archs) == 50 - finished
    nothing = Counted()
    assert same(nas.optimize(SPACE, nothing, archive=file, **options), unbroken)
    assert nothing.calls == []


def test_an_archive_serves_other_limits_objectives_budgets_and_strategies(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    first = nas.optimize(SPACE, Counted(), objectives=BOTH, budget=30, archive=file)
    more = Counted()
    further = nas.optimize(
        SPACE, more, objectives=BOTH, limits={"latency_ms": 30.0, "size": 12.0}, known={"size": size}, budget=50, archive=file
    )
    assert len(further.trials) == 50
    assert list(further.trials["architecture"][:30]) == list(first.trials["architecture"])
    assert len(set(further.trials["architecture"])) == 50
    assert max(point.values["latency_ms"] for point in further.front) <= 30.0
    assert (size(more.archs) <= 12.0).all()
    fewer = nas.optimize(SPACE, more, objectives={"accuracy": "max"}, budget=10, archive=file, strategy="evolution")
    assert len(fewer.trials) == 50  # nothing new is paid for, nothing is forgotten
    assert len(more.archs) == 20


def test_an_archive_of_a_small_space_is_completed(tmp_path: Path) -> None:
    small = nas.SearchSpace({"a": [0, 1, 2], "b": [0, 1, 2]}, name="nine")
    seen: list[nas.Architecture] = []

    def evaluate(archs: list[nas.Architecture]) -> dict[str, Any]:
        seen.extend(archs)
        return {"cost": [arch["a"] + 1.0 for arch in archs]}

    for budget in (4, 100):
        result = nas.optimize(small, evaluate, objectives={"cost": "min"}, budget=budget, archive=tmp_path / "search.json")
    assert len(seen) == len(set(seen)) == len(result.trials) == 9


def test_archives_that_do_not_fit_are_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    nas.optimize(SPACE, Counted(), objectives={"accuracy": "max"}, budget=10, archive=file)
    kept = file.read_bytes()
    evaluate = Counted()
    for space, objectives, message in (
        (SPACE, BOTH, r"has no latency_ms of architecture \w+, only accuracy"),
        (SPACE.restrict(gene_0=[0, 1]), {"accuracy": "max"}, r"another space \(genes.gene_0 was"),
    ):
        with pytest.raises(nas.UserError, match=message):
            nas.optimize(space, evaluate, objectives=objectives, budget=20, archive=file)
    with pytest.raises(nas.UserError, match="is a folder"):
        nas.optimize(SPACE, evaluate, objectives=BOTH, archive=tmp_path)
    with locked(file, doing="adding to"), pytest.raises(nas.UserError, match="another process is adding to"):
        nas.optimize(SPACE, evaluate, objectives={"accuracy": "max"}, archive=file)
    file.write_bytes(kept[:-20])
    with pytest.raises(nas.UserError, match="is damaged"):
        nas.optimize(SPACE, evaluate, objectives={"accuracy": "max"}, archive=file)
    assert file.read_bytes() == kept[:-20]
    assert evaluate.calls == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["accuracy"].__setitem__(3, np.nan), r"accuracy = nan for architecture \w+"),
        (lambda v: v["latency_ms"].__setitem__(0, np.inf), "latency_ms = inf"),
        (lambda v: v.pop("accuracy"), "did not return 'accuracy'"),
        (lambda v: v.update(accuracy=v["accuracy"][:-1]), r"shape \(9,\) for 10"),
        (lambda v: v.update(accuracy=["good"] * 10), "no numbers for accuracy"),
        (lambda v: v.update(accuracy=["0.5"] * 10), "no numbers for accuracy"),
        (lambda v: v.update(accuracy=v["accuracy"] + 1j), "no numbers for accuracy"),
        (lambda v: v.update(accuracy=[10**400] * 10), "no numbers for accuracy"),
    ],
)
def test_wrong_values_are_named_and_the_others_kept(change: Any, message: str) -> None:
    counted = Counted()

    def evaluate(archs: list[nas.Architecture]) -> dict[str, Any]:
        values = counted(archs)
        if len(counted.calls) == 2:
            change(values)
        return values

    with pytest.raises(nas.UserError, match=message) as caught:
        nas.optimize(SPACE, evaluate, objectives=BOTH, budget=40, batch=10)
    finished = caught.value.result.trials  # type: ignore[attr-defined]
    assert 10 <= len(finished) < 20
    assert np.isfinite(finished[["accuracy", "latency_ms"]].to_numpy()).all()


def test_an_evaluation_that_returns_no_dict_is_named() -> None:
    with pytest.raises(nas.UserError, match="evaluate returned a list"):
        nas.optimize(SPACE, lambda archs: [1.0] * len(archs), objectives=BOTH, budget=10)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0}, "budget=0"),
        ({"budget": 10.5}, "budget=10.5"),
        ({"batch": True}, "batch=True"),
        ({"seed": -1}, "seed=-1"),
        ({"patience": 0}, "patience=0"),
        ({"strategy": "nsga22"}, "did you mean 'nsga2'"),
        ({"strategy": "ga"}, "Only one"),
        ({"objectives": {}}, "objectives {}"),
        ({"objectives": {"accuracy": "up"}}, "objectives"),
        ({"objectives": ["accuracy"]}, "objectives"),
        ({"limits": {"latency_ms": "fast"}}, "limit latency_ms='fast'"),
        ({"limits": {"latency_ms": float("nan")}}, "limit latency_ms=nan"),
        ({"limits": {"top5": ">= much"}}, "limit top5='>= much'"),
        ({"limits": {"accuracy": "<= 0.5"}}, "accuracy is to be large"),
        ({"limits": {"energy": ">= 0.5"}}, "energy is to be small"),
        ({"limits": [3.0]}, r"limits=\[3.0\]"),
        ({"limits": {"id": 3.0}}, "a quantity is named 'id'"),
        ({"objectives": {"architecture": "max"}}, "a quantity is named 'architecture'"),
        ({"known": {3: size}}, "a quantity is named 3"),
        ({"strategy": None}, "unknown strategy 'None'"),
        ({"evaluate": None}, "evaluate is a NoneType"),
        ({"known": {"size": 3}}, "is a int"),
        ({"known": {"latency_ms": lambda archs: [1.0]}}, "returned list of shape"),
        ({"known": {"latency_ms": lambda archs: np.full(len(archs), np.nan)}}, "is nan for architecture"),
        ({"known": {"latency_ms": size}, "limits": {"latency_ms": -1.0}}, "no network of small was found within"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_paid_for(wrong: dict[str, Any], message: str) -> None:
    evaluate = Counted()
    with pytest.raises(nas.UserError, match=message):
        nas.optimize(SPACE, **({"evaluate": evaluate, "objectives": BOTH, "budget": 20} | wrong))
    assert evaluate.calls == []


@pytest.mark.parametrize("strategy", ["random", "nsga2", "default"])
def test_a_limit_that_leaves_a_sliver_of_a_large_space_is_searched_to_the_budget(strategy: str) -> None:
    space = nas.SearchSpace({f"gene_{i}": [0, 1] for i in range(100)}, name="long")
    prices = np.random.default_rng(1).uniform(1.0, 3.0, 100)

    def price(archs: list[nas.Architecture]) -> np.ndarray:
        return 100.0 + space.to_array(archs) @ prices

    def evaluate(archs: list[nas.Architecture]) -> dict[str, Any]:
        return {"worth": space.to_array(archs) @ prices[::-1]}

    given = {"objectives": {"worth": "max"}, "known": {"price": price}, "limits": {"price": 110.0}}
    result = nas.optimize(space, evaluate, **given, budget=40, batch=20, strategy=strategy)
    assert len(result.trials) == 40
    assert (result.trials["price"] <= 110.0).all()


def test_the_nearest_network_to_tight_limits_is_found_gene_by_gene() -> None:
    space = nas.SearchSpace({f"gene_{i}": list(range(10)) for i in range(30)}, name="wide")
    prices = np.random.default_rng(0).uniform(0.1, 3.0, (30, 10))

    def price(archs: list[nas.Architecture]) -> np.ndarray:
        return prices[np.arange(30), space.to_array(archs)].sum(axis=1)

    least = float(prices.min(axis=1).sum())

    def search(bound: float) -> OptimizeResult:
        evaluate = lambda archs: {"worth": space.to_array(archs).sum(axis=1)}  # noqa: E731
        return nas.optimize(
            space,
            evaluate,
            objectives={"worth": "max"},
            known={"price": price},
            limits={"price": bound},
            budget=5,
            strategy="random",
        )

    assert len(search(1.0001 * least).trials)
    with pytest.raises(nas.UserError, match=f"with price {least:g}"):
        search(0.99 * least)


def test_a_limit_on_accuracy_is_a_lower_one_also_where_it_is_no_objective() -> None:
    result = nas.optimize(SPACE, Counted(), objectives={"latency_ms": "min"}, limits={"accuracy": 0.5}, budget=60)
    assert all(point.values["accuracy"] >= 0.5 for point in result.front)
    best = min(point.values["latency_ms"] for point in result.front)
    assert result.hypervolume({"latency_ms": 100.0})[-1] == pytest.approx(100.0 - best)


def test_names_pick_what_they_say_whatever_the_objectives_are_called() -> None:
    orders = [
        {"latency_ms": "min", "accuracy": "max"},
        {"top1": "max", "latency_ms": "min", "energy": "min"},
        {"top1": "max", "energy": "min"},
    ]

    def evaluate(archs: list[nas.Architecture]) -> dict[str, Any]:
        found = Counted()(archs)
        return found | {"top1": found["accuracy"], "energy": 2.0 * found["latency_ms"]}

    for objectives in orders:
        front = nas.optimize(SPACE, evaluate, objectives=objectives, budget=60, seed=1).front
        gain = "accuracy" if "accuracy" in objectives else "top1"
        cost = "latency_ms" if "latency_ms" in objectives else "energy"
        assert front.pick("best").values[gain] == max(point.values[gain] for point in front)
        assert front.pick("fastest").values[cost] == min(point.values[cost] for point in front)
        good = [point for point in front if point.values[gain] >= 0.5]
        if gain == "accuracy":
            assert front.pick("accuracy=0.5").values[cost] == min(point.values[cost] for point in good)


def test_an_empty_front_says_so_and_fronts_are_saved_by_name(tmp_path: Path) -> None:
    result = nas.optimize(SPACE, Counted(), objectives=BOTH, limits={"latency_ms": -1.0}, budget=20)
    with pytest.raises(nas.UserError, match="no point of the front") as caught:
        result.front.pick("knee")
    assert "empty" in caught.value.allowed
    result.front.save(str(tmp_path / "front.json"))
    assert len(nas.ParetoFront.load(str(tmp_path / "front.json"))) == 0


@pytest.mark.parametrize("objectives", [BOTH, {"accuracy": "max", "constant": "min"}, {"constant": "min", "other": "min"}])
def test_patience_stops_a_run_whatever_does_not_vary(objectives: dict[str, str]) -> None:
    def evaluate(archs: list[nas.Architecture]) -> dict[str, Any]:
        return Counted()(archs) | {"constant": np.ones(len(archs)), "other": np.zeros(len(archs))}

    result = nas.optimize(SPACE, evaluate, objectives=objectives, budget=400, batch=20, patience=20, strategy="random")
    assert len(result.trials) < 400


@pytest.mark.parametrize(
    ("rule", "message"), [("twice", "one network twice"), ("outside", "outside the known limits"), ("many", "21 networks")]
)
def test_a_strategy_that_breaks_the_rules_is_named(rule: str, message: str) -> None:
    class Rude:
        def __init__(self, task: Any) -> None:
            self.task = task

        def ask(self, n: int) -> np.ndarray:
            if rule == "many":
                return self.task.space.all_rows()[: n + 1]
            return np.full((2 if rule == "twice" else 1, 6), 0 if rule == "twice" else 3, dtype=np.int64)

        def tell(self, rows: np.ndarray, values: np.ndarray) -> None: ...

    evaluate, given = Counted(), {"known": {"size": size}, "limits": {"size": 17.0}}
    with pytest.raises(nas.UserError, match=message):
        nas.optimize(SPACE, evaluate, objectives=BOTH, **given, strategy=Rude, budget=40, batch=20)
    assert evaluate.calls == []


def test_a_space_is_needed() -> None:
    with pytest.raises(nas.UserError, match="space is a dict"):
        nas.optimize({"a": [1, 2]}, Counted(), objectives=BOTH)  # type: ignore[arg-type]


def test_an_unreachable_known_limit_is_answered_with_what_is_reachable() -> None:
    with pytest.raises(nas.UserError, match=r"nearest network is .* with size 0") as caught:
        nas.optimize(SPACE, Counted(), objectives=BOTH, known={"size": size}, limits={"size": -0.5})
    assert caught.value.next_step == "Relax the limits to what it has"


def test_a_cost_of_the_whole_space_is_not_taken_for_one_of_a_part() -> None:
    """Its tables go by the options' numbers, which are others after a restriction."""
    whole = nas.space("small-mobilenet", width=0.25, image=28)
    part = whole.restrict(kernel=[5], depth=[2, 3])
    known = {"cost": whole.cost(lambda layer: layer.macs)}

    def size(archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        return {"size": np.asarray(part.params(archs), float)}

    given = {"objectives": {"size": "max"}, "limits": {"cost": 8e6}, "budget": 4, "seed": 0}
    with pytest.raises(nas.UserError, match="is a cost of another space"):
        nas.optimize(part, size, known=known, **given)
    found = nas.optimize(part, size, known={"cost": part.cost(lambda layer: layer.macs)}, **given)
    assert np.array_equal(found.trials["cost"], part.macs(list(found.trials["architecture"])))


def test_masked_values_are_none_and_gradients_are_no_matter() -> None:
    import torch

    space = nas.SearchSpace({f"g{i}": [0, 1, 2, 3] for i in range(4)}, name="t")

    def total(archs: list[nas.Architecture]) -> np.ndarray:
        return space.to_array(archs).sum(axis=1).astype(float)

    tracked = nas.optimize(
        space, lambda archs: {"a": torch.tensor(total(archs), requires_grad=True)}, objectives={"a": "max"}, budget=10, seed=0
    )
    assert np.array_equal(tracked.trials["a"], total(list(tracked.trials["architecture"])))
    with pytest.raises(nas.UserError, match="returned a = nan"):
        nas.optimize(
            space, lambda archs: {"a": np.ma.masked_array(total(archs), True)}, objectives={"a": "max"}, budget=10, seed=0
        )
