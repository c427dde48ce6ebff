"""Commands about spaces and the search in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import AsJson, DeviceName, Force, Quiet, RunFolder, Seed
from nas.cli.terminal import TerminalProgress, print_json, show_table
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from search_spaces import SearchSpace

__all__ = ["search", "spaces"]


def search(
    run: RunFolder,
    device: DeviceName = "onnxruntime-cpu",
    limit: Annotated[list[str] | None, typer.Option(help="Hard limit, e.g. latency=5ms or params=4M; may be repeated.")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="accuracy, latency, macs, params, size, memory; repeat.")] = None,
    samples: Annotated[int, typer.Option(help="Scored subnets that the accuracy predictor learns from.")] = 100,
    points: Annotated[int, typer.Option(help="Networks on the front.")] = 16,
    predictor: Annotated[str, typer.Option(help="auto, ridge, gaussian-process, svr, mlp ...")] = "auto",
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the Pareto front of a trained run on a device, under hard limits."""
    import nas

    limits: dict[str, str] = {}
    for text in limit or []:
        name, sign, value = text.partition("=")
        if not sign or name in limits:
            raise UserError(f"--limit {text}", allowed="NAME=VALUE, each name once", next_step="Write: --limit latency=5ms")
        limits[name] = value
    front = nas.search(
        run,
        device=device,
        objectives=tuple(objective or ("accuracy", "latency")),
        limits=limits,
        samples=samples,
        points=points,
        predictor=predictor,
        seed=seed,
        force=force,
        progress=TerminalProgress(quiet=quiet),
    )
    if as_json:
        print_json(front.to_frame().to_dict(orient="records"))
        return
    rows = [
        (
            point.arch.id,
            f"{point.values['accuracy']:.1%} ± {point.std['accuracy']:.1%}",
            f"{point.values['latency']:.3g}",
            f"{point.values['macs'] / 1e6:.2f}",
            f"{point.values['params'] / 1e6:.3f}",
        )
        for point in front
    ]
    show_table(["network", "accuracy (predicted)", "latency ms (estimated)", "MACs (M)", "params (M)"], rows)
    typer.echo(f"Next: nas export {run} --pick knee, or all of them: nas export {run}")


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
