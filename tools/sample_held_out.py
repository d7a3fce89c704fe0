"""Writes every sixth held-out pair of `builtin:stdlib` as JSONL: `python -m tools.sample_held_out FILE`.

For models that would take minutes to score all of them on a laptop.
"""

import argparse
import json
from pathlib import Path

from orchestrator.data.stdlib import stdlib_examples

EVERY = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    pairs = stdlib_examples("validation")[::EVERY]
    rows = [{"messages": [{"role": turn.role, "content": turn.content} for turn in pair.turns]} for pair in pairs]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
