"""Images for tests: a tiny backbone that sees, pictures, rows and examples that show them."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pillow

from backbones.registry import get_spec
from backbones.spec import BackboneSpec, Vision, VisionTower
from orchestrator.data.examples import Example, Turn
from orchestrator.data.images.files import read_image
from orchestrator.data.sources.dataset import Dataset
from orchestrator.data.sources.load import load_split
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Data

Row = dict[str, Any]
SIZE = 8
VISION = Vision((VisionTower(16, 32, 2, 2, 4, 1000, "ViTLayer"),), SIZE, 4, 10, (0.5,) * 3, (0.5,) * 3)


def seeing(backbone_id: str, name: str, **vision: Any) -> BackboneSpec:
    return replace(get_spec(backbone_id), backbone_id=name, vision=replace(VISION, **vision))


def picture(number: int, width: int = 20, height: int = 12) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def png(number: int, **size: int) -> bytes:
    stream = BytesIO()
    pillow.fromarray(picture(number, **size)).save(stream, "PNG")
    return stream.getvalue()


def shown(folder: Path, number: int, **size: int) -> str:
    """Writes an image; its path as rows name it."""
    (folder / "frames").mkdir(exist_ok=True)
    (folder / "frames" / f"{number}.png").write_bytes(png(number, **size))
    return f"frames/{number}.png"


def write(file: Path, rows: list[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def load(folder: Path, name: str = "train.jsonl", **data: Any) -> Dataset:
    source = SpecSource(str(folder / "spec.yaml"), "", {}, {"": 1})
    return load_split(source, "train", Data(train=name, validation=name, **data)).dataset


def asked(content: Any, **more: Any) -> Row:
    return {"messages": [{"role": "user", "content": content, **more}, {"role": "assistant", "content": "A cat."}]}


def step(folder: Path, number: int, **changes: Any) -> Row:
    action = np.random.default_rng(number).normal(size=3).round(6).tolist()
    row = {"episode": number // 2, "instruction": "Lift", "action": action, "image": shown(folder, number)}
    return {key: value for key, value in (row | changes).items() if value is not None}


def talk(number: int, question: str = "What?", images: int = 1) -> Example:
    some = [png(number + place) for place in range(images)]
    return Example("g", (Turn("user", question, tuple(read_image(one, True) for one in some)), Turn("assistant", "A")))
