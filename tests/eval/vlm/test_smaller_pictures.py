"""``downsample``: rows of smaller pictures are what the stock processor makes of them, and as large as may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench_world import world
from chat_inputs import picture, processor_of
from PIL import Image
from processors import PROCESSORS
from result_rows import read_all
from rich.console import Console
from zoo import tiny

import vtc
from vtc.eval.bench import BenchOptions, run_bench
from vtc.eval.sweep.plan import plan_cells
from vtc.eval.tasks.media.frames import Frames
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import DOWNSAMPLE, make_cell
from vtc.eval.vlm.size_of_few_tokens import share_with
from vtc.eval.vlm.smaller_pictures import SmallRows, any_size, resized

ASKED = Question("q", "t", "i", "What is it?", "red")
ONE_SIZE = ("gemma3", "idefics3", "smolvlm")  # whose processors enlarge small pictures, or know one count


def rows_of(name: str, pictures: list[Image.Image], keep: int | float) -> tuple[Row, Row]:
    model, processor = tiny(name), processor_of(name)
    whole = make_row(processor, model.config, pictures, ASKED)
    return whole, SmallRows(processor, model).make(whole, pictures, keep)


def forward(name: str, row: Row) -> torch.Tensor:
    tokens = {key: value[None] for key, value in row.tokens.items()}
    with torch.no_grad(), any_size(tiny(name)) as model:
        return model(input_ids=row.ids[None], **tokens, **row.vision).logits


@pytest.mark.parametrize("keep", [0.5, 4])
@pytest.mark.parametrize("name", [n for n in PROCESSORS if n not in ONE_SIZE])
def test_every_family_reads_smaller_pictures(name: str, keep: int | float) -> None:
    more = [] if name == "llava_onevision" else [picture((56, 112), 1)]  # of several each is small already
    whole, row = rows_of(name, [picture((112, 84), 0), *more], keep)
    assert 0 < row.visual < whole.visual == row.whole == row.total
    assert len(row.ids) - row.visual <= len(whole.ids) - whole.visual  # rows of patches may have marks of their own
    assert torch.isfinite(forward(name, row)).all()
    assert "vtc" not in vars(tiny(name))


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_processor_of_one_size_is_told_of(name: str) -> None:
    with pytest.raises(ValueError, match=f"tokens of smaller pictures, too: .*{DOWNSAMPLE}"):
        rows_of(name, [picture((56, 56), 0)], 0.5)


def test_native_resolution_is_what_a_smaller_picture_gives() -> None:
    """By Qwen's rule: as many tokens as the picture has squares of two by two patches."""
    shown = picture((160, 128), 0)
    whole, row = rows_of("qwen2_5_vl", [shown], 0.3)
    grid = row.vision["image_grid_thw"][0].tolist()
    assert row.visual == grid[1] * grid[2] // 4 <= 0.3 * whole.visual
    shares = [s / 1000 for s in range(1000, 0, -1)]
    model, processor = tiny("qwen2_5_vl"), processor_of("qwen2_5_vl")
    counts = (make_row(processor, model.config, [resized(shown, s)], ASKED).visual for s in shares)
    assert row.visual == next(n for n in counts if n <= 0.3 * whole.visual)
    alike = any(
        torch.equal(row.vision["pixel_values"], other.vision["pixel_values"])
        for other in (make_row(processor, model.config, [resized(shown, s)], ASKED) for s in shares)
        if other.visual == row.visual
    )
    assert alike


def test_one_size_only_is_told_to_the_processor_and_the_tower() -> None:
    whole, row = rows_of("llava", [picture((112, 84), 0)], 0.25)
    assert (whole.visual, row.visual) == (16, 4)
    assert row.vision["pixel_values"].shape[-2:] == (14, 14)
    model = tiny("llava")
    with torch.no_grad():
        want = model(input_ids=row.ids[None], **row.vision, interpolate_pos_encoding=True).logits
    assert torch.equal(forward("llava", row), want)
    with pytest.raises(ValueError, match="size"):  # outside the context the tower refuses it as ever
        model(input_ids=row.ids[None], **row.vision)


