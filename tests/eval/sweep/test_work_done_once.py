"""What makes a sweep cheap, counted: the model is loaded once and its tower runs once per image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench_world import save_data, world
from result_rows import read_all
from torch._subclasses.fake_tensor import FakeTensor
from versions import TAKES_FEATURES

from vtc.eval import bench
from vtc.eval.sweep import answer
from vtc.eval.sweep.chunks_and_batches import deal
from vtc.eval.sweep.options import BenchOptions
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm import branching

IMAGES = 5
INPUT = ["uniform", "pool", "norm", "divprune", "tome"]
OTHER = ["fastv", "cls", "visionzip", "todre_diversity"]  # in the decoder, or by signals of the tower
TOWER = "random(at=vision, layer=1)"


class Watch:
    """Counts loads, pictures through the tower, prefills of the language model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.loads = self.pictures = 0
        self.widths: Counter[int] = Counter()
        load = bench.load_model

        def counted(*given: Any) -> Any:
            self.loads += 1
            loaded = load(*given)
            tower = loaded.model.base_model.vision_tower
            tower.register_forward_pre_hook(self._seen, with_kwargs=True)
            return loaded

        monkeypatch.setattr(bench, "load_model", counted)
        monkeypatch.setattr(bench, "write_files", lambda *_: None)  # the report looks again at samples that flipped

    def _seen(self, tower: Any, args: Any, kwargs: Any) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        if not isinstance(pixels, FakeTensor):  # FLOPs are counted without running anything
            self.pictures += len(pixels)


def run(data: Path, out: Path, pruners: list[str], **more: Any) -> None:
    bench.run_bench(
        BenchOptions(
            model=str(world()[0]), data=data, output=out, pruners=pruners, keeps=[0.5, 3], timing=0, random=False,
            seeds=1, max_new_tokens=2, second=0, **more,
        )
    )  # fmt: skip


@pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")
def test_the_tower_runs_once_per_image_for_all_cells_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    data, watch = save_data(tmp_path / "data", IMAGES), Watch(monkeypatch)
    run(data, tmp_path / "out", [*INPUT, *OTHER])
    rows = read_all(tmp_path / "out" / "results.jsonl")
    assert len({row["cell"] for row in rows}) == 1 + 2 * (len(INPUT) + len(OTHER))
    assert (watch.loads, watch.pictures) == (1, IMAGES)
    # again: nothing to do, nothing is encoded, and that is said
    capsys.readouterr()
    run(data, tmp_path / "out", [*INPUT, *OTHER])
    assert (watch.loads, watch.pictures) == (2, IMAGES)
    assert f"resuming: {len(rows)} of {len(rows)} answers were there already; none is left" in capsys.readouterr().out
    # cells that prune inside the tower run it themselves, each once per image
    run(data, tmp_path / "out", [*INPUT, *OTHER, TOWER])
    assert (watch.loads, watch.pictures) == (3, 3 * IMAGES)


@pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")
def test_questions_of_a_chunk_are_branches_behind_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, runs, turns = save_data(tmp_path / "data", IMAGES), [], []
    greedy, generate = branching.greedy, answer.generate
    monkeypatch.setattr(branching, "greedy", lambda *given: runs.append(given[1]) or greedy(*given))
    monkeypatch.setattr(answer, "generate", lambda *given, **more: turns.append(given) or generate(*given, **more))
    monkeypatch.setattr(bench, "write_files", lambda *_: None)
    run(data, tmp_path / "out", INPUT[:2])
    rows = read_all(tmp_path / "out" / "results.jsonl")
    assert sum(len(part) for questions in runs for part in questions) == len(rows)
    assert not turns
    chunks = len(deal(load_tasks(data).groups(), 16)) * len({row["cell"] for row in rows})
    assert len(runs) < 2 * chunks < len(rows) / 2
    together = max(runs, key=len)
    assert len(together) > 1, "several images"
    assert len({len(ids) for part in together for ids in part}) > 1, "of several lengths"


@pytest.mark.skipif(not TAKES_FEATURES, reason="transformers < 5.18 takes no images encoded before")
def test_without_room_for_features_they_are_made_again_and_results_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, watch = save_data(tmp_path / "data", IMAGES), Watch(monkeypatch)
    run(data, tmp_path / "held", ["cls", "pool"])
    assert watch.pictures == IMAGES
    run(data, tmp_path / "not", ["cls", "pool"], cache_bytes=0)
    assert watch.pictures == IMAGES + 5 * IMAGES

    def found(name: str) -> dict[Any, Any]:
        return {(r["cell"], r["question_id"]): r for r in read_all(tmp_path / name / "results.jsonl")}

    assert found("held") == found("not")
