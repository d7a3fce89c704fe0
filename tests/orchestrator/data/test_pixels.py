"""Pixels: made once of every image, in parts, and handed to whoever trains or is scored on its example."""

import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import SIZE, VISION, load, picture, png, seeing, shown, step, talk
from PIL import Image as pillow

from backbones.registry import load_codec
from backbones.spec import BackboneSpec
from orchestrator.data.examples import Example, Turn
from orchestrator.data.feed import Feed
from orchestrator.data.images import files
from orchestrator.data.images.files import resized
from orchestrator.data.images.pixels import load_pixels
from orchestrator.data.images.rendering import Rendering, join_pixels, render_part
from orchestrator.data.parity import check_parity, compare_tokenizers
from orchestrator.data.prepare import Prepared, load_tokenized, prepare, splits_of
from orchestrator.data.sources.containers import write_parquet
from orchestrator.data.sources.dataset import DataChangedError, HeldBlock, held
from orchestrator.errors import SpecError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- Pixels -----------------------------------------------------------------------------------------------------------


def prepared(
    folder: Path, train: list[Example], validation: list[Example], spec: BackboneSpec | None = None, length: int = 64
) -> Prepared:
    spec = spec or seeing("tiny-qwen", "tiny-eyes")
    codec = load_codec(spec, max_length=length)
    return prepare(spec.backbone_id, codec, held("t", train), held("v", validation), folder, spec.vision)


def test_pixels_are_pillows_of_every_image_once_and_follow_their_examples(tmp_path: Path) -> None:
    examples = [talk(0, images=2), talk(1), talk(0, "And?")]
    data = load_tokenized(prepared(tmp_path, examples, examples[:1]).train_file)
    square = [
        np.asarray(pillow.fromarray(picture(number)).resize((SIZE, SIZE), pillow.Resampling.BICUBIC))
        for number in (0, 1)
    ]
    assert data.pixels is not None
    assert np.array_equal(data.pixels.images, square)
    for place, expected in enumerate([square, square[1:], square[:1]]):
        assert np.array_equal(data.images(place), expected)
    with pytest.raises(ValueError, match="read-only"):
        data.pixels.images[0] = 0


def test_what_a_robot_is_shown_afterwards_are_the_pixels_that_were_learned_from(tmp_path: Path) -> None:
    data = load_tokenized(prepared(tmp_path, [talk(3)], [talk(4)]).train_file)
    images = data.images(0)
    assert images is not None
    assert np.array_equal(images[0], resized(picture(3), SIZE, VISION.resample))


def test_a_photo_is_turned_upright_and_loses_its_transparency() -> None:
    stream = BytesIO()
    exif = pillow.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    pillow.fromarray(picture(0)).save(stream, "PNG", exif=exif)
    assert np.array_equal(
        files.render(stream.getvalue(), SIZE, "bicubic"), resized(np.rot90(picture(0), -1), SIZE, "bicubic")
    )
    stream = BytesIO()
    pillow.fromarray(np.dstack([picture(0), picture(1)[..., 0]])).save(stream, "PNG")
    assert np.array_equal(files.render(stream.getvalue(), SIZE, "bicubic"), resized(picture(0), SIZE, "bicubic"))


def test_tokenizers_share_pixels_and_sizes_do_not(tmp_path: Path) -> None:
    train, validation = [talk(0)], [talk(1)]
    for spec in (seeing("tiny-qwen", "a"), seeing("tiny-mistral", "b"), seeing("tiny-mistral", "c", image_size=4)):
        prepared(tmp_path, train, validation, spec)
    stores = [folder for folder in tmp_path.iterdir() if (folder / "images.npy").exists()]
    assert sorted(np.load(store / "images.npy").shape[1] for store in stores) == [4, 4, 8, 8]
    assert len(list(tmp_path.iterdir())) == 4 + 6


def test_a_file_that_is_another_by_now_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / shown(tmp_path, 0)
    example = Example("g", (Turn("user", "Q", (files.read_image(file, True),)), Turn("assistant", "A")))
    file.write_bytes(png(1))
    with pytest.raises(DataChangedError, match=r"0.png changed since the job was planned"):
        prepared(tmp_path / "storage", [example], [example])


