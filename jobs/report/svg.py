"""A matplotlib figure as SVG that may stand inside an HTML page beside others."""

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from jobs.report.palette import PAGE_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = re.compile(r"#[0-9a-f]{6}\b")
FONT_FAMILY = re.compile(r"font-family:[^;]*; ?")
NUMBER = re.compile(r"-?\d+\.\d{3,}")
REFERENCE = re.compile(r"#([\w.-]+)")


def inline_svg(figure: "Figure", name: str, label: str) -> Markup:
    """Draws `figure` as an `<svg>` element; `name` makes its ids unique on the page, `label` is read aloud.

    Text stays text in the page's own font. Width and height come from the page, colours from its variables.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    _drop_what_acts_on_the_whole_page(root)
    for element in root.iter():
        _localise(element, name)
    _drop_unused_ids(root)
    view_box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": view_box, "role": "img", "aria-label": label})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _drop_what_acts_on_the_whole_page(root: ElementTree.Element) -> None:
    """A `<style>` inside an inline SVG would style the HTML around it; metadata holds URLs and versions."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)


def _localise(element: ElementTree.Element, name: str) -> None:
    """Drops XML namespaces (HTML knows SVG by its tag), prefixes ids, shortens numbers, takes the page's colours."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    element.attrib.clear()
    for key, value in attributes.items():
        if key == "id":
            value = f"{name}-{value}"
        elif key == "style":
            value = FONT_FAMILY.sub("", COLOUR.sub(lambda found: PAGE_COLOURS.get(found[0], found[0]), value))
        elif key in ("href", "clip-path"):
            value = REFERENCE.sub(rf"#{name}-\1", value)
        elif key in ("d", "x", "y", "transform"):
            value = NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value)
        element.attrib[key] = value


def _drop_unused_ids(root: ElementTree.Element) -> None:
    used = {
        found
        for element in root.iter()
        for key in ("href", "clip-path")
        for found in REFERENCE.findall(element.attrib.get(key, ""))
    }
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
