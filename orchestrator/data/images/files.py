"""Image files as they come with data: found beside it, opened, and refused with a reason. The door to pillow."""

import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data.examples import Image

if TYPE_CHECKING:
    from PIL import Image as pillow

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
LARGEST_FILE = 32 << 20  # bytes
LARGEST_PICTURE = 1 << 25  # pixels: 8192 x 4096
_DEEP = ("I", "F")  # begins the modes of more than 8 bits a channel
_WHERE = "give a path relative to the folder of the data file"


class ImageError(ValueError):
    """A value names no image that can be used; the message goes behind what was found."""


@dataclass(frozen=True)
class ImageReader:
    """Reads the images that rows name: paths beside the data file, or bytes, as a table has them.

    `folder` is None where rows have no file. Where images are checked, every pixel is decoded: only so is a file found
    that was cut off.
    """

    folder: Path | None
    is_checked: bool

    def read(self, value: Any) -> Image:
        """The image of a path, of bytes, or of Hugging Face's `{"bytes": ..., "path": ...}`. Raises ImageError."""
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return read_image(value, self.is_checked)
        if not isinstance(value, str):
            raise ImageError("is neither a path nor the bytes of an image")
        if self.folder is None:
            raise ImageError("is a path, and these rows have no folder; store the bytes of images with them")
        return read_image(find_image(value, self.folder), self.is_checked)


def find_image(path: str, folder: Path) -> Path:
    """The file that a path names, which must be in the folder itself. Raises ImageError."""
    if "://" in path:
        raise ImageError(f"is an address; nothing is fetched: download the image and {_WHERE}")
    named = PurePosixPath(path)
    if not path or "\0" in path or not named.name:
        raise ImageError(f"is no path of a file; {_WHERE}")
    if named.is_absolute():
        raise ImageError(f"is an absolute path, which another machine may not have; {_WHERE}")
    if ".." in named.parts:
        raise ImageError(f"leads out of the data's folder; {_WHERE}, without '..'")
    file = folder / named
    try:
        home, real = folder.resolve(strict=True), file.resolve(strict=True)
    except FileNotFoundError:
        raise ImageError(f"does not exist in {folder}; correct the path, or put the image there") from None
    except (OSError, RuntimeError) as error:
        raise ImageError(f"cannot be found: {error}; correct the path") from None
    if not real.is_relative_to(home):
        raise ImageError("is a link that leads out of the data's folder; put the image itself there")
    return file


def read_image(source: Path | bytes, is_checked: bool) -> Image:
    """The image of a file, or of the content of one, decoded where it is checked. Raises ImageError."""
    data = content_of(source)
    try:
        with _opened(data) as picture:
            width, height = picture.size
            if width * height > LARGEST_PICTURE:
                raise ImageError(
                    f"has {width} x {height} pixels; at most {LARGEST_PICTURE:,} are read: make it smaller"
                )
            if picture.mode.startswith(_DEEP):
                raise ImageError(f"has more than 8 bits a channel (mode {picture.mode}); save it with 8")
            if is_checked:
                picture.draft("RGB", (1, 1))  # a JPEG is read to its end, and computed at an eighth of its size
                picture.load()
    except ImageError:
        raise
    except Exception as error:  # whatever a decoder says of bytes that it cannot read
        raise ImageError(f"cannot be decoded: {error}; repair the image, or remove the row") from None
    return Image(hashlib.sha256(data).hexdigest(), source, width, height)


def content_of(source: Path | bytes) -> bytes:
    """The bytes of an image. Raises ImageError."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            found = os.stat(source)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}; check what it is and its permissions") from None
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("is no file; give the path of an image")
        size = found.st_size
    if not size:
        raise ImageError("is empty; repair the image, or remove the row")
    if size > LARGEST_FILE:
        raise ImageError(f"has {size:,} bytes; at most {LARGEST_FILE:,} are read: make it smaller")
    try:
        return source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}; check what it is and its permissions") from None


def render(data: bytes, size: int, resample: str) -> np.ndarray:
    """(size, size, 3) uint8: the picture upright, without its alpha channel, as `resized` gives it."""
    from PIL import ImageOps

    with _opened(data) as picture:
        return resized(np.asarray(ImageOps.exif_transpose(picture).convert("RGB")), size, resample)


def resized(picture: np.ndarray, size: int, resample: str) -> np.ndarray:
    """(size, size, 3) uint8 of a picture (height, width, 3) uint8, RGB, by pillow's filter of that name.

    A square, whatever the picture was: what training sees, and what whoever asks the model afterwards must show it.
    """
    from PIL import Image as pillow

    filtered = pillow.Resampling[resample.upper()]
    return np.asarray(pillow.fromarray(picture).resize((size, size), filtered))


def _opened(data: bytes) -> "pillow.Image":
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        return pillow.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"is no image of a kind that is read: {', '.join(FORMATS)}") from None
