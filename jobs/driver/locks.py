"""A cell is trained by one process at a time: its folder has a lock."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.errors import AlreadyRunningError
from orchestrator.layout import CellFolder


@contextmanager
def locked_cells(folders: Iterable[Path], limit_s: float = 0.0) -> Iterator[None]:
    """Holds every cell's lock, so that no two launches train one cell. Raises AlreadyRunningError."""
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(CellFolder(folder).lock, timeout=limit_s))
            except Timeout:
                raise AlreadyRunningError(
                    f"{folder.name} is being trained by another process; wait for it, or stop it with Ctrl-C there. "
                    "Running the same command afterwards picks up what it did."
                ) from None
        yield
