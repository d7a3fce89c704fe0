"""What a row says beside its example: columns by which held-out scores can be sliced."""

from collections.abc import Mapping
from typing import Any

_LONGEST = 80  # characters of a value that is kept


def properties_of(row: Mapping[str, Any], others: set[str]) -> tuple[tuple[str, str], ...]:
    """What else a row says in short: texts, whole numbers and truth values, in the row's order."""
    said = ((key, _short(row[key])) for key in row if key in others)
    return tuple((key, text) for key, text in said if text)


def _short(value: Any) -> str:
    """A short text, a whole number or a truth value as text, in which no surrogate is left; empty for all else."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, int) else ""
    return value.strip().encode(errors="replace").decode() if len(value) <= _LONGEST else ""
