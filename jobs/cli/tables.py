"""What the commands print: tables for people. No torch, ray, mlflow or transformers."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.formats import compact, money, significant
from jobs.results.documents import find_verdict, metric_of

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec
    from jobs.results.documents import Report

out = Console(soft_wrap=False)
SCORE_HEADINGS = {  # by the verdict's metric
    "bits_per_byte": "held-out bits/byte",
    "item_bits_per_byte": "bits/byte, mean of items",
    "rollout_success": "failed episodes",
}


def print_backbones(specs: "list[BackboneSpec]") -> None:
    """A row for each registered backbone."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "family", "parameters", "context", "prompt", "licence", "revision", "hub path"):
        table.add_column(name, justify="right" if name in ("parameters", "context") else "left", no_wrap=True)
    for spec in specs:
        table.add_row(
            spec.backbone_id,
            spec.family,
            abbreviated(spec.parameters),
            f"{spec.context_length:,}",
            spec.prompt_builder.removesuffix("PromptBuilder"),
            spec.licence + (" (gated)" if spec.gated else ""),
            (spec.revision or "local")[:8] if spec.is_pinned else "not pinned",
            spec.hf_hub_path,
        )
    print_wide(table)
    print("\nNot pinned: the hub's main branch, since its revision is not recorded here.")
    print("Any other causal LM by reference: hf:ORG/NAME@REVISION from the hub, hf:./FOLDER from a folder.")


def print_ranking(document: "Report") -> None:
    """The ranking of a report, or a finetune before and after."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    verdict = find_verdict(document)
    score = SCORE_HEADINGS[metric_of(verdict)]
    for name in ("rank", "backbone", score, "by seed"):
        table.add_column(name, justify="right" if name == score else "left", no_wrap=True)
    for entry in document["ranking"]:
        seeds = "  ".join(f"{seed}: {value:.4f}" for seed, value in entry["seeds"].items())
        table.add_row(str(entry["rank"]), entry["backbone_id"], f"{entry['score']:.4f}", seeds)
    if document["ranking"]:
        print_wide(table)
    verdict = find_verdict(document)
    for backbone_id, reasons in ({} if verdict is None else verdict.get("ruled_out", {})).items():
        print(f"ruled out: {backbone_id}: {'; '.join(reasons)}")
    for cell in document["cells"] if document["comparison"]["kind"] == "finetune" else []:
        before, after = (cell["metrics"].get(key) for key in ("val_bits_per_byte_before", "val_bits_per_byte"))
        if before is not None:
            print(f"{cell['backbone_id']}: held-out bits per byte {before:.4f} before, {after:.4f} after")
    if (costs := document.get("costs")) is not None and costs["device_hours"]:
        priced = f", {money(costs['cost'], costs['currency'])}" if costs["currency"] else ""
        print(f"spent: {significant(costs['device_hours'])} {costs['device']} hours{priced}, every attempt counted")
    _print_tasks(document)
    export = document["comparison"].get("export")
    if export:
        print(f"export: {export}")


def _print_tasks(document: "Report") -> None:
    """A row for each figure that a task gave of a cell."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cell", "task", "value"):
        table.add_column(name, justify="right" if name == "value" else "left", no_wrap=True)
    for cell in document["cells"]:
        for name, value in cell["metrics"].items():
            if name.startswith("task/"):
                table.add_row(cell["cell_id"], name.removeprefix("task/"), compact(value))
    if table.row_count:
        print_wide(table)


def print_wide(table: Table) -> None:
    """Tables are not squeezed where there is no terminal: a log or a pipe gets whole names."""
    console = out if out.is_terminal else Console(width=200)
    console.print(table)


def public(spec: "BackboneSpec") -> dict[str, object]:
    """A spec as plain data, without the id that it is listed under."""
    return {key: value for key, value in asdict(spec).items() if key != "backbone_id"}


def abbreviated(number: int) -> str:
    """`6.74B`: three digits and a unit."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:  # 999.9M is 1B, not 1e+03M
            return f"{number / size:.3g}{unit}"
    return str(number)
