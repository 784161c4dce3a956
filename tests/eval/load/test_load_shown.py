"""What a load test shows besides one picture: several of them, clips, and all of it new to every cache."""

from __future__ import annotations

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_world import world
from command_line import run
from fake_openai import FakeServer, fake_server
from PIL import Image

from vtc.eval.load.prompts import WINDOW, clip, salted, video_part


def measured(capsys: pytest.CaptureFixture[str], server: FakeServer, folder: Path, *more: Any) -> str:
    said = "load-test", "--target", f"a {server.url}", "--concurrency", 1, "--rounds", 1, "--requests", 4
    code, out, err = run(capsys, *said, "--data", world()[1], "--output", folder, *more)
    assert (code, err) == (0, "")
    return out


def contents(server: FakeServer) -> list[list[dict[str, Any]]]:
    return [body["messages"][0]["content"] for body in server.bodies]


def decoded(coded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))).convert("RGB"))


def frames(part: dict[str, Any]) -> list[np.ndarray]:
    kind, _, data = part["video_url"]["url"].partition(",")
    assert (part["type"], kind) == ("video_url", "data:video/jpeg;base64")
    return [decoded(one) for one in data.split(",")]


def test_a_request_shows_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        measured(capsys, server, tmp_path / "a", "--video", 6, "--picture-side", 64)
        clips = [frames(content[0]) for content in contents(server)]
        assert [len(content) for content in contents(server)] == [2] * 8
    assert {frame.shape for one in clips for frame in one} == {(64, 64, 3)}
    assert {len(one) for one in clips} == {6}
    # no clip comes twice, and no frame of one does
    assert len({one[0].tobytes() for one in clips}) == len(clips)
    assert len({frame.tobytes() for one in clips for frame in one}) == 6 * len(clips)
    for one in clips:  # neighbours are more alike than the ends
        steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(one)]
        assert 0 < max(steps) < np.abs(one[0].astype(int) - one[-1]).mean()


def test_a_request_shows_several_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        measured(capsys, server, tmp_path / "a", "--pictures", 3)
        found = contents(server)
    seen = []
    for content in found:
        assert [part["type"] for part in content] == ["image_url"] * 3 + ["text"]
        seen += [decoded(part["image_url"]["url"].partition(",")[2]).tobytes() for part in content[:3]]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("shown", [("--video", 3), ("--pictures", 2)])
def test_all_requests_show_the_same(shown: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        measured(capsys, server, tmp_path / "a", *shown, "--same-pictures")
        assert len({json.dumps(content) for content in contents(server)}) == 1
        count = 1 if shown[0] == "--video" else 2
        assert {len(content) for content in contents(server)} == {count + 1}


def test_a_clip_gets_smaller_with_resize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        target = f"small {server.url} resize=0.25"
        measured(capsys, server, tmp_path / "a", "--target", target, "--video", 2, "--picture-side", 64)
        assert {frames(content[0])[1].shape for content in contents(server)} == {(64, 64, 3), (32, 32, 3)}


def test_a_clip_goes_over_the_whole_picture() -> None:
    rows, cols = np.indices((64, 80))
    picture = Image.fromarray(np.stack([2 * rows, 2 * cols, 0 * rows], 2).astype(np.uint8))
    first, *_, last = (np.asarray(frame).astype(int) for frame in clip(picture, 5))
    assert first.shape == last.shape == (64, 80, 3)
    for axis, size in ((0, 64), (1, 80)):
        assert first[..., axis].min() <= 2
        assert abs(first[..., axis].max() - 2 * WINDOW * size) <= 4
        assert abs(last[..., axis].min() - 2 * (1 - WINDOW) * size) <= 4
        assert last[..., axis].max() >= 2 * size - 4


def test_salt_outlives_jpeg() -> None:
    generator = np.random.default_rng(0)
    for base in (np.zeros((32, 32, 3), np.uint8), generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)):
        parts = [video_part([salted(Image.fromarray(base), generator.bytes(32))]) for _ in range(200)]
        assert len({frames(part)[0].tobytes() for part in parts}) == 200


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--video", "1"], "--video 1 is out of range: 2 to 1024 frames"),
        (["--pictures", "0"], "--pictures 0 is out of range: 1 to 64 of a request"),
        (["--video", "4", "--pictures", "2"], "--video 4 and --pictures 2: a request shows either; choose one"),
        (["--video", "4", "--measure-limit", "bundled"], "--measure-limit times one picture"),
        (["--pictures", "2", "--measure-limit", "bundled"], "--measure-limit times one picture"),
    ],
)
def test_what_can_not_be_shown(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "load-test", "--target", "a http://127.0.0.1:9/v1", *given)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_long_clips_are_said_to_be_cut_by_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for owner, video, said in (("vllm", 33, True), ("vllm", 32, False), ("vtc", 33, False)):
        with fake_server(owner=owner) as server:
            out = measured(capsys, server, tmp_path / f"{owner}{video}", "--video", video, "--picture-side", 16)
        assert ("--media-io-kwargs" in out) is said
