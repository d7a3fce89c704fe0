"""How the report writes numbers. A value that was not measured is always "n/a", never 0 and never blank."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

NOT_AVAILABLE = "n/a"
MINUS = "\N{MINUS SIGN}"
ACRONYMS = {"bos": "BOS", "eos": "EOS", "fsdp": "FSDP", "python": "Python"}
REVISION = re.compile(r"(@[0-9a-f]{7})[0-9a-f]{33}\b")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number (a bool is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: Any, digits: int = 4) -> str:
    """`0.8421`."""
    return f"{value:,.{digits}f}".replace("-", MINUS) if is_number(value) else NOT_AVAILABLE


def signed(value: Any, digits: int = 4) -> str:
    """`+0.0123`."""
    return f"{value:+,.{digits}f}".replace("-", MINUS) if is_number(value) else NOT_AVAILABLE


def count(value: Any) -> str:
    """`12,345`."""
    return f"{value:,.0f}" if is_number(value) else NOT_AVAILABLE


def significant(value: Any, digits: int = 3) -> str:
    """`12,346`, `12.3` or `0.0123`: so many significant digits, whole numbers never shortened."""
    if not is_number(value):
        return NOT_AVAILABLE
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return fixed(value, decimals)


def compact(value: Any) -> str:
    """`0.5432`, `21.82` or `3.697e+06`: for figures whose size nobody knows beforehand."""
    return f"{value:.4g}" if is_number(value) else NOT_AVAILABLE


def scientific(value: Any) -> str:
    """`2.05e+15`."""
    return f"{value:.3g}" if is_number(value) else NOT_AVAILABLE


def percent(value: Any, digits: int = 1) -> str:
    """A share as per cent: 0.005 is `0.5 %`."""
    return f"{fixed(100 * value, digits)}\N{NO-BREAK SPACE}%" if is_number(value) else NOT_AVAILABLE


def signed_percent(value: Any, digits: int = 2) -> str:
    """A relative difference as per cent, with its sign."""
    return f"{signed(100 * value, digits)}\N{NO-BREAK SPACE}%" if is_number(value) else NOT_AVAILABLE


def p_value(value: Any) -> str:
    """`0.034`, or `< 0.001`."""
    if not is_number(value):
        return NOT_AVAILABLE
    return "<\N{NO-BREAK SPACE}0.001" if value < 0.001 else fixed(value, 3)


def chance(value: Any) -> str:
    """A probability that nobody knows to the last per cent: `87 %`, or `more than 99 %`."""
    if not is_number(value) or 0.01 <= value <= 0.99:
        return percent(value, 0)
    return f"less than {percent(0.01, 0)}" if value < 0.5 else f"more than {percent(0.99, 0)}"


def size(value: Any) -> str:
    """Bytes in decimal units: `1.20 MB`."""
    if not is_number(value):
        return NOT_AVAILABLE
    scale, unit = byte_scale(value)
    return f"{count(value) if scale == 1 else significant(value / scale)}\N{NO-BREAK SPACE}{unit}"


def byte_scale(largest: float) -> tuple[float, str]:
    """The decimal unit in which `largest` bytes read best, as (bytes per unit, unit)."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(largest) >= scale:
            return scale, unit
    return 1.0, "B"


def time_scale(largest: float) -> tuple[float, str]:
    """The unit in which `largest` seconds read best, as (seconds per unit, unit)."""
    if largest >= 3 * 3600:
        return 3600.0, "h"
    return (60.0, "min") if largest >= 180 else (1.0, "s")


def duration(value: Any) -> str:
    """Seconds as `0.412 s`, `3 min 20 s` or `2 h 05 min`."""
    if not is_number(value):
        return NOT_AVAILABLE
    if value < 59.95:  # more would be written as 60.0
        return f"{significant(value)}\N{NO-BREAK SPACE}s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}\N{NO-BREAK SPACE}min {seconds:02d}\N{NO-BREAK SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\N{NO-BREAK SPACE}h {minutes:02d}\N{NO-BREAK SPACE}min"


def money(value: Any, currency: str | None) -> str:
    """`12.50 USD`, and of less than one unit three significant digits."""
    if not is_number(value):
        return NOT_AVAILABLE
    return f"{fixed(value, 2) if abs(value) >= 1 else significant(value)}\N{NO-BREAK SPACE}{currency or ''}".rstrip()


def fact(value: Any) -> str:
    """Any recorded fact as one line of text."""
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else NOT_AVAILABLE
    if isinstance(value, list | tuple):
        return ", ".join(fact(item) for item in value) or "none"
    return str(value)


def words(key: str) -> str:
    """A key as words: `missing_eos` is `missing EOS`, `tokenizer_rows.base` is `tokenizer rows: base`."""
    return " ".join(ACRONYMS.get(word, word) for word in key.replace("_", " ").replace(".", ": ").split(" "))


def short_id(backbone_id: str, limit: int = 44) -> str:
    """A backbone id for tight places: a 40-digit revision shows 7 digits, a very long id loses its middle."""
    text = REVISION.sub(r"\1", backbone_id)
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def flatten(facts: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested facts with dotted keys: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def listed(items: Sequence[object]) -> str:
    """Names or numbers in a sentence."""
    return ", ".join(map(str, items[:-1])) + (" and " if len(items) > 1 else "") + str(items[-1])


def some(items: Sequence[object], most: int = 4) -> str:
    """The first of them in a sentence, so many as can be read."""
    return listed(items) if len(items) <= most else f"{', '.join(map(str, items[:most]))} and {len(items) - most} more"
