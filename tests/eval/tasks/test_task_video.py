"""Frames of videos: which ones, from folders and from files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from public_data import picture, write, write_frames

from vtc.eval.tasks.media.frames import ASSUMED_FPS
from vtc.eval.tasks.media.video import Clip, sample_frames, uniform
from vtc.eval.tasks.reading.read_benchmarks import load_benchmarks, load_folder
from vtc.eval.tasks.reading.unusable_rows import check_media


def reds(clip: Clip, wanted: int) -> list[int]:
    return [p.getpixel((8, 8))[0] for p in sample_frames(clip, wanted)]


def test_uniform():
    assert uniform(100, 5) == [0, 24, 49, 74, 99]
    assert uniform(3, 8) == [0, 1, 2]
    assert uniform(10, 2, first=5) == [5, 14]
    assert uniform(10, 1) == [0]
    with pytest.raises(ValueError, match="num_frames=0 is out of range"):
        uniform(10, 0)


def test_folders_are_sorted_by_number_and_cut_by_time(tmp_path: Path):
    folder = write_frames(tmp_path / "v", 12)  # 10.png comes after 9.png
    assert reds(Clip(folder), 12) == list(range(12))
    assert reds(Clip(folder), 3) == [0, 5, 11]
    assert reds(Clip(folder, start=1.0, end=2.0, fps=3), 9) == [3, 4, 5, 6]
    assert reds(Clip(folder, end=0.5, fps=4), 9) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"has 12 frames \(4.0 s\), none from 50.0 s to None s"):
        sample_frames(Clip(folder, start=50.0), 2)


def test_frames_know_when_they_are_shown(tmp_path: Path):
    folder = write_frames(tmp_path / "v", 12)
    frames = sample_frames(Clip(folder, fps=2.0), 3)
    assert (frames.indices, frames.total, frames.fps, frames.known) == ((0, 5, 11), 12, 2.0, True)
    assert frames.metadata["duration"] == 6.0
    part = sample_frames(Clip(folder, start=1.0, end=2.5, fps=2.0), 2)  # as if it had been cut out
    assert (part.indices, part.total, reds(Clip(folder, 1.0, 2.5, 2.0), 2)) == ((0, 3), 4, [2, 5])
    unsaid = sample_frames(Clip(folder), 2)
    assert (unsaid.fps, unsaid.known) == (ASSUMED_FPS, False)


def test_a_file_knows_its_times(tmp_path: Path):
    path = film(tmp_path / "v.mp4", 60)  # 10 a second
    frames = sample_frames(Clip(path, fps=3.0), 4)
    assert (frames.indices, frames.total, frames.fps, frames.known) == ((0, 19, 39, 59), 60, 10.0, True)
    part = sample_frames(Clip(path, start=2.0, end=3.0), 3)
    assert (part.indices, part.total) == ((0, 5, 10), 11)


def test_tasks_say_how_fast_frames_are(tmp_path: Path):
    """A number, a row's column (empty: nobody says), or the rate of one path of several."""
    write_frames(tmp_path / "a", 6)
    write_frames(tmp_path / "cut" / "b", 6)
    rows = [{"clip": "a", "rate": 2}, {"clip": "b", "rate": None}, {"clip": "a", "rate": "fast"}]
    head = "task: films\nmetric: exact_match\nfiles: q.jsonl\nprompt: q\nanswer: a\n"

    def rates(yaml: str, rows: list[dict]) -> list[float | None]:
        (tmp_path / "q.jsonl").write_text("\n".join(json.dumps({**row, "q": "What?", "a": "red"}) for row in rows))
        (tmp_path / "task.yaml").write_text(head + yaml)
        tasks = load_folder(tmp_path)
        prints.append(tasks.fingerprint)
        found = [tasks.visuals(q) for q in tasks.questions]
        return [frames.fps if frames.known else None for frames in found]

    prints: list[str] = []
    paths = 'video: ["{{ clip }}", {path: "cut/{{ clip }}", fps: 9}]\n'
    assert rates('video: ["{{ clip }}", "cut/{{ clip }}"]\nfps: rate\n', rows[:2]) == [2.0, None]
    assert rates(paths, rows[:2]) == [None, 9.0]
    assert rates(paths + "fps: 4\n", rows[:2]) == [4.0, 9.0]
    assert rates(paths + "fps: '{{ rate }}'\n", rows[:1]) == [2.0]
    assert len(set(prints)) == 4, "another rate is another set: its answers differ"
    with pytest.raises(ValueError, match="line 1: fps: 'fast' is no number of frames per second"):
        rates(paths + "fps: rate\n", rows[2:])


