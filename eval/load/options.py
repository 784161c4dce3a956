"""What ``vtc load-test`` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .addresses import check_reach
from .targets import Target

CONCURRENCIES = (1, 8, 32)
MOST_PICTURES, MOST_FRAMES = 64, 1024


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of one load test.

    Attributes
    ----------
    targets : tuple of Target
        In the table's order.
    baseline : str, optional
        The target that ratios are to; the first if left out.
    concurrencies : tuple of int
        Requests in flight.
    rounds : int
        In each one every target has a block at every concurrency, in an order that is drawn.
    requests : int
        Of a block; at least four times the concurrency are sent.
    block_seconds, request_seconds, minutes : float
        After which a block begins no more requests, a request is given up, and no more blocks begin.
    output_tokens : int
        Longest answer, and the length of every answer where the server takes ``ignore_eos``.
    pictures : int
        Of a request.
    video : int, optional
        Frames of a clip that requests show instead of pictures.
    same_pictures : bool
        All requests show the same, so that caches of a server are hit.
    picture_side : int, optional
        Pictures, and frames, are made squares of this side first.
    data : Path, optional
        Folder of an evaluation set instead of the bundled one.
    output : Path, optional
        Folder of the results.
    measure_limit : str, optional
        Folder or hub id of the model on which v, s and f are measured in this process.
    remote : bool
        Whether other machines may be loaded.
    seed : int
        Of orders and bootstraps.
    device, dtype : str
        Of the model of `measure_limit`.
    """

    targets: tuple[Target, ...]
    baseline: str | None = None
    concurrencies: tuple[int, ...] = CONCURRENCIES
    rounds: int = 5
    requests: int = 32
    block_seconds: float = 60.0
    request_seconds: float = 120.0
    minutes: float = 60.0
    output_tokens: int = 16
    pictures: int = 1
    video: int | None = None
    same_pictures: bool = False
    picture_side: int | None = None
    data: Path | None = None
    output: Path | None = None
    measure_limit: str | None = None
    remote: bool = False
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_reach([target.url for target in self.targets], self.remote)
        names = [target.name for target in self.targets]
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"--baseline {self.baseline!r} is no target: there are {', '.join(names)}")
        if not self.concurrencies or min(self.concurrencies) < 1 or max(self.concurrencies) > 1024:
            raise ValueError(f"--concurrency must be numbers from 1 to 1024, got {self.concurrencies}")
        for name, least in (("rounds", 1), ("requests", 1), ("output_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is out of range: at least {least}")
        for name in ("block_seconds", "request_seconds", "minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is out of range: more than 0")
        if self.picture_side is not None and not 16 <= self.picture_side <= 8192:
            raise ValueError(f"--picture-side {self.picture_side} is out of range: 16 to 8192 pixels")
        if not 1 <= self.pictures <= MOST_PICTURES:
            raise ValueError(f"--pictures {self.pictures} is out of range: 1 to {MOST_PICTURES} of a request")
        if self.video is not None and not 2 <= self.video <= MOST_FRAMES:
            raise ValueError(f"--video {self.video} is out of range: 2 to {MOST_FRAMES} frames")
        if self.video is not None and self.pictures > 1:
            raise ValueError(f"--video {self.video} and --pictures {self.pictures}: a request shows either; choose one")
        if self.measure_limit is not None and (self.video is not None or self.pictures > 1):
            raise ValueError("--measure-limit times one picture: leave --video and --pictures out, or it")
        for target in self.targets:
            if self.measure_limit is not None and target.limit is not None:
                raise ValueError(f"target {target.name!r} gives its limit, which --measure-limit would measure")

    @property
    def base(self) -> Target:
        """The target that ratios are to."""
        return next(t for t in self.targets if t.name == (self.baseline or self.targets[0].name))

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on: a run of the same one may be resumed, with more rounds too."""
        about = [[t.name, t.url, t.model, dict(t.body), t.resize] for t in self.targets]
        return {
            "targets": about,
            "requests": self.requests,
            "output_tokens": self.output_tokens,
            "block_seconds": self.block_seconds,
            "request_seconds": self.request_seconds,
            "pictures": self.pictures,
            "video": self.video,
            "same_pictures": self.same_pictures,
            "picture_side": self.picture_side,
            "data": None if self.data is None else str(self.data.resolve()),
            "seed": self.seed,
        }
