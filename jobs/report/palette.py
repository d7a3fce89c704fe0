"""One look per backbone, the same in every plot and table: a colour, a dash pattern and a marker.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), safe for the common kinds of colour blindness,
without the yellow, which cannot be seen on white. Backbones beyond the seventh repeat a colour with dashes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# (on light, on dark): blue, vermilion, green, purple, orange, sky blue, black. matplotlib leaves out a fill of #000000,
# since it is SVG's own, and the page could not turn it into its colour.
COLOURS = (
    ("#0072b2", "#3a92d8"),
    ("#d55e00", "#e8762c"),
    ("#009e73", "#1fb58a"),
    ("#cc79a7", "#d98cb6"),
    ("#e69f00", "#e9ab2a"),
    ("#56b4e9", "#8bd0f7"),
    ("#000001", "#d5d8db"),
)
# matplotlib's name, and the same shape as an SVG path in a box of 10 by 10
MARKERS = (
    ("o", "M5 1.8a3.2 3.2 0 1 0 .01 0z"),
    ("s", "M2 2h6v6h-6z"),
    ("D", "M5 1l4 4-4 4-4-4z"),
    ("^", "M5 1.6l3.6 6.4h-7.2z"),
    ("v", "M5 8.4l3.6-6.4h-7.2z"),
    ("P", "M3.8 1.5h2.4v2.3h2.3v2.4h-2.3v2.3h-2.4v-2.3h-2.3v-2.4h2.3z"),
    ("X", "M3.2 1.5l1.8 1.8 1.8-1.8 1.7 1.7-1.8 1.8 1.8 1.8-1.7 1.7-1.8-1.8-1.8 1.8-1.7-1.7 1.8-1.8-1.8-1.8z"),
    ("<", "M1.6 5l6.4-3.6v7.2z"),
    (">", "M8.4 5l-6.4-3.6v7.2z"),
    ("h", "M5 1.4l3.1 1.8v3.6l-3.1 1.8-3.1-1.8v-3.6z"),
    ("*", "M5 1l1 3h3.1l-2.5 1.8 1 3-2.6-1.8-2.6 1.8 1-3-2.5-1.8h3.1z"),
    ("p", "M5 1.5l3.4 2.5-1.3 4h-4.2l-1.3-4z"),
)

# What plots draw with; `inline_svg` turns them into the page's own colours, so that plots follow light and dark.
INK, MUTED, LINE, BAND = "#010101", "#020202", "#030303", "#040404"
PAGE_COLOURS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    BAND: "var(--band)",
    **{light: f"var(--series-{index})" for index, (light, _) in enumerate(COLOURS)},
}


@dataclass(frozen=True)
class Look:
    """How one backbone is drawn."""

    colour: str
    css_colour: str
    dashes: tuple[float, ...]  # lengths on and off in points; empty: a solid line
    marker: str
    marker_path: str


def looks(backbone_ids: Iterable[str]) -> dict[str, Look]:
    """A look per backbone, in the order given."""
    return {backbone_id: _look(index) for index, backbone_id in enumerate(dict.fromkeys(backbone_ids))}


def _look(index: int) -> Look:
    colour = COLOURS[index % len(COLOURS)][0]
    dashes = (4.0, 2.0) if index >= len(COLOURS) else ()
    return Look(colour, PAGE_COLOURS[colour], dashes, *MARKERS[index % len(MARKERS)])
