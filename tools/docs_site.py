"""What mkdocs cannot do for the site by itself: pages of the commands and of spec files, links that leave docs/.

mkdocs calls the functions by their names (`hooks` in mkdocs.yml).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by itself

from jobs.cli.schemas import spec_schema  # noqa: E402

LEAVES = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)#]*\)")  # only what climbs out of docs/, or to a page beside a folder
COMMANDS_HEAD = (
    "Generated from the commands themselves. Exit codes: 0 well; 1 a run did not succeed, and the report says why; 2 "
    "the input is wrong and nothing started; 130 or 143 interrupted, and the same command goes on. Those of `diff`: 0 "
    "nothing differs, 1 something does, 2 one of the two cannot be read."
)
SPEC_HEAD = """# Spec files

Generated from the schemas that check them; `backbone schema` and `backbone schema finetune` print these as JSON.
A key is required, or has a default, or is a mapping whose keys have. An unknown key is an error with its line.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are written from the code."""
    files.append(File.generated(config, "reference/cli.md", content=commands_page()))
    files.append(File.generated(config, "reference/spec.md", content=spec_page()))
    return files


def on_page_markdown(markdown: str, **more: Any) -> str:
    """A link to a file of the repository that is no page becomes its name: the site has no such file."""
    page = Path(more["page"].file.src_path)
    docs = Path(more["config"]["docs_dir"])

    def resolved(link: re.Match[str]) -> str:
        target = (docs / page.parent / link[0].rpartition("](")[2].rstrip(")")).resolve()
        return link[0] if target.is_relative_to(docs) else link[1]

    return LEAVES.sub(resolved, markdown)


def commands_page() -> str:
    """What typer says of every command."""
    words = [
        sys.executable,
        "-m",
        "typer",
        "jobs.cli.app",
        "utils",
        "docs",
        "--name",
        "backbone",
        "--title",
        "Commands",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    written = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return written.replace("\n\n", f"\n\n{COMMANDS_HEAD}\n\n", 1)


def spec_page() -> str:
    """A table of every key, for each kind of spec."""
    parts = [SPEC_HEAD]
    for kind in ("comparison", "finetune"):
        schema = spec_schema(kind)
        rows = "\n".join(_rows(schema, schema.get("$defs") or {}, ""))
        parts.append(
            f"## {kind.capitalize()}\n\n{schema['description']}\n\n| key | may be | default |\n|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)


def _rows(schema: Any, named: Any, prefix: str) -> Iterator[str]:
    for key, one in schema["properties"].items():
        inner = _inner(one, named)
        default = f"`{json.dumps(one['default'])}`" if "default" in one and inner is None else ""
        required = "required" if key in schema.get("required", ()) else default
        yield f"| `{prefix}{key}` | {_kind(one, named)} | {required} |"
        if inner is not None:
            yield from _rows(inner, named, f"{prefix}{key}.")


def _inner(one: Mapping[str, Any], named: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The mapping that a key holds, where it may hold one that has keys of its own."""
    for choice in one.get("anyOf", [one]):
        found = named.get(str(choice.get("$ref", "")).rpartition("/")[2], choice)
        if "properties" in found:
            return dict(found)
    return None


def _kind(one: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """What a key may be, in words."""
    if "anyOf" in one:
        return " or ".join(dict.fromkeys(_kind(choice, named) for choice in one["anyOf"]))
    if "$ref" in one:
        found = named[one["$ref"].rpartition("/")[2]]
        return str(found.get("description", "a mapping")).split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    if "enum" in one:
        return " or ".join(f"`{value}`" for value in one["enum"])
    if "const" in one:
        return f"`{json.dumps(one['const'])}`"
    words = {
        "object": "a mapping",
        "array": "a list",
        "string": "text",
        "integer": "a whole number",
        "number": "a number",
    }
    kind = words.get(
        one.get("type", ""), {"boolean": "true or false", "null": "nothing"}.get(one.get("type", ""), "any")
    )
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [
        f"{text} {one[name]:{',d' if isinstance(one[name], int) else ',g'}}"
        for name, text in bounds.items()
        if name in one
    ]
    items = f" of {_kind(one['items'], named)}" if isinstance(one.get("items"), dict) else ""
    return kind + items + (f" ({', '.join(limits)})" if limits else "")
