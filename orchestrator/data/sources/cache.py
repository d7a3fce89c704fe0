"""What was found in large files, kept for the next plan: by path, size, time of change and how rows are read.

An entry is one file, written under another name and renamed, that ends with a checksum of itself; one that is damaged
is as good as none. They are in `XDG_CACHE_HOME/backbone-orchestrator/scans`, if that can be written.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from orchestrator.data.actions import statistics_from_json
from orchestrator.data.sources.containers import Part, Span
from orchestrator.data.sources.dataset import Block, Dataset
from orchestrator.data.sources.scan import Reading, Scanned, read_scanned, write_scanned
from orchestrator.data.sources.scanners import scan_all

FORMAT = 4  # raise it when what a scan finds, or how it is stored, changes
WORTH_KEEPING = 4 << 20  # bytes of a file: less is scanned as fast as it is looked up
KEPT_S = 60 * 86400  # since its last use
_CHECKSUM_BYTES = 16


def default_folder() -> Path:
    """Where entries are."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "backbone-orchestrator" / "scans"


@dataclass(frozen=True)
class ScanCache:
    """The entries of a folder."""

    folder: Path
    worth_keeping: int = WORTH_KEEPING

    def scan(self, parts: Sequence[Part], reading: Reading) -> Iterator[Scanned]:
        """The spans of some parts in order, scanned now or earlier. Raises OSError."""
        for is_known, some in groupby(parts, key=lambda part: self._is_known(part, reading)):
            listed = list(some)
            if is_known:
                for part in listed:
                    yield from self._stored(self._entry(part, reading))
                continue
            spans = [span for part in listed for span in part.spans()]
            entries = {part.name: (self._entry(part, reading), part.size >= self.worth_keeping) for part in listed}
            yield from self._kept(scan_all(spans, reading, sum(part.size for part in listed)), entries)

    def find_split(self, key: str, reading: Reading) -> tuple[Dataset, int] | None:
        """What `keep_split` kept under a key."""
        entry = self.folder / f"{key}.split"
        if not _is_sound(entry):
            return None
        facts = json.loads(entry.read_bytes()[:-_CHECKSUM_BYTES])
        _use(entry)
        blocks = tuple(
            Block(Span(*span), reading, digest, count, bytes.fromhex(removed))
            for span, digest, count, removed in facts["blocks"]
        )
        dataset = Dataset(
            facts["reference"],
            facts["digest"],
            facts["count"],
            facts["learnable_bytes"],
            blocks,
            actions=facts["actions"] and statistics_from_json(facts["actions"]),
            chunk=reading.chunk,
        )
        return dataset, facts["removed"]

    def keep_split(self, key: str, dataset: Dataset, removed: int) -> None:
        """Keeps a split from which another was taken out."""
        facts = {
            "reference": dataset.reference,
            "digest": dataset.digest,
            "count": dataset.count,
            "learnable_bytes": dataset.learnable_bytes,
            "actions": dataset.actions and asdict(dataset.actions),
            "removed": removed,
            "blocks": [
                ([block.span.file, block.span.start, block.span.end], block.digest, block.count, block.removed.hex())
                for block in cast(Sequence[Block], dataset.blocks)
            ],
        }
        entry = _Entry(self.folder / f"{key}.split")
        entry.write(json.dumps(facts).encode())
        entry.keep()

    def key_of(self, parts: Sequence[Part], reading: Reading, *more: str) -> str | None:
        """Names what was read of some parts; None where that is not worth keeping."""
        if sum(part.size for part in parts) < self.worth_keeping:
            return None
        return _named([[part.identity for part in parts], asdict(reading), *more])

    def _entry(self, part: Part, reading: Reading) -> Path:
        """Where a part's entry is or goes. Small ones have none, unless they have images."""
        return self.folder / f"{_named([part.identity, asdict(reading)])}.scan"

    def _is_known(self, part: Part, reading: Reading) -> bool:
        """Whether a part was scanned, and neither it nor the files of its images have changed."""
        entry = self._entry(part, reading)
        return _is_sound(entry) and all(scanned.is_current for scanned in self._stored(entry))

    def _stored(self, entry: Path) -> Iterator[Scanned]:
        _use(entry)
        with open(entry, "rb") as stream:
            end = os.fstat(stream.fileno()).st_size - _CHECKSUM_BYTES
            while stream.tell() < end and (scanned := read_scanned(stream)):
                yield scanned

    def _kept(self, scans: Iterator[Scanned], entries: dict[str, tuple[Path, bool]]) -> Iterator[Scanned]:
        """Passes scanned spans on, and keeps those of each file that is worth it and has no fault."""
        for file, some in groupby(scans, key=lambda scanned: scanned.span.file):
            place, is_worth_it = entries[file]
            first = next(some)
            some = chain([first], some)
            if not is_worth_it and not first.has_images:
                yield from some
                continue
            entry, faults = _Entry(place), 0
            try:
                for scanned in some:
                    yield scanned
                    write_scanned(cast(BinaryIO, entry), scanned)
                    faults += len(scanned.faults)
                if not faults:
                    entry.keep()
            finally:
                entry.drop()


class _Entry:
    """A file that appears whole or not at all; not at all, and nobody minds, where the folder cannot be written."""

    def __init__(self, file: Path):
        self._file, self._partial = file, file.with_name(f".{file.name}.{os.getpid()}")
        self._hashed = xxhash.xxh3_128()
        self._stream: BinaryIO | None = None
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self._partial, "wb")  # noqa: SIM115  # closed by keep or drop

    def write(self, data: bytes) -> None:
        """Appends."""
        if self._stream is None:
            return
        try:
            self._stream.write(data)
            self._hashed.update(data)
        except OSError:
            self.drop()

    def keep(self) -> None:
        """Ends the file with its checksum and gives it its name; forgets entries that nobody used for long."""
        self.write(self._hashed.digest())
        if self._stream is None:
            return
        with suppress(OSError):
            self._stream.close()
            os.replace(self._partial, self._file)
            _forget_old(self._file.parent)
        self._stream = None

    def drop(self) -> None:
        """Leaves nothing behind, unless it was kept."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
            self._stream = None
            self._partial.unlink(missing_ok=True)


def _is_sound(entry: Path) -> bool:
    """Whether a file is there and ends with the checksum of the rest."""
    try:
        with open(entry, "rb") as stream:
            left = os.fstat(stream.fileno()).st_size - _CHECKSUM_BYTES
            hashed = xxhash.xxh3_128()
            while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
                hashed.update(chunk)
                left -= len(chunk)
            return left == 0 and stream.read() == hashed.digest()
    except OSError:
        return False


def _use(entry: Path) -> None:
    with suppress(OSError):
        os.utime(entry)


def _forget_old(folder: Path) -> None:
    for entry in folder.iterdir():
        if time.time() - entry.stat().st_mtime > KEPT_S:
            entry.unlink(missing_ok=True)


def _named(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *facts]).encode()).hexdigest()[:32]
