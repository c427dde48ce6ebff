"""Commands about spaces and the search in them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import AsJson, Force, Quiet, RunFolder, Seed, TorchDevice, finite
from nas.cli.terminal import EXIT_INTERRUPTED, Stop, TerminalProgress, print_json, show_table
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from nas.archive import Score
    from nas.pareto import ParetoFront
    from search_spaces import SearchSpace

__all__ = ["report_card", "score", "search", "spaces", "worker"]


Jobs = Annotated[int, typer.Option(min=0, help="Networks scored at a time on this machine; 0 leaves them to workers.")]
Storage = Annotated[str | None, typer.Option(help="Database shared with nas worker: postgresql://... or sqlite:///FILE.")]


def score(
    run: RunFolder,
    n: Annotated[int, typer.Option(help="Scored subnets in all.")] = 100,
    images: Annotated[int, typer.Option(min=1, help="Validation images per subnet, at most.")] = 2000,
    device: Annotated[str | None, typer.Option("--device", help="Device whose latency is the cost; MACs without one.")] = None,
    jobs: Jobs = 1,
    storage: Storage = None,
    torch_device: TorchDevice = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Validate subnets of a trained run: what accuracy predictors learn from."""
    import nas

    progress = TerminalProgress(quiet=quiet)
    opened = nas.Run.open(run, torch_device=torch_device)
    scores = nas.score(
        opened, samples=n, images=images, device=device, jobs=jobs, storage=storage, seed=seed, progress=progress
    )
    if as_json:
        print_json([_score_facts(score) for score in scores])
        return
    accuracy = [score.accuracy for score in scores]
    error = max(score.standard_error for score in scores)
    proposed = sum(score.proposed for score in scores)
    typer.echo(
        f"{len(scores)} scored subnets, {proposed} of them proposed by the strategy: validation accuracy "
        f"{min(accuracy):.1%} to {max(accuracy):.1%}, standard error at most {error:.1%}"
    )
    typer.echo(f"Next: nas search {run}{'' if device is None else f' --device {shlex.quote(device)}'}")


def _score_facts(score: Score) -> dict[str, Any]:
    return {
        "id": score.arch.id,
        "accuracy": score.accuracy,
        "standard_error": score.standard_error,
        "images": score.images,
        "proposed": score.proposed,
        "architecture": score.arch.to_dict(),
    }