def test_frames_keep_their_times() -> None:
    frames = Frames.of([picture((96, 64), i) for i in range(4)], indices=[0, 2, 4, 6], total=8, fps=2.0)
    small = resized(frames, 0.5)
    assert isinstance(small, Frames)
    assert [p.size for p in small] == [(48, 32)] * 4
    assert (small.indices, small.total, small.fps) == (frames.indices, frames.total, frames.fps)


def test_a_question_without_a_picture_and_a_keep_of_all_stay_as_they_are() -> None:
    model, processor = tiny("llava"), processor_of("llava")
    blind = make_row(processor, model.config, [], ASKED)
    rows = SmallRows(processor, model)
    assert rows.make(blind, [], 0.5) is blind
    whole = make_row(processor, model.config, [picture((56, 56), 0)], ASKED)
    assert rows.make(whole, [picture((56, 56), 0)], 1.0) is whole


@pytest.mark.parametrize(
    ("tokens_at", "share_of", "want"),
    [
        (lambda s: max(1, round(1000 * s * s)), 250, 250),  # any size
        (lambda s: (round(20 * s) or 1) ** 2, 63, 49),  # squares
        (lambda s: 400 if s > 0.5 else 100, 50, 100),  # none so small: its smallest
        (lambda s: None if s < 0.6 else round(1000 * s * s), 100, 360),  # refused below
    ],
)
def test_a_size_is_found_by_asking(tokens_at: Callable[[float], int | None], share_of: int, want: int) -> None:
    full = tokens_at(1.0)
    assert full is not None
    share = share_with(full, share_of, tokens_at)
    assert share is not None
    found = tokens_at(share)
    assert found == pytest.approx(want, rel=0.05)


def test_a_size_that_changes_nothing_is_none() -> None:
    assert share_with(576, 64, lambda _: 576) is None


def test_a_sweep_has_it_beside_its_methods(tmp_path: Path) -> None:
    model, data = world()
    options = BenchOptions(
        model=str(model), data=data, output=tmp_path, pruners=["downsample", "uniform"], keeps=[0.25], seeds=1,
        random=False, timing=1, max_new_tokens=3,
    )  # fmt: skip
    for _ in range(2):  # a finished sweep is told again as it was
        cells = {cell.method: cell for cell in run_bench(options, Console(quiet=True))}
    small, uniform = cells["downsample"], cells["uniform"]
    assert (small.tokens_total, small.tokens_kept, small.tokens_per_layer) == (16, 4, 4)
    assert small.kv_ratio == pytest.approx(uniform.kv_ratio)
    assert small.lm_flops_ratio == pytest.approx(uniform.lm_flops_ratio)
    assert small.flops_ratio is not None
    assert uniform.flops_ratio is not None
    assert small.flops_ratio < uniform.flops_ratio  # its tower sees a quarter, too
    found = uniform.against_smaller
    assert found is not None
    assert (found.partner, found.tokens) == ("downsample 25%", 4)
    assert found.easy is not None
    assert found.hard is not None
    assert found.easy.n + found.hard.n == uniform.n
    lines = [row for row in read_all(tmp_path / "results.jsonl") if row["cell"] == "downsample(keep=0.25)"]
    assert {(row["visual_total"], row["visual_kept"]) for row in lines} == {(16, 4)}
    assert "## Beside smaller pictures" in (tmp_path / "report.md").read_text()
    assert 'id="smaller"' in (tmp_path / "report.html").read_text()


def test_it_is_no_method() -> None:
    assert DOWNSAMPLE not in vtc.list_pruners()
    with pytest.raises(ValueError, match="'downsample' is no pruner: it makes pictures smaller"):
        vtc.parse("downsample + fastv(keep=0.5)")
    with pytest.raises(ValueError, match="no parameter 'layer'"):
        make_cell("downsample(layer=2)", 0.5)
    assert make_cell("downsample(keep=0.5)", None).keep == 0.5
    plan = plan_cells(["all"], [0.5])
    assert DOWNSAMPLE in {cell.method for cell in plan.cells}
    assert DOWNSAMPLE in plan.optional
