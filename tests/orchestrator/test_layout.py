"""Every name in a storage stands in one file."""

import ast
from pathlib import Path

import pytest

from orchestrator import layout

ROOT = Path(__file__).parents[2]
HERE = "orchestrator/layout.py"


def names_of_a_storage() -> set[str]:
    """The constant names in layout.py: of folders and files."""
    tree = ast.parse((ROOT / HERE).read_text("utf-8"))
    joined = [node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    constants = {node.value for node in joined if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return constants | {layout.SPOOL_FILE, layout.MANIFEST, layout.EXPORT_MANIFEST, layout.EXPORT_UNFINISHED}


def literal_paths(source: str, names: set[str]) -> list[int]:
    """Lines on which one of the names is joined to a path as a literal: by `/`, or in a glob."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(op=ast.Div(), right=ast.Constant(value=str(name))) if name in names:
                found.append(node.lineno)
            case ast.BinOp(op=ast.Div(), left=ast.Constant(value=str(name))) if name in names:
                found.append(node.lineno)
            case ast.Call(func=ast.Attribute(attr="glob"), args=[ast.Constant(value=str(pattern))]):
                found += [node.lineno] * (pattern.rpartition("/")[2] in names)
    return found


def test_no_other_file_spells_a_name_of_a_storage() -> None:
    names = names_of_a_storage()
    assert {"cells", "spool", "report.json", "queue", "mlflow.db"} <= names
    files = [path for package in ("jobs", "orchestrator") for path in (ROOT / package).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if str(path.relative_to(ROOT)) != HERE
        for line in literal_paths(path.read_text("utf-8"), names)
    }
    assert not found, f"spell these in {HERE}: {sorted(found)}"


@pytest.mark.parametrize(
    "source", ['plan.folder / "report.json"', 'storage / "cells" / cell_id', 'storage.glob("*/report.json")']
)
def test_a_literal_name_is_found(source: str) -> None:
    assert literal_paths(source, names_of_a_storage())


@pytest.mark.parametrize("source", ['folder / "config.json"', "CellFolder(folder).spool", 'step / "loss"'])
def test_other_names_and_calls_are_none(source: str) -> None:
    assert not literal_paths(source, names_of_a_storage())


def test_the_newest_attempts_checkpoint_comes_first_whatever_its_step(tmp_path: Path) -> None:
    for step, attempt in ((30, 1), (10, 2), (20, 2)):
        layout.checkpoint_folder(tmp_path, step, attempt).mkdir()
    assert [path.name for path in layout.checkpoint_folders(tmp_path)] == [
        "step-00000020-attempt-002",
        "step-00000010-attempt-002",
        "step-00000030-attempt-001",
    ]