def report_card(
    run: RunFolder,
    predictor: Annotated[str, typer.Option(help="auto, ridge, gaussian-process, svr, mlp ...")] = "auto",
    proxies: Annotated[
        str,
        typer.Option(help="all, or some of grad_norm,plain,snip,grasp,fisher,synflow,jacob_cov,naswot,zen: zero-cost proxies."),
    ] = "",
    tau: Annotated[
        float, typer.Option(min=-1, max=1, callback=finite, help="Rank correlation (Kendall) to reach with more scores.")
    ] = 0.9,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a predictor of accuracy is worth on held-out scores, beside sizes and zero-cost proxies."""
    import nas
    from supernets import PROXIES

    names = tuple(PROXIES) if proxies == "all" else tuple(name.strip() for name in proxies.split(",") if name.strip())
    found = nas.accuracy_card(run, predictor=predictor, proxies=names, tau=tau, progress=TerminalProgress(quiet=quiet))
    if as_json:
        print_json(found.to_dict())
        return
    card, curve = found.card, found.curve
    facts = {
        "Kendall, Spearman": f"{_number(card.kendall)}, {_number(card.spearman)}",
        "RMSE": f"{card.rmse:.2%}; the accuracies vary by {card.spread:.2%}",
        "in their 90 % intervals": f"{card.covered_90:.0%}",
        "found of the best tenth": f"{card.top_recall:.0%}",
    }
    show_table([f"{card.kind}, held out of {card.networks} scores", ""], list(facts.items()))
    steps = ", ".join(f"{count}: {_number(value)}" for count, value in zip(curve.networks, curve.kendall, strict=True))
    missing: dict[int | None, str] = {None: "how many scores reach it, the curve cannot tell", 0: "reached"}
    typer.echo(f"\nKendall by scores learnt from: {steps}")
    typer.echo(f"Kendall {tau:g}: {missing.get(found.more, f'score about {found.more} more')}\n")
    show_table(
        ["", "Kendall", "Spearman"], [(rank.name, _number(rank.kendall), _number(rank.spearman)) for rank in found.ranks]
    )
    if found.gain is not None:
        gain = found.gain
        typer.echo(
            f"\nridge on encodings: Kendall {_number(gain.kendall)}, RMSE {gain.rmse:.2%}; with these proxies as features: "
            f"{_number(gain.kendall_with)}, {gain.rmse_with:.2%}"
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def worker(
    run: RunFolder,
    storage: Storage = None,
    jobs: Annotated[int, typer.Option(min=1, help="Networks scored at a time.")] = 1,
    torch_device: TorchDevice = "cpu",
    idle: Annotated[float, typer.Option(min=0, callback=finite, help="End after so many seconds without work.")] = 300,
    heartbeat: Annotated[int, typer.Option(min=1, help="Seconds between signs of life; two missed: lost.")] = 20,
    quiet: Quiet = False,
) -> None:
    """Score what a search has queued in a shared database; start as many as you like, on any machine."""
    import nas

    progress = TerminalProgress(quiet=quiet)
    with Stop().listening() as stop:
        opened = nas.Run.open(run, torch_device=torch_device)
        scored = nas.worker(opened, storage=storage, jobs=jobs, idle=idle, heartbeat=heartbeat, stop=stop, progress=progress)
        typer.echo(f"{scored} subnets scored")
        if stop():
            raise typer.Exit(EXIT_INTERRUPTED)


def search(
    run: RunFolder,
    device: Annotated[
        list[str] | None,
        typer.Option(help="See nas devices; may be repeated. Default: onnxruntime-cpu, with --resume the front's."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Hard limit: latency=5ms, latency@DEVICE=5ms, params=4M ...; several budgets: latency=5ms,10ms."),
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="accuracy, latency, throughput, energy, macs, params, size, memory; repeat.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Scored subnets that the accuracy predictor learns from.")] = 100,
    budget: Annotated[int | None, typer.Option(help="Scores in all: proposals and the front are scored, too.")] = None,
    points: Annotated[int, typer.Option(help="Networks on the front.")] = 16,
    predictor: Annotated[str, typer.Option(help="auto, ridge, gaussian-process, svr, mlp ...")] = "auto",
    jobs: Jobs = 1,
    storage: Storage = None,
    torch_device: TorchDevice = "cpu",
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the front that is there.")] = False,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the Pareto front of a trained run on one or several devices, under hard limits."""
    import nas

    front = nas.search(
        nas.Run.open(run, torch_device=torch_device),
        device=device,
        objectives=objective,
        limits=_limits(limit),
        samples=samples,
        budget=budget,
        points=points,
        predictor=predictor,
        jobs=jobs,
        storage=storage,
        seed=seed,
        resume=resume,
        force=force,
        progress=TerminalProgress(quiet=quiet),
    )
    if as_json:
        fronts = {"": front, **front.parts}
        print_json([{"front": name, **row} for name, part in fronts.items() for row in part.to_frame().to_dict("records")])
        return
    _show_front(front)
    _show_parts(front)
    typer.echo(f"Next: nas export {run} --pick knee, or all of them: nas export {run}")


def _limits(given: list[str] | None) -> dict[str, list[str]] | None:
    """``NAME=VALUE`` texts by name; a name that is repeated has several budgets."""
    limits: dict[str, list[str]] = {}
    for text in given or []:
        name, sign, value = text.rpartition("=")  # a device may have one in its name
        if not sign:
            raise UserError(f"--limit {text}", allowed="NAME=VALUE", next_step="Write: --limit latency=5ms")
        limits.setdefault(name, []).append(value)
    return limits or None


def _show_front(front: ParetoFront) -> None:
    latencies = [name for name in front.points[0].values if name.partition("@")[0] == "latency"]
    scored = any(point.measured for point in front)
    heads = ["network", "accuracy" if scored else "accuracy (predicted)", *(["is"] if scored else [])]
    energies = [name for name in front.points[0].values if name.partition("@")[0] == "energy"]
    heads += [f"{name} ms (estimated)" for name in latencies] + [f"{name} mJ (estimated)" for name in energies]
    heads += ["MACs (M)", "params (M)"]
    rows = [
        (
            point.arch.id,
            f"{point.values['accuracy']:.1%} ± {point.std['accuracy']:.1%}",
            *(["measured" if "accuracy" in point.measured else "predicted"] if scored else []),
            *(f"{point.values[name]:.3g}" for name in latencies),
            *(f"{1e3 * point.values[name]:.3g}" for name in energies),
            f"{point.values['macs'] / 1e6:.2f}",
            f"{point.values['params'] / 1e6:.3f}",
        )
        for point in front
    ]
    show_table(heads, rows)


def _show_parts(front: ParetoFront) -> None:
    """The fronts beside the main one in a line each, and what sharing a network costs."""
    if front.parts:
        typer.echo("")
        show_table(["front", "networks", "its best", "accuracy"], [_part_row(name, part) for name, part in front.parts.items()])
    sharing = front.records.get("sharing")
    if sharing:
        from nas.objectives import format_value

        typer.echo("")
        lines = [
            (
                row["device"],
                ", ".join(f"{name} {format_value(name, bound)}" for name, bound in row["limits"].items()) or "none",
                f"{row['accuracy']:.1%}",
                f"{row['shared_accuracy']:.1%}",
                f"{100 * row['regret']:.1f}",
            )
            for row in sharing
        ]
        show_table(["device", "limits", "own network", "one for all", "lost (points)"], lines)


def _part_row(name: str, part: ParetoFront) -> tuple[str, int, str, str]:
    if not len(part):
        return (name, 0, "none within the limits", "")
    best = max(part, key=lambda point: point.values["accuracy"])
    return (name, len(part), best.arch.id, f"{best.values['accuracy']:.1%}")


def spaces(name: Annotated[str | None, typer.Argument(help="One space in detail.")] = None, as_json: AsJson = False) -> None:
    """List the built-in search spaces, or show one."""
    import nas

    if name is None:
        known = nas.spaces()
        if as_json:
            print_json(known)
        else:
            show_table(["space", "about"], list(known.items()))
        return
    space = nas.space(name)
    facts = _space_facts(space)
    if as_json:
        print_json(facts)
        return
    typer.echo(f"{space.key}: {facts['networks']:.3e} networks\n")
    show_table(["choice", "positions", "options"], [(c["name"], c["positions"], c["options"]) for c in facts["choices"]])
    ends = [(label, f"{v['macs'] / 1e6:.2f}", f"{v['params'] / 1e6:.3f}") for label, v in facts["extremes"].items()]
    typer.echo("")
    show_table(["network", "MACs (M)", "params (M)"], ends)


def _space_facts(space: SearchSpace) -> dict[str, Any]:
    choices = [
        {"name": name, "positions": choice.length or 1, "options": list(choice.options)}
        for name, choice in space.choices.items()
    ]
    ends = {"smallest": space.smallest, "largest": space.largest}
    extremes = {label: {"macs": space.macs(arch), "params": space.params(arch)} for label, arch in ends.items()}
    return {
        "space": space.key,
        "parameters": space.parameters,
        "networks": space.count(),
        "choices": choices,
        "extremes": extremes,
    }
