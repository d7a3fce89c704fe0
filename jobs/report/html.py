"""`report.json` to `report.html`: one file that needs nothing else, neither network nor JavaScript; and to Markdown."""

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs import formats
from jobs.report.contract import contract_differences
from jobs.report.palette import COLOURS
from jobs.report.view import report_view
from jobs.results.documents import Report

__all__ = ["contract_differences", "environment", "render_report"]

FILTERS = (
    formats.fixed,
    formats.signed,
    formats.count,
    formats.percent,
    formats.signed_percent,
    formats.p_value,
    formats.size,
    formats.duration,
    formats.money,
    formats.scientific,
    formats.significant,
    formats.fact,
    formats.words,
    formats.short_id,
    formats.flatten,
)


def render_report(document: Report) -> str:
    """The page for a comparison or a finetune; the same document always gives the same text."""
    return environment().get_template("report.html.j2").render(colours=COLOURS, **report_view(document))


def render_markdown(document: Report) -> str:
    """The verdict, the ranking and what they hold for, as GitHub and GitLab show it in a pull request."""
    return environment(for_html=False).get_template("report.md.j2").render(**report_view(document))


def md(text: object) -> str:
    """Text that somebody else wrote, as Markdown shows it: in one line, and without meaning anything."""
    line = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(str(text).split()))
    return line.replace("&", "&amp;").replace("<", "&lt;")


@cache
def environment(for_html: bool = True) -> Environment:
    """Where every page's template and its filters come from."""
    templates = Environment(
        loader=PackageLoader("jobs.report", package_path=""),
        autoescape=for_html,  # every name, path and message in the document was written by somebody else
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {written.__name__: written for written in (*FILTERS, md)}
    return templates
