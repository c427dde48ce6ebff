"""The commands; each one is thin: options in, a verb of `nas.api`, results out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from nas.cli import demonstrating, devices, searching, shipping, training
from search_spaces.artifacts import made_by

__all__ = ["app"]

# In the order of the loop, as nas --help shows them.
COMMANDS: dict[str, Callable[..., None]] = {
    "train-supernet": training.train_supernet,
    "rank-check": training.rank_check,
    "profile": devices.profile,
    "score": searching.score,
    "report-card": searching.report_card,
    "search": searching.search,
    "worker": searching.worker,
    "export": shipping.export,
    "finetune": training.finetune,
    "quantize": shipping.quantize,
    "verify": shipping.verify,
    "compare": shipping.compare,
    "report": shipping.report,
    "spaces": searching.spaces,
    "devices": devices.devices,
    "measure": devices.measure,
    "kit make": devices.kit_make,
    "kit import": devices.kit_import,
    "table-import": devices.table_import,
    "doctor": devices.doctor,
    "demo": demonstrating.demo,
}


GROUPS = {"kit": ("Measure a machine out of reach by hand", "make a kit here, run it there, bring its results back.")}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(made_by())
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Hardware-aware neural architecture search: train one supernet, measure your device, get verified networks."""


def _app() -> typer.Typer:
    made = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(_top)
    groups: dict[str, typer.Typer] = {}
    for name, command in COMMANDS.items():
        *group, last = name.split()
        if group and group[0] not in groups:
            groups[group[0]] = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
            made.add_typer(groups[group[0]], name=group[0], help=": ".join(GROUPS[group[0]]), short_help=GROUPS[group[0]][0])
        # Whole sentences: typer would cut them at half a line.
        about = (inspect.getdoc(command) or "").partition("\n")[0].rstrip(".")
        (groups[group[0]] if group else made).command(last, short_help=about)(command)
    return made


app = _app()
