"""Where a command finds results when no spec says it."""

import os
from pathlib import Path
from typing import Annotated

import typer

Storage = Annotated[Path | None, typer.Option(help="Where results are; else BACKBONE_STORAGE, else ./runs.")]


def storage_folder(option: Path | None) -> Path:
    """The folder, absolute."""
    return (option or Path(os.environ.get("BACKBONE_STORAGE", "runs"))).expanduser().absolute()
