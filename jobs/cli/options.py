"""Options that several commands have: where results are, which modules register backbones."""

import os
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import InputError

Storage = Annotated[Path | None, typer.Option(help="Where results are; else BACKBONE_STORAGE, else ./runs.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="MODULE", help="A module or file that registers backbones; may be repeated."),
]


def load_plugins(plugins: list[str] | None) -> tuple[str, ...]:
    """Imports modules or files that register backbones; returns what names them for the workers to import too."""
    from backbones.registry import PluginError, load_plugin

    try:
        return tuple(load_plugin(plugin) for plugin in plugins or ())
    except PluginError as error:
        raise InputError(str(error)) from error


def storage_folder(option: Path | None) -> Path:
    """The folder, absolute."""
    return (option or Path(os.environ.get("BACKBONE_STORAGE", "runs"))).expanduser().absolute()
