"""What `report.json` says of held-out items, key for key. Scores are in the verdict's metric, means over seeds."""

from typing_extensions import TypedDict


class SliceValue(TypedDict):
    """The items that have one value in a column."""

    value: str
    items: int
    share: float  # of the weight of all items: of their bytes, in bits per byte
    scores: dict[str, float]  # by backbone
    contribution: float | None  # to the difference of the two leading backbones; those of a column add up to it


class Slice(TypedDict):
    """The items by the values of one column of the held-out data, the heaviest value first."""

    column: str
    values: list[SliceValue]
    driver: str | None  # the value that contributes most to the difference


class HeldOutItem(TypedDict):
    """One held-out item, side by side."""

    item: int  # its place in the held-out data, from 0
    hash: str  # of its content
    group: str
    columns: dict[str, str]  # those that slice the data
    bytes: int
    text: str  # the beginning of what is scored
    bits_per_byte: dict[str, float]  # by backbone


class HeldOutFacts(TypedDict):
    """Described, not tested: the verdict is over all items. `leading`: the two best backbones, if there are two."""

    leading: list[str]
    difference: float | None  # of the second to the first
    slices: list[Slice]
    apart: list[list[HeldOutItem]]  # where the first needs fewer bits, where the second does; most bits first
    hardest: list[HeldOutItem]  # most bits per byte in the mean of the backbones
    note: str | None  # why something is missing