def test_lists_of_frames_have_a_rate_too(tmp_path: Path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    row = {"frames": [f"{i}.png" for i in range(8)], "seconds": 4, "q": "What?", "a": "red"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    head = "task: films\nmetric: exact_match\nfiles: q.jsonl\nimage: frames\nkind: frames\nprompt: q\nanswer: a\n"
    prints = []
    for rate, want in (("", None), ("fps: '{{ 8 / seconds }}'\n", 2.0)):
        (tmp_path / "task.yaml").write_text(head.replace("kind: frames", "kind: '{{ \"frames\" }}'") + rate)
        tasks = load_folder(tmp_path)
        frames = tasks.visuals(tasks.questions[0], 3)
        prints.append(tasks.fingerprint)
        assert (frames.indices, frames.total, frames.fps) == ((0, 3, 7), 8, want or ASSUMED_FPS)
        assert frames.known is (want is not None)
    assert len(set(prints)) == 2


def test_bad_videos_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no such video: clip 3 of t \(.*gone\)"):
        sample_frames(Clip(tmp_path / "gone"), 2, "clip 3 of t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no frames \(.bmp, .jpeg"):
        sample_frames(Clip(tmp_path / "empty"), 2)
    (tmp_path / "empty" / "0.png").write_bytes(picture(0)[:45])
    with pytest.raises(ValueError, match=r"frame 0.png of .*cannot be read as an image"):
        sample_frames(Clip(tmp_path / "empty"), 2)


def test_without_pyav_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "v.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"reading .*v.mp4 needs PyAV: pip install 'vtc\[video\]' \(or give a folder"):
        sample_frames(Clip(tmp_path / "v.mp4"), 2)


def film(path: Path, frames: int, fps: int = 10, codec: str = "mpeg4") -> Path:
    """A video file whose frame k has the grey value 2k, with a key frame every 12 and, but in AVI, reordered frames."""
    av = pytest.importorskip("av", reason="the extra video is not installed: pip install 'vtc[video]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=fps, options={"sc_threshold": "1000000000" if codec == "mpeg4" else "0"}
        )
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = 0 if path.suffix == ".avi" else 2
        for k in range(frames):
            image = Image.new("RGB", (64, 64), (2 * k,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "mpeg4"), ("mkv", "mpeg4"), ("avi", "mpeg4"), ("mp4", "libx264")]
)
def test_files(ending: str, codec: str, tmp_path: Path):
    """Frames that are sought one by one are the frames asked for, across key frames."""
    av = pytest.importorskip("av", reason="the extra video is not installed: pip install 'vtc[video]'")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = film(tmp_path / f"v.{ending}", 60, codec=codec)
    with av.open(str(path)) as container:
        keys = sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert keys < 10
    for wanted in (1, 4, 13, 60, 100):
        found = [value / 2 for value in reds(Clip(path), wanted)]
        assert found == pytest.approx(uniform(60, wanted), abs=1.1)
    found = [value / 2 for value in reds(Clip(path, start=2.0, end=3.0), 3)]
    assert found == pytest.approx([20, 25, 30], abs=1.1)


def test_files_that_are_no_video(tmp_path: Path):
    pytest.importorskip("av", reason="the extra video is not installed: pip install 'vtc[video]'")
    (tmp_path / "v.mp4").write_bytes(b"not a film" * 100)
    with pytest.raises(ValueError, match=r"v.mp4 cannot be read as a video: "):
        sample_frames(Clip(tmp_path / "v.mp4"), 2)


def test_a_benchmark_with_video_files(tmp_path: Path):
    write(tmp_path, "videomme")
    film(tmp_path / "Video-MME" / "videos" / "fFjv93ACGo8.mp4", 20)
    with pytest.raises(ValueError, match=r"row 2: no such video in .*data/N1cdUjctpG8 or videos/N1cdUjctpG8"):
        load_benchmarks(["videomme"], tmp_path)
    (tmp_path / "Video-MME" / "videos" / "N1cdUjctpG8.mp4").write_bytes(b"torn")
    tasks = check_media(load_benchmarks(["videomme"], tmp_path), "skip")
    assert [q.question_id for q in tasks.questions] == ["videomme/000-1"]
    assert len(tasks.visuals(tasks.questions[0])) == 20
    assert "N1cdUjctpG8.mp4" in tasks.skipped[0]
