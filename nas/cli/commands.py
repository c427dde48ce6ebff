"""The commands; each one is thin: options in, a verb of `nas.api`, results out."""

from __future__ import annotations

from collections.abc import Callable

import typer

from nas.cli import demonstrating, devices, searching, shipping, training

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


GROUPS = {"kit": "Measure a machine that cannot be reached from here: make a kit, run it there, import its results."}


def _app() -> typer.Typer:
    made = typer.Typer(
        help="Hardware-aware neural architecture search: train one supernet, measure your device, get verified networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    groups: dict[str, typer.Typer] = {}
    for name, command in COMMANDS.items():
        *group, last = name.split()
        if group and group[0] not in groups:
            groups[group[0]] = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
            made.add_typer(groups[group[0]], name=group[0], help=GROUPS[group[0]])
        (groups[group[0]] if group else made).command(last)(command)
    return made


app = _app()
