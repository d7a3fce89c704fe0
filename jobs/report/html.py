"""`report.json` to `report.html`: one file that needs nothing else, neither network nor JavaScript."""

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


@cache
def environment() -> Environment:
    """Where every page's template and its filters come from."""
    templates = Environment(
        loader=PackageLoader("jobs.report", package_path=""),
        autoescape=True,  # every name, path and message in the document was written by somebody else
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {written.__name__: written for written in FILTERS}
    return templates
