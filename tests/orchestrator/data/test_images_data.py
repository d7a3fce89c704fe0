"""Images as data: rows that show them, what is wrong with them, and what a plan says of them.

Over 300 lines: all that a row with images may be, or may not, is one file.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pictures import Row, asked, load, picture, png, seeing, shown, step, write
from PIL import Image as pillow

from backbones import registry
from jobs.cli.plan_tables import plan_document, print_plan
from orchestrator.data.examples import Example, Turn
from orchestrator.data.images import files
from orchestrator.data.sources import scan
from orchestrator.data.sources.containers import write_parquet
from orchestrator.data.sources.dataset import DataChangedError
from orchestrator.errors import SpecError
from orchestrator.planning.plan import Plan, load_comparison
from orchestrator.planning.sizes.flops import training_flops_per_image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.backbone_ids()
    monkeypatch.setitem(registry.SPECS, "tiny-eyes", seeing("tiny-qwen", "tiny-eyes"))


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_every_spelling_of_a_row_is_the_same_example(tmp_path: Path) -> None:
    one, two = (shown(tmp_path, number) for number in (1, 2))
    parts = [{"type": "image", "image": one}, {"type": "image", "path": two}, {"type": "text", "text": " Which? "}]
    rows = [
        asked("Which?", images=[one, two]),
        asked(parts),
        asked([parts[2], *parts[:2]]),
        asked([{"type": "image"}, {"type": "image"}, parts[2]]) | {"images": [one, two]},
        asked([parts[1], parts[2]], image=one),
    ]
    write(tmp_path / "train.jsonl", rows)
    found = list(load(tmp_path).read())
    assert [[image.source for image in example.images] for example in found] == [[tmp_path / one, tmp_path / two]] * 5
    assert {example.turns for example in found} == {found[0].turns}
    assert found[0].turns[0].content == "Which?"
    assert len({example.content_hash for example in found}) == 1


def test_rows_of_a_robot_show_what_it_sees(tmp_path: Path) -> None:
    rows = [step(tmp_path, 0), step(tmp_path, 0, image=None, images=[shown(tmp_path, 0), shown(tmp_path, 1)])]
    write(tmp_path / "train.jsonl", rows)
    found = list(load(tmp_path, format="actions").read())
    assert [len(example.images) for example in found] == [1, 2]
    assert (found[0].images[0].width, found[0].images[0].height) == (20, 12)
    camera = {key: value for key, value in step(tmp_path, 0).items() if key != "image"} | {"camera": "frames/0.png"}
    write(tmp_path / "other.jsonl", [camera])
    [other] = load(tmp_path, "other.jsonl", format="actions", columns={"image": "camera"}).read()
    assert other == found[0]


def test_a_table_holds_bytes_or_paths_and_its_content_is_that_of_the_files(tmp_path: Path) -> None:
    rows = [step(tmp_path, number) for number in range(4)]
    write(tmp_path / "train.jsonl", rows)
    expected = load(tmp_path, format="actions")
    stored = [
        {"bytes": (tmp_path / rows[0]["image"]).read_bytes(), "path": "0.png"},
        {"bytes": (tmp_path / rows[1]["image"]).read_bytes(), "path": None},
        {"bytes": None, "path": rows[2]["image"]},
        {"bytes": (tmp_path / rows[3]["image"]).read_bytes(), "path": "/elsewhere/3.png"},
    ]
    write_parquet(tmp_path / "t.parquet", [row | {"image": one} for row, one in zip(rows, stored, strict=True)])
    found = load(tmp_path, "t.parquet", format="actions")
    assert (found.digest, found.pictures) == (expected.digest, expected.pictures)


def test_content_is_the_images_bytes_and_not_where_they_are(tmp_path: Path) -> None:
    shown(tmp_path, 1), shown(tmp_path, 2)
    shutil.copy(tmp_path / "frames" / "1.png", tmp_path / "copy.png")
    write(
        tmp_path / "train.jsonl", [asked("Q", images=[name]) for name in ("frames/1.png", "copy.png", "frames/2.png")]
    )
    first, copied, other = load(tmp_path).read()
    assert first.content_hash == copied.content_hash != other.content_hash
    without = replace(first, turns=(replace(first.turns[0], images=()), first.turns[1]))
    assert without.content_hash == Example("g", (Turn("user", "Q"), Turn("assistant", "A cat."))).content_hash


def test_parts_of_text_alone_are_a_text(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [asked([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])])
    [found] = load(tmp_path).read()
    assert (found.turns[0], load(tmp_path).pictures) == (Turn("user", "a\nb"), None)


def cut_off(folder: Path, kind: str) -> str:
    stream = BytesIO()
    pillow.fromarray(picture(0, 200, 120)).save(stream, kind)
    (folder / f"cut.{kind}").write_bytes(stream.getvalue()[: len(stream.getvalue()) * 2 // 3])
    return f"cut.{kind}"


def linked(folder: Path) -> str:
    outside = folder.parent / f"{folder.name}-outside.png"
    outside.write_bytes(png(0))
    (folder / "link.png").symlink_to(outside)
    return "link.png"


def made(name: str, content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return name

    return make


def deep(folder: Path) -> str:
    pillow.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    return "deep.png"


def large(folder: Path) -> str:
    pillow.new("1", (8200, 4100)).save(folder / "large.png")
    return "large.png"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.png")
    return "pipe.png"


BAD_FILES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: "frames/9.png", 'is "frames/9.png", which does not exist in'),
    (lambda folder: "../x.png", "leads out of the data's folder; give a path relative to the folder of the data file"),
    (lambda folder: str(folder / "x.png"), "is an absolute path, which another machine may not have; give a path"),
    (lambda folder: "https://a.b/x.png", "is an address; nothing is fetched: download the image"),
    (lambda folder: "", 'is "", which is no path of a file'),
    (lambda folder: 5, "is 5, which is neither a path nor the bytes of an image"),
    (lambda folder: {"bytes": None, "path": None}, "holds bytes and is neither a path"),
    (lambda folder: ".", "is no path of a file"),
    (linked, "is a link that leads out of the data's folder; put the image itself there"),
    (lambda folder: cut_off(folder, "png"), "cannot be decoded: image file is truncated"),
    (lambda folder: cut_off(folder, "jpeg"), "cannot be decoded: image file is truncated"),
    (made("note.png", b"no image at all"), "is no image of a kind that is read: PNG, JPEG"),
    (made("empty.png", b""), "is empty; repair the image, or remove the row"),
    (made("x.png", b"\0" * (files.LARGEST_FILE + 1)), "has 33,554,433 bytes; at most 33,554,432 are read: make it"),
    (large, "has 8200 x 4100 pixels; at most 33,554,432 are read: make it smaller"),
    (deep, "has more than 8 bits a channel (mode I;16); save it with 8"),
    (pipe, "is no file; give the path of an image"),
]


@pytest.mark.parametrize("number", range(len(BAD_FILES)))
def test_an_image_that_cannot_be_used_is_named_with_its_place_and_a_remedy(tmp_path: Path, number: int) -> None:
    make, message = BAD_FILES[number]
    good = shown(tmp_path, 0)
    file = write(tmp_path / "train.jsonl", [asked("Q", images=[good]), asked("Q", images=[good, make(tmp_path)])])
    with pytest.raises(SpecError) as caught:
        load(tmp_path)
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.path) == (str(file), 2, "messages.0.images.1")
    assert problem.message.startswith("'messages.0.images.1' ")
    assert message in problem.message


GOOD = [{"type": "image", "path": "frames/0.png"}, {"type": "text", "text": "Q"}]
ASSISTANT = {
    "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "image": "frames/0.png"}]
}
BAD_ROWS: list[tuple[Row, str, str]] = [
    (
        asked("Q", images=[]),
        "messages.0.images",
        "'messages.0.images' is []; it must list paths or images, at least one",
    ),
    (asked("Q", images="frames/0.png"), "messages.0.images", "it must list paths or images"),
    (asked("Q", images=["frames/0.png"], image="frames/0.png"), "messages.0.images", "are both there; list all in"),
    (ASSISTANT, "messages.1", "'messages.1' has the role assistant and an image; only users show them: move it"),
    (asked([*GOOD, {"type": "image"}]), "messages.0.content.2", "has no image; add its path, or list it in the row's"),
    (asked([*GOOD, {"type": "video"}]), "messages.0.content.2", 'is {"type": "video"}; write {"type": "text"'),
    (asked([*GOOD, "Q"]), "messages.0.content.2", 'is "Q"; write {"type": "text"'),
    (asked(GOOD[:1]), "messages.0.content", "'messages.0.content' has no text; add a part with some"),
    (asked([]), "messages.0.content", "'messages.0.content' has no text; add a part with some"),
    (asked([GOOD[0], {"type": "text", "text": " "}]), "messages.0.content.1.text", "it must be text that is not empty"),
    (asked(GOOD) | {"images": ["frames/0.png"]}, "images", "the row has 1 images and its messages show 0 of them; put"),
    (asked("Q"), "images", "the row has no image, and those before it have some; every row needs one, or none"),
]


@pytest.mark.parametrize(("row", "path", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_place_and_a_remedy(tmp_path: Path, row: Row, path: str, message: str) -> None:
    shown(tmp_path, 0)
    file = write(tmp_path / "train.jsonl", [asked(GOOD), row])
    with pytest.raises(SpecError) as caught:
        load(tmp_path)
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.path) == (str(file), 2, path)
    assert message in problem.message


def test_rows_of_another_kind_in_another_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", [asked("Q")])
    file = write(tmp_path / "data" / "b.jsonl", [asked("Q", image=shown(tmp_path / "data", 0))])
    with pytest.raises(SpecError, match="the row has an image, and those before it have none") as caught:
        load(tmp_path, "data")
    assert [(problem.file, problem.line) for problem in caught.value.problems] == [(str(file), 1)]


def test_a_picture_that_was_changed_is_seen_by_the_next_plan_and_not_taken_for_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [asked("Q", image=shown(tmp_path, number)) for number in range(3)])
    planned = load(tmp_path)
    assert load(tmp_path) == planned
    (tmp_path / "frames" / "1.png").write_bytes(png(9))
    with pytest.raises(DataChangedError, match=r"train.jsonl changed since the job was planned"):
        list(planned.read())
    assert load(tmp_path).digest != planned.digest
    (tmp_path / "frames" / "1.png").unlink()
    with pytest.raises(SpecError, match=r"does not exist in .*; correct the path, or put the image there"):
        load(tmp_path)


def test_pictures_are_decoded_once_for_all_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", [asked("Q", image=shown(tmp_path, 0))])
    planned = load(tmp_path)
    monkeypatch.setattr(scan, "rows_of", lambda span: pytest.fail("read again"))
    assert load(tmp_path) == planned


# --- Plans ------------------------------------------------------------------------------------------------------------


def plan(folder: Path, train: list[Row], validation: list[Row], **changes: Any) -> Plan:
    spec: dict[str, Any] = {
        "name": "seen",
        "backbones": changes.pop("backbones", ["tiny-eyes"]),
        "storage": str(folder / "storage"),
        "recipe": {
            "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "sequence_length": 128,
            "global_batch_size": 4,
            "budget": {"kind": "steps", "amount": 2},
        },
    }
    spec["recipe"] |= changes
    write(folder / "train.jsonl", train)
    write(folder / "validation.jsonl", validation)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return load_comparison(folder / "spec.yaml")


def test_a_plan_says_what_images_there_are_and_what_they_cost(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [asked("Q", images=[shown(tmp_path, 0), shown(tmp_path, 1, width=30)]), asked("R", image="frames/0.png")]
    held_out = asked("S", image=shown(tmp_path, 5, width=4))
    planned = plan(tmp_path, [*rows, held_out], [held_out])
    assert plan_document(planned)["images"] == {
        "train": 3,  # without what is held out
        "validation": 1,
        "most_per_example": 2,
        "smallest": [4, 12],
        "largest": [30, 12],
        "sides": {"tiny-eyes": 8},
        "tokens": {"tiny-eyes": 4},
        "flops": {"tiny-eyes": training_flops_per_image(planned.backbones[0])},
    }
    print_plan(planned)
    assert (
        "3 in training, 1 held out; 4 x 12 to 30 x 12 pixels, at most 2 an example; each is 4 tokens at 8 pixels"
        in (capsys.readouterr().out)
    )


def test_every_backbone_sees_or_no_row_has_an_image(tmp_path: Path) -> None:
    images = [asked("Q", image=shown(tmp_path, 0))]
    with pytest.raises(
        SpecError, match="whose rows have images, and tiny-qwen reads text alone; take the backbone out"
    ):
        plan(tmp_path, images, [asked("R", image="frames/0.png")], backbones=["tiny-eyes", "tiny-qwen"])
    with pytest.raises(SpecError, match="whose rows have no images, and tiny-eyes learns from rows that have some"):
        plan(tmp_path, [asked("Q")], [asked("R")], backbones=["tiny-qwen", "tiny-eyes"])
    with pytest.raises(SpecError, match=r"has images, and 'validation.jsonl' has none; train on and hold out rows of"):
        plan(tmp_path, images, [asked("R")])
    registry.SPECS["tiny-eyes"] = seeing("tiny-qwen", "tiny-eyes", tokens_per_image=8)
    with pytest.raises(
        SpecError, match=r"'recipe.sequence_length' is 8, but one image takes 8 tokens of tiny-eyes, and"
    ):
        plan(tmp_path, images, [asked("R", image="frames/0.png")], sequence_length=8)
    registry.SPECS["tiny-eyes"] = seeing("tiny-qwen", "tiny-eyes", packs=False)
    with pytest.raises(SpecError, match=r"'recipe.packing' is true, but images and prompts that share a row of tiny"):
        plan(tmp_path, images, [asked("R", image="frames/0.png")])
    assert plan(tmp_path, images, [asked("R", image="frames/0.png")], packing=False).cells
