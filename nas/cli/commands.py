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
    "search": searching.search,
    "export": shipping.export,
    "finetune": training.finetune,
    "verify": shipping.verify,
    "report": shipping.report,
    "spaces": searching.spaces,
    "devices": devices.devices,
    "demo": demonstrating.demo,
}


def _app() -> typer.Typer:
    made = typer.Typer(
        help="Hardware-aware neural architecture search: train one supernet, measure your device, get verified networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for name, command in COMMANDS.items():
        made.command(name)(command)
    return made


app = _app()
