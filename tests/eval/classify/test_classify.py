"""The sweep of a classifier: places of the right class, cells, FLOPs by hand, throughput in turns, and going on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from classify_world import CLASSES, PATCHES, SMALL, classify_world, save_pictures, save_timm
from result_rows import read_all
from torch import Tensor

from vtc.eval.classify import classifier_costs as costs
from vtc.eval.classify import classifier_job as bench
from vtc.eval.classify.classifier import Classifier, load_classifier
from vtc.eval.classify.classifier_costs import WARM_UP, count_flops, measure_throughput
from vtc.eval.classify.classifier_job import ClassifyOptions, run_bench
from vtc.eval.classify.classifier_sweep import ClassifySweep, rank_of, run_classify
from vtc.eval.classify.pictures import load_pictures
from vtc.eval.classify.plan import plan_cells, stops_of
from vtc.eval.statistics.rows_to_cells import summarise
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.vlm.pruning_settings import UNPRUNED, is_random
from vtc.models.tower.bare_vit import VitAdapter

OUTPUTS = len(CLASSES)


@pytest.fixture(scope="module")
def vit() -> Classifier:
    return load_classifier(f"timm:{classify_world()[0]}", "cpu")


def options(output: Path, **more: Any) -> ClassifyOptions:
    model, data = classify_world()
    given: dict[str, Any] = {"keeps": (0.5,), "timing": 0, "batch_size": 5, "device": "cpu", "seeds": 2}
    return ClassifyOptions(f"timm:{model}", data, output=output, **(given | more))


@pytest.fixture(scope="module")
def whole(vit: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    run_bench(options(out))
    return out


def lines_of(folder: Path) -> list[bytes]:
    return sorted(line for file in folder.glob("results*.jsonl") for line in file.read_bytes().splitlines())


def test_the_place_of_the_right_output():
    nan = float("nan")
    logits = torch.tensor([[3.0, 1, 2], [3, 1, 2], [1, 1, 1], [1, 1, 1], [nan, 0, 1], [nan, 0, 1], [nan, nan, nan]])
    assert rank_of(logits, torch.tensor([0, 1, 0, 2, 2, 0, 0])).tolist() == [1, 3, 1, 3, 1, 3, 3]


def test_accuracy_by_hand(vit: Classifier, tmp_path: Path):
    """Six classes, logits that the test makes: top-1 and top-5 counted on paper."""
    names = tuple("abcdef")
    tasks = load_pictures(save_pictures(tmp_path / "set", each=1, classes=names))
    wanted = {  # right output's place: 1, 1, 2, 5, 6, 6
        "a": [9, 0, 0, 0, 0, 0], "b": [0, 9, 0, 0, 0, 0], "c": [9, 0, 8, 0, 0, 0],
        "d": [9, 8, 7, 5, 6, 0], "e": [9, 8, 7, 6, 0, 5], "f": [9, 8, 7, 6, 5, 0],
    }  # fmt: skip
    turn = iter(q.answer for q in tasks.questions)

    def logits(images: Tensor) -> Tensor:
        vit.model(images)
        return torch.tensor([wanted[next(turn)] for _ in images], dtype=torch.float)

    fake = Classifier(vit.model, vit.processor, "fake", "fake", 6, logits)
    sweep = ClassifySweep(fake, tasks, {name: i for i, name in enumerate(names)}, [UNPRUNED], 6)
    with pytest.MonkeyPatch.context() as patch, ResultStore(tmp_path / "results.jsonl", "c") as store:
        patch.setattr(
            "vtc.eval.classify.classifier_sweep.Tower", lambda *_: type("T", (), {"depth": 4, "total": PATCHES})
        )
        run_classify(sweep, store, lambda *_: None)
        rows = [store.rows["unpruned", q.question_id] for q in tasks.questions]
        assert [row["rank"] for row in rows] == [1, 1, 2, 5, 6, 6]
        assert [row["prediction"] for row in rows] == ["a", "b", "a", "a", "a", "a"]
        line = summarise(store, tasks, [UNPRUNED])[0]
    assert line.mean.value == pytest.approx(2 / 6)
    assert line.mean.low < 2 / 6 < line.mean.high
    assert line.official == {"classification": {"accuracy": pytest.approx(2 / 6), "top5": pytest.approx(4 / 6)}}


def test_cells_with_random_at_the_same_places(vit: Classifier):
    cells = plan_cells(vit.model, ["random", "tome", "zero_tprune"], [0.5, 4], [7, 8]).cells
    assert cells[0] == UNPRUNED
    methods = list(dict.fromkeys(c.method for c in cells[1:]))
    assert methods == ["tome", "random (as tome)", "zero_tprune", "random (as zero_tprune)"]
    assert all(is_random(m) == m.startswith("random") for m in methods)
    for keep in (0.5, 4):
        for method in ("tome", "zero_tprune"):
            (cell,) = [c for c in cells if c.method == method and c.keep == keep]
            like = [c for c in cells if c.method == f"random (as {method})" and c.keep == keep]
            assert [c.seed for c in like] == [7, 8]
            assert len({c.spec for c in like}) == 2
            for other in like:
                assert [(s.layer, s.keep) for s in stops_of(vit.model, other)] == [
                    (s.layer, s.keep) for s in stops_of(vit.model, cell)
                ]
    assert "random" in plan_cells(vit.model, ["random"], [0.5], [0]).cells[1].method  # alone: at a layer of its own
    assert len(plan_cells(vit.model, ["tome"], [0.5], [0], random=False).cells) == 2
    named = plan_cells(vit.model, ["random(layer=2)"], [0.5], [3]).cells[1]
    assert named.spec == "random(keep=0.5, seed=3, layer=2, at='vision')"


def test_methods_that_need_a_language_model(vit: Classifier):
    with pytest.raises(ValueError, match="a bare ViT has no language model"):
        plan_cells(vit.model, ["fastv"], [0.5], [0])
    plan = plan_cells(vit.model, ["all"], [0.5], [0])
    assert {"tome", "zero_tprune"} <= {c.method for c in plan.cells}
    assert "no language model" in plan.left_out["fastv"]
    assert not any(name in plan.left_out for name in ("tome", "zero_tprune"))


def flops_by_hand(counts: list[int]) -> int:
    """A pre-norm ViT: the patch embedding, blocks of `counts` patches and a class token, the head."""
    d, hidden = SMALL["embed_dim"], SMALL["embed_dim"] * SMALL["mlp_ratio"]
    total = 2 * PATCHES * d * 3 * SMALL["patch_size"] ** 2 + 2 * d * OUTPUTS
    for n in (count + 1 for count in counts):
        total += 2 * n * d * (3 * d + d + 2 * hidden) + 4 * n * n * d
    return total


def test_flops_by_hand(vit: Classifier):
    image = torch.randn(1, 3, 32, 32)
    assert count_flops(vit, UNPRUNED, image) == flops_by_hand([16] * 4)
    (cell,) = plan_cells(vit.model, ["random(layer=2)"], [6], [0]).cells[1:]
    assert count_flops(vit, cell, image) == flops_by_hand([16, 16, 6, 6])
    whole = flops_by_hand([16] * 4)
    for method in ("tome", "zero_tprune"):
        cells = plan_cells(vit.model, [method], [0.75, 0.5, 0.25], [0], random=False).cells[1:]
        found = [count_flops(vit, c, image) for c in cells]
        assert found == sorted(found, reverse=True)
        assert len(set(found)) == 3
        for c, flops in zip(cells, found, strict=True):  # the blocks' and a little for the choice
            counts = [16] * 4
            for stop in stops_of(vit.model, c):
                counts[stop.layer or 0 :] = [int(16 * stop.keep + 0.5)] * (4 - (stop.layer or 0))  # type: ignore[operator]
            assert flops_by_hand(counts) < flops < flops_by_hand(counts) + 0.2 * whole


def test_throughput_in_shuffled_turns_after_a_warm_up(vit: Classifier, monkeypatch: pytest.MonkeyPatch):
    cells = plan_cells(vit.model, ["tome", "zero_tprune"], [0.5], [0]).cells
    seen: list[str] = []
    real = costs.pruned

    def noted(model: Any, cell: Any) -> Any:
        seen.append(cell.spec)
        return real(model, cell)

    def clock(_: Any, call: Any) -> tuple[float, Any]:
        turn = (len(seen) - 1) // len(cells)
        return (100.0 if turn < WARM_UP else turn), call()

    monkeypatch.setattr(costs, "pruned", noted)
    monkeypatch.setattr(costs, "clock", clock)
    found = measure_throughput(vit, cells, torch.randn(2, 3, 32, 32), 4)
    turns = [seen[i : i + len(cells)] for i in range(0, len(seen), len(cells))]
    assert len(turns) == WARM_UP + 4
    assert all(sorted(turn) == sorted(c.spec for c in cells) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    for spread in found.values():  # the slow first turns are in no reading
        assert (spread.low, spread.high) == (WARM_UP, WARM_UP + 3)


def test_a_sweep_leaves_its_files_and_figures(vit: Classifier, tmp_path: Path):
    summary = run_bench(options(tmp_path / "out", timing=2, batch_size=4))
    lines = {line.method: line for line in summary}
    assert list(lines) == ["unpruned", "tome", "random (as tome)", "zero_tprune", "random (as zero_tprune)"]
    rows = read_all(tmp_path / "out" / "results.jsonl")
    assert len(rows) == 12 * 7
    assert len({(row["cell"], row["question_id"]) for row in rows}) == len(rows)
    for line in summary:
        assert line.complete
        assert line.n == 12
        assert line.cost.vision_flops > 0
        assert line.cost.images_per_second.median == pytest.approx(4 / line.cost.vision.median)
        assert line.flops_ratio == pytest.approx(line.cost.vision_flops / lines["unpruned"].cost.vision_flops)
        row = line.flat()
        assert {"cost_vision_flops", "flops_ratio", "images_per_second", "classification_top5"} <= row.keys()
    for method in ("tome", "zero_tprune"):
        line, like = lines[method], lines[f"random (as {method})"]
        assert line.tokens_kept == like.tokens_kept == PATCHES / 2
        assert line.tokens_per_layer == like.tokens_per_layer < PATCHES
        assert line.against_ratio == 1
        assert line.against.startswith(f"random (as {method}) 50% (2 seeds)")
        assert line.verdict
        assert line.difference is not None
        assert (line.flops_ratio or 1) < 1
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"results.jsonl", "summary.csv", "summary.json", "report.html", "report.md", "pareto.png"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "from pixels to scores" in page
    assert "prompt" not in page.partition('id="reading"')[0]
    assert "prefill" not in page.partition('id="reading"')[0]


def test_nothing_is_lost_or_done_twice(vit: Classifier, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    lines = (broken / "results.jsonl").read_bytes().splitlines(keepends=True)
    (broken / "results.jsonl").write_bytes(b"".join(lines[:40]) + lines[40][:25])
    seen: list[int] = []
    monkeypatch.setattr(bench, "load_classifier", lambda *_: _counting(vit, seen))
    monkeypatch.setattr(bench, "measure_costs", lambda *_: {})
    monkeypatch.setattr(bench, "kept_finder", lambda _: None)  # the report may ask again for a picture
    run_bench(options(broken))
    assert lines_of(broken) == lines_of(whole)
    assert sum(seen) == len(lines_of(whole)) - 40 + 1  # and one to learn the number of patches
    seen.clear()
    run_bench(options(broken))
    assert lines_of(broken) == lines_of(whole)
    assert not seen


def _counting(vit: Classifier, seen: list[int]) -> Classifier:
    def logits(images: Tensor) -> Tensor:
        seen.append(len(images))
        return vit.model(images)

    return Classifier(vit.model, vit.processor, vit.name, vit.identity, vit.outputs, logits, vit.names, vit.described)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked here")
@pytest.mark.share(3)
@pytest.mark.parametrize("when", [1, 6, 13])
def test_killed_and_gone_on_with(
    vit: Classifier, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
):
    """kill -9 in the middle of the `when`-th write."""
    monkeypatch.setattr(bench, "load_classifier", lambda *_: vit)
    pid = os.fork()
    if pid == 0:
        count, real = 0, os.fsync

        def fsync(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count == when:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - 30)  # the last line is torn
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        os.fsync = fsync
        run_bench(options(tmp_path / "out"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    run_bench(options(tmp_path / "out"))
    assert lines_of(tmp_path / "out") == lines_of(whole)


def test_what_answers_depend_on(tmp_path: Path):
    model, data = classify_world()
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    (changed / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    save_timm(tmp_path / "other", patch_size=16)
    found = []
    for source, folder, dtype in (
        (model, data, "auto"), (model, data, "float32"), (model, changed, "auto"), (tmp_path / "other", data, "auto"),
        (model, data, "bfloat16"),
    ):  # fmt: skip
        given = ClassifyOptions(f"timm:{source}", folder, device="cpu", dtype=dtype)
        classifier, tasks, places, _ = bench.load_both(given)
        found.append(bench.config_hash(bench.describe(classifier, tasks, places)))
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_the_model_is_left_as_it_was(vit: Classifier):
    before = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in vit.model.named_modules()}
    plan = plan_cells(vit.model, ["tome", "zero_tprune"], [0.5], [0])
    for cell in plan.cells:
        count_flops(vit, cell, torch.randn(1, 3, 32, 32))
    assert before == {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in vit.model.named_modules()}
    assert not hasattr(vit.model, "vtc")
    assert VitAdapter(vit.model, ()).stops == {}
