"""LeRobotDataset v3: folders of steps in Parquet and cameras in video files, or in the tables. The door to PyAV.

`meta/info.json` says how files are called, `meta/episodes/` where the rows and frames of each episode are. A frame of a
video is what a PPM file of it holds: its content is its pixels, so the same pixels in a table are the same image.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from orchestrator.data.sources.containers import LEROBOT, Part, Rows, Span
from orchestrator.data.sources.rows import RowError
from orchestrator.errors import InputError

INFO = "meta/info.json"
STEPS_OF_A_SPAN = 200  # at least, but for the last


class LeRobotError(InputError):
    """A folder is no LeRobotDataset that can be read here."""


@dataclass(frozen=True)
class Recordings:
    """A dataset's folder, read no further than its metadata."""

    folder: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """`meta/info.json`. Raises LeRobotError for other versions, and OSError."""
        try:
            info = json.loads((self.folder / INFO).read_bytes())
            version, features = str(info["codebase_version"]), info["features"]
            cameras = [name for name, one in features.items() if one["dtype"] in ("image", "video")]
            _ = float(info["fps"]), int(info["total_episodes"])
            paths = [info["data_path"].format(chunk_index=0, file_index=0)]
            if info.get("video_path"):
                paths.append(info["video_path"].format(video_key="camera", chunk_index=0, file_index=0))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LeRobotError(f"{INFO} is not LeRobot's: {error!r}; repair the dataset") from None
        for path in map(PurePosixPath, paths):
            if path.is_absolute() or ".." in path.parts:
                raise LeRobotError(f"{INFO} names {path}, which is not in the folder; repair the dataset")
        if not version.startswith("v3."):
            convert = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
            raise LeRobotError(f"it is a LeRobotDataset {version}, and v3.0 is read; convert it with {convert}")
        if any(features[name]["dtype"] == "video" for name in cameras) and importlib.util.find_spec("av") is None:
            raise LeRobotError("its cameras are videos; run pip install 'backbone-orchestrator[robot]'")
        return {**info, "cameras": cameras}

    @cached_property
    def tasks(self) -> dict[int, str]:
        """By number, what the robot was told."""
        table = _read(self.folder / "meta" / "tasks.parquet")
        texts = [name for name in table.schema.names if name != "task_index"]
        if len(texts) != 1 or "task_index" not in table.schema.names:
            raise LeRobotError("meta/tasks.parquet has no 'task_index' beside one column of texts; repair the dataset")
        return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))

    def episodes(self, first: int, last: int) -> list[dict[str, Any]]:
        """The metadata of some episodes, in order, without statistics. Raises OSError."""
        found: list[dict[str, Any]] = []
        for file in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            names = [name for name in _schema(file) if not name.startswith(("stats/", "meta/"))]
            within = [("episode_index", ">=", first), ("episode_index", "<", last)]
            found += _read(file, names, within).to_pylist()
        return sorted(found, key=lambda one: int(one["episode_index"]))

    def file(self, template: str, episode: Mapping[str, Any], where: str, **names: str) -> Path:
        """The file with an episode's rows or frames. Raises LeRobotError."""
        try:
            place = {one: int(episode[f"{where}/{one}"]) for one in ("chunk_index", "file_index")}
        except KeyError as error:
            raise LeRobotError(f"meta/episodes has no {error}; repair the dataset") from None
        return self.folder / str(self.info[template]).format(**names, **place)


def part_of_lerobot(folder: Path, first: int = 0, last: int | None = None) -> Part:
    """Some episodes of a folder as it is now. Raises LeRobotError and OSError."""
    recordings = Recordings(folder)
    total = int(recordings.info["total_episodes"])
    last = total if last is None else last
    if not 0 <= first < last <= total:
        raise LeRobotError(f"it has {total} episodes; name some of them, such as #0:{total}")
    files = sorted(file for name in ("meta", "data", "videos") for file in (folder / name).rglob("*") if file.is_file())
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    identity: list[str | int] = [str(folder), first, last]
    for name, found in stats:
        identity += [name, found.st_size, found.st_mtime_ns]
    size = sum(found.st_size for _, found in stats)
    return Part(f"{LEROBOT}{folder}", tuple(identity), size, lambda: _spans(recordings, first, last))


