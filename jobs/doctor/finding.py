"""What the doctor found: one row per check and place, with the remedy beside it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.table import Table
from rich.text import Text

LISTED = 4  # of a kind


class Severity(StrEnum):
    """OK: as it should be. WARNING: works, at a risk. PROBLEM: a run would fail, or the cluster is open; exit 1."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """`remedy` is empty where nothing is to be done."""

    check: str
    severity: Severity
    sentence: str
    remedy: str = ""


def ok(check: str, sentence: str) -> Finding:
    return Finding(check, Severity.OK, sentence)


def warning(check: str, sentence: str, remedy: str) -> Finding:
    return Finding(check, Severity.WARNING, sentence, remedy)


def problem(check: str, sentence: str, remedy: str) -> Finding:
    return Finding(check, Severity.PROBLEM, sentence, remedy)


def exit_code(findings: Sequence[Finding]) -> int:
    return int(any(finding.severity is Severity.PROBLEM for finding in findings))


def findings_json(findings: Sequence[Finding]) -> str:
    document = {"exit_code": exit_code(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(document, indent=2)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """The table, the worst last, where the eye is when the command ends. Of what is well, the first few of a kind."""
    colours = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.PROBLEM: "red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in sorted(_shortened(findings), key=lambda one: list(Severity).index(one.severity)):
        found = Text(finding.sentence)
        if finding.remedy:
            found.append(f"\n{finding.remedy}", style="italic")
        table.add_row(Text(finding.severity, style=colours[finding.severity]), finding.check, found)
    (console if console.is_terminal else Console(width=160, file=console.file)).print(table)
    counts = {severity: sum(one.severity is severity for one in findings) for severity in Severity}
    console.print(f"\n{counts[Severity.PROBLEM]} problems, {counts[Severity.WARNING]} warnings", highlight=False)


def _shortened(findings: Sequence[Finding]) -> list[Finding]:
    """A cluster of a hundred sound nodes has no hundred rows to say so."""
    shown: list[Finding] = []
    for check in dict.fromkeys(finding.check for finding in findings):
        mine = [finding for finding in findings if finding.check == check]
        well = [finding for finding in mine if finding.severity is Severity.OK]
        shown += [finding for finding in mine if finding.severity is not Severity.OK] + well[:LISTED]
        if len(well) > LISTED:
            shown.append(ok(check, f"and {len(well) - LISTED} more; --json has them"))
    return shown
