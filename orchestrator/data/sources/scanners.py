"""Scanning a large source with several processes: each takes every n-th span and writes what it found to a pipe.

They are started as programs, not forked and not through multiprocessing: a fork copies the locks of other threads, and
a spawned child imports the caller's main module again.

    python -m orchestrator.data.sources.scanners      spans on stdin, one JSON document; scanned spans on stdout
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import BinaryIO, cast

from orchestrator.data.sources.containers import Span
from orchestrator.data.sources.scan import Reading, Scanned, read_scanned, scan, write_scanned

WORTH_A_PROCESS = 64 << 20  # bytes of a source: fewer are read before a process has started
MOST_PROCESSES = 8


def scan_all(spans: Sequence[Span], reading: Reading, size: int) -> Iterator[Scanned]:
    """The spans in order, scanned; `size` is the bytes of the source. Raises OSError."""
    processes = min(os.cpu_count() or 1, MOST_PROCESSES, len(spans))
    if size < WORTH_A_PROCESS or processes < 2:
        yield from (scan(span, reading) for span in spans)
        return
    with ExitStack() as held:
        scanners = [_start(spans[number::processes], reading, held) for number in range(processes)]
        for number in range(len(spans)):
            scanner = scanners[number % processes]
            scanned = read_scanned(cast(BinaryIO, scanner.stdout))
            if scanned is None:
                raise OSError(0, f"a process that read {spans[number].file} ended with code {scanner.wait()}")
            yield scanned


def _start(spans: Sequence[Span], reading: Reading, held: ExitStack) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", __name__]
    scanner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    held.callback(_end, scanner)
    assert scanner.stdin is not None
    work = {"reading": asdict(reading), "spans": [asdict(span) for span in spans]}
    scanner.stdin.write(json.dumps(work).encode())
    scanner.stdin.close()
    return scanner


def _end(scanner: "subprocess.Popen[bytes]") -> None:
    scanner.kill()
    assert scanner.stdout is not None
    scanner.stdout.close()
    scanner.wait()


def main() -> None:
    """Scans what stdin asks for."""
    work = json.loads(sys.stdin.buffer.read())
    columns = tuple((key, column) for key, column in work["reading"]["columns"])
    reading = Reading(**{**work["reading"], "columns": columns})
    for span in work["spans"]:
        write_scanned(sys.stdout.buffer, scan(Span(**span), reading))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