def _spans(recordings: Recordings, first: int, last: int) -> list[Span]:
    spans, start, steps = [], first, 0
    for one in recordings.episodes(first, last):
        steps += int(one["length"])
        end = int(one["episode_index"]) + 1
        if steps >= STEPS_OF_A_SPAN or end == last:
            spans.append(Span(f"{LEROBOT}{recordings.folder}", start, end))
            start, steps = end, 0
    return spans


def first_step(span: Span) -> int:
    """The number of a span's first row, from 1 over all episodes."""
    [one] = Recordings(_folder(span)).episodes(span.start, span.start + 1)
    return 1 + int(one["dataset_from_index"])


def steps_of(span: Span, columns: Mapping[str, str]) -> Rows:
    """The steps of some episodes as rows of `format: actions`; `columns` are the recipe's. Raises OSError.

    Every camera is shown, in the order of `info`, unless `columns.image` names one.
    """
    recordings, number = Recordings(_folder(span)), 0
    for episode in recordings.episodes(span.start, span.end):
        for row in _steps(recordings, episode, columns):
            yield number, row
            number += 1


def _steps(recordings: Recordings, episode: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[Any]:
    info, index = recordings.info, int(episode["episode_index"])
    file = recordings.file("data_path", episode, "data")
    cameras = [columns["image"]] if columns.get("image") in info["cameras"] else info["cameras"]
    videos = [name for name in cameras if info["features"][name]["dtype"] == "video"]
    names = {"action", "timestamp", "task_index", *columns.values(), *cameras} & set(_schema(file))
    steps = _read(file, sorted(names), [("episode_index", "==", index)]).sort_by("timestamp").to_pylist()
    times = np.array([step["timestamp"] for step in steps])
    frames = {name: _frames(recordings, episode, name, times) for name in videos}
    for step in steps:
        pictures = {name: next(frames[name]) if name in frames else step[name] for name in cameras}
        if fault := next((one for one in pictures.values() if isinstance(one, RowError)), None):
            yield fault
            continue
        told = {"instruction": recordings.tasks.get(step["task_index"]), "episode": index}
        shown = pictures if "image" in columns else {"images": [*pictures.values()]} if cameras else {}
        yield {key: value for key, value in {**told, **step, **shown}.items() if value is not None}


def _frames(
    recordings: Recordings, episode: Mapping[str, Any], camera: str, times: np.ndarray
) -> Iterator[dict[str, bytes] | RowError]:
    """A camera's frames at some times of an episode, seconds that rise; from the first that is missing, why it is."""
    prefix = f"videos/{camera}"
    file = recordings.file("video_path", episode, prefix, video_key=camera)
    half = 0.5 / float(recordings.info["fps"])
    wanted = float(episode[f"{prefix}/from_timestamp"]) + times
    given, reason = 0, "it ends before"
    try:
        for time, pixels in _decoded(file, wanted[0] - half):
            if abs(time - wanted[given]) < half:
                yield {"bytes": b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()}
                given += 1
            if given == len(wanted):
                return
            if time > wanted[given] + half:
                reason = "it has no frame then"
                break
    except OSError as error:  # as PyAV's errors are
        reason = str(error)
    for time in wanted[given:]:
        message = (
            f"'{camera}' at {time:.3f} s of {file} cannot be read: {reason}; repair the video or leave the episode"
        )
        yield RowError(camera, message)


def _decoded(file: Path, start: float) -> Iterator[tuple[float, np.ndarray]]:
    """Frames from the key frame before some time on: seconds, and (height, width, 3) uint8, RGB. Raises OSError."""
    import av

    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            container.seek(max(int(start / stream.time_base), 0), stream=stream)
            for frame in container.decode(stream):
                yield float(frame.time), frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:
        raise OSError(0, f"PyAV says: {error}", str(file)) from error


def _folder(span: Span) -> Path:
    return Path(span.file.removeprefix(LEROBOT))


def _schema(file: Path) -> Sequence[str]:
    from pyarrow import ArrowInvalid, parquet

    try:
        names: list[str] = parquet.read_schema(file).names
    except ArrowInvalid as error:
        raise OSError(0, f"no Parquet file: {error}", str(file)) from None
    return names


def _read(file: Path, columns: Sequence[str] | None = None, filters: list[tuple[str, str, int]] | None = None) -> Any:
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.read_table(file, columns=columns, filters=filters)
    except ArrowInvalid as error:
        raise OSError(0, f"no Parquet file: {error}", str(file)) from None