@settings(max_examples=30)
@given(parts=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=4))
def test_however_images_are_parted_each_is_there_once_and_found(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("pixels")
    blocks = tuple((HeldBlock(tuple(talk(number) for number in part)),) for part in parts)
    rendering = Rendering(folder / "whole", blocks, 4, "nearest")
    join_pixels(rendering, [render_part(rendering, number, folder) for number in range(len(parts))])
    pixels = load_pixels(rendering.folder)
    numbers = list(dict.fromkeys(number for part in parts for number in part))
    assert np.array_equal(pixels.images, [resized(picture(number), 4, "nearest") for number in numbers])
    wanted = [number for part in parts for number in part]
    digests = np.array([bytes.fromhex(talk(number).images[0].sha256) for number in wanted], "S32")
    assert np.array_equal(pixels.of(digests), [resized(picture(number), 4, "nearest") for number in wanted])


def test_parts_of_a_file_give_the_arrays_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.data.prepare.SEEN_A_SPAN", 1)
    rows = [step(tmp_path, number % 3, episode=number) for number in range(6)]
    write_parquet(tmp_path / "one.parquet", rows)
    (tmp_path / "some").mkdir()
    shutil.copytree(tmp_path / "frames", tmp_path / "some" / "frames")
    for number in range(3):
        write_parquet(tmp_path / "some" / f"{number}.parquet", rows[2 * number : 2 * number + 2])
    spec = seeing("tiny-qwen", "tiny-eyes")
    codec = load_codec(spec, max_length=64)
    found = []
    for name in ("one.parquet", "some"):
        data = load(tmp_path, name, format="actions")
        split, _ = splits_of(codec, data, data, tmp_path / name.partition(".")[0] / "arrays", spec.vision)
        split.folder.parent.mkdir(parents=True)
        assert len(split.parts) == (1 if name == "one.parquet" else 3)
        found.append(load_tokenized(prepare("x", codec, data, data, split.folder.parent, spec.vision).train_file))
    one, other = found
    assert [one.images(place).tolist() for place in range(6)] == [other.images(place).tolist() for place in range(6)]  # type: ignore[union-attr]
    assert np.array_equal(one.input_ids, other.input_ids)
    assert len(one.pixels.images) == 3  # type: ignore[union-attr]


# --- Who is handed them -----------------------------------------------------------------------------------------------


def test_a_rank_is_fed_each_example_with_its_images(tmp_path: Path) -> None:
    examples = [talk(number, "What? " * (number % 4 + 1), images=number % 2 + 1) for number in range(10)]
    data = load_tokenized(prepared(tmp_path, examples, examples[:1]).train_file)
    feed = Feed(data, np.arange(10), "digest", 0, 2, 64, packing=True)
    work = next(feed.steps())
    for row, numbers in zip(feed.examples(work.rows), work.rows, strict=True):
        for example, number in zip(row, numbers, strict=True):
            expected = [resized(picture(number + place), SIZE, "bicubic") for place in range(number % 2 + 1)]
            assert example.images is not None
            assert np.array_equal(example.images, expected)
            assert len(example.input_ids) == data.lengths[number]


@pytest.mark.parametrize("rule", ["intersection", "per_backbone"])
def test_what_is_too_long_with_its_images_is_dropped_and_never_cut(tmp_path: Path, rule: str) -> None:
    examples = [talk(0), talk(1, images=8), talk(2, "Why? " * 40)]
    one = prepared(tmp_path, examples, [*examples[:2], talk(5)], length=32)
    parity = compare_tokenizers([one], 32, rule)
    assert parity.kept["tiny-eyes"].tolist() == [0]
    assert parity.scored.tolist() == [0, 2]
    assert parity.dropped == {"too_long": 2, "no_target": 0, "does_not_round_trip": 0, "held_out_too_long": 1}
    with pytest.raises(SpecError, match=r"no held-out item fits recipe.sequence_length 16 whole, and none"):
        check_parity(replace(parity, scored=parity.scored[:0]), "spec.yaml", 16)
