"""Frames of a video, sampled uniformly: from a file (PyAV) or from a folder that holds them as pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .frames import ASSUMED_FPS, Frames
from .images import open_image

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
BACK = (0, 16, 10**9)  # frames by which seeking starts early, until it does not lead too far
FILE_FPS = 25.0  # of files that don't say it


@dataclass(frozen=True)
class Clip:
    """A video file, or a folder of its frames, and the part of it that is meant.

    ``start`` and ``end`` are seconds (None: from or to its end), ``fps`` is the frame rate of a folder (None: nobody
    says); most files know their own.
    """

    path: Path
    start: float | None = None
    end: float | None = None
    fps: float | None = None


def uniform(count: int, wanted: int, first: int = 0) -> list[int]:
    """Up to `wanted` of `count` frame numbers from `first` on, evenly spread, with the first and the last one.

    Examples
    --------
    >>> uniform(9, 3), uniform(2, 8), uniform(5, 1)
    ([0, 4, 8], [0, 1], [0])
    """
    if wanted < 1:
        raise ValueError(f"num_frames={wanted} is out of range: at least 1")
    if count <= wanted:
        return list(range(first, first + count))
    step = (count - 1) / max(1, wanted - 1)
    return [first + int(i * step + 1e-9) for i in range(wanted)]


def _window(clip: Clip, count: int, fps: float, name: str) -> tuple[int, int]:
    """First frame and number of frames of the clip's part."""
    first = 0 if clip.start is None else max(0, round(clip.start * fps))
    last = count - 1 if clip.end is None else min(count - 1, round(clip.end * fps))
    if first > last:
        part = f"none from {clip.start} s to {clip.end} s"
        raise ValueError(f"{name} has {count} frames ({count / fps:.1f} s), {part}")
    return first, last - first + 1


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which 2.jpg comes before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _from_folder(clip: Clip, wanted: int, name: str) -> Frames:
    files = sorted((p for p in clip.path.iterdir() if p.suffix.lower() in PICTURES), key=_natural)
    if not files:
        raise ValueError(f"{name} has no frames ({', '.join(sorted(PICTURES))})")
    first, count = _window(clip, len(files), clip.fps or ASSUMED_FPS, name)
    numbers = uniform(count, wanted)
    shown = [files[first + i] for i in numbers]
    return Frames.of([open_image(f, f"frame {f.name} of {name}") for f in shown], numbers, count, clip.fps)


def _from_file(clip: Clip, wanted: int, name: str) -> Frames:
    try:
        import av
    except ImportError:
        message = f"reading {name} needs PyAV: pip install 'vtc[video]' (or give a folder of its frames)"
        raise ValueError(message) from None
    try:
        with av.open(str(clip.path)) as container:
            if not container.streams.video:
                raise ValueError(f"{name} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 0) or clip.fps
            fps = rate or FILE_FPS
            count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            first, count = _window(clip, count, fps, name)
            found = _decode(container, stream, uniform(count, wanted, first), fps)
    except (av.FFmpegError, OSError) as e:
        raise ValueError(f"{name} cannot be read as a video: {e}") from None
    numbers = tuple(max(0, number - first) for number, _ in found)
    total = max([count, *(number + 1 for number in numbers)])
    return Frames(tuple(picture for _, picture in found), numbers, total, fps, known=rate is not None)


def _decode(container: Any, stream: Any, numbers: list[int], fps: float) -> list[tuple[int, Image.Image]]:
    """The frames with these numbers; each is sought from the key frame before it, so long videos cost no more.

    Beside each stands its number by its own time, another one where the stream ends early or leaves some out.
    """
    found = []
    for number in numbers:
        frame = next((f for early in BACK if (f := _seek(container, stream, number, fps, early)) is not None), None)
        if frame is not None:
            if frame.pts is not None:
                number = int((frame.pts - (stream.start_time or 0)) * float(stream.time_base) * fps + 0.5)
            found.append((number, frame.to_image()))
    return found


def _seek(container: Any, stream: Any, number: int, fps: float, early: int) -> Any:
    """The frame with this number, sought from `early` frames before it; None if that led to a place behind it."""
    step = 1 / fps / float(stream.time_base)
    start = stream.start_time or 0
    due, frame = start + number * step, None
    container.seek(int(max(start, due - early * step)), stream=stream, backward=True)
    for i, frame in enumerate(container.decode(stream)):
        if frame.pts is None:
            continue
        # files whose frames are stored in another order than shown are sought by the former
        if i == 0 and frame.pts > due + step / 2 and early < BACK[-1]:
            return None
        if frame.pts >= due - step / 2:
            break
    return frame  # the last one where the stream ends before its own count


def sample_frames(clip: Clip, num_frames: int, name: str | None = None) -> Frames:
    """Up to `num_frames` frames, evenly spread over the clip; a shorter one gives all it has.

    Times are counted from the beginning of the clip, as if it had been cut out.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such video or it can't be read; the message names it.
    """
    name = f"{name} ({clip.path})" if name else str(clip.path)
    if not clip.path.exists():
        raise FileNotFoundError(f"no such video: {name}")
    read = _from_folder if clip.path.is_dir() else _from_file
    frames = read(clip, num_frames, name)
    if not frames:
        raise ValueError(f"{name} has no frame that decodes")
    return frames
