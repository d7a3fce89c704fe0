"""What the page shows of held-out items: so many backbones as fit beside each other, in words where it is a finding."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.formats import fixed, percent, short_id
from jobs.results.documents import RankedBackbone
from jobs.results.held_out.documents import HeldOutFacts, HeldOutItem, Slice

SHOWN_BACKBONES = 8  # beside each other


@dataclass(frozen=True)
class HeldOutView:
    """The section's variables."""

    facts: HeldOutFacts
    backbones: list[str]  # shown, best first
    of: int  # how many there are
    slices: list[tuple[Slice, str]]  # each with what it says of the difference
    tables: list[tuple[str, list[HeldOutItem]]]  # heading, items


def held_out_view(facts: HeldOutFacts | None, ranking: Sequence[RankedBackbone]) -> HeldOutView | None:
    """None of a report that has none, as of an earlier version."""
    if facts is None:
        return None
    scored = list(dict.fromkeys(name for one in facts["hardest"] for name in one["bits_per_byte"]))
    ranked = [row["backbone_id"] for row in ranking if row["backbone_id"] in scored]
    order = [*ranked, *(name for name in scored if name not in ranked)]
    names = [short_id(name) for name in facts["leading"]]
    tables = [
        (f"Where {name} needs fewer bits than {other}", items)
        for (name, other), items in zip((names, names[::-1]), facts["apart"], strict=False)
    ]
    return HeldOutView(
        facts,
        order[:SHOWN_BACKBONES],
        len(order),
        [(one, _driver(one, facts)) for one in facts["slices"]],
        [(heading, items) for heading, items in (*tables, ("The hardest for all", facts["hardest"])) if items],
    )


def _driver(one: Slice, facts: HeldOutFacts) -> str:
    """Which value makes most of the leading two's difference, as a sentence; empty where there are no two."""
    found = next((value for value in one["values"] if value["value"] == one["driver"]), None)
    if found is None or facts["difference"] is None or found["contribution"] is None:
        return ""
    first, second = (short_id(name) for name in facts["leading"])
    return (
        f"The largest part of the difference of {first} and {second} comes from “{found['value']}”: "
        f"{fixed(found['contribution'])} of {fixed(facts['difference'])}, with {percent(found['share'])} of the text."
    )
