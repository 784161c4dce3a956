"""A whole ``vtc bench`` feeds each family what its chat template makes: pictures of a list, a folder of frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_inputs import picture, processor_of
from processors import PROCESSORS, WITH_VIDEO
from result_rows import read_all
from rich.console import Console
from torch import Tensor
from zoo import tiny

from vtc.eval import bench
from vtc.eval.sweep import sweep_run as runner
from vtc.eval.sweep.options import BenchOptions
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import Row, make_row

SIZES = ((50, 40), (30, 56), (28, 28))
TASKS = {
    "pictures": "image: images\nprompt: '{{ question }}'",
    "clips": "video: '{{ clip }}'\nfps: rate\nnum_frames: 4\nprompt: '{{ question }}'",
}
COUNT, RATE = 12, 0.5  # frames of the folder, and how many a second


def save_questions(folder: Path) -> Path:
    """Two questions about pictures, about one and about three, and one about a folder of frames."""
    (folder / "film").mkdir(parents=True)
    for i, size in enumerate(SIZES):
        picture(size, i).save(folder / f"{i}.png")
    for i in range(COUNT):
        picture((48, 32), i).save(folder / "film" / f"{i}.png")
    names = [f"{i}.png" for i in range(3)]
    rows: dict[str, list[dict[str, Any]]] = {
        "pictures": [{"images": names[:1]}, {"images": names}], "clips": [{"clip": "film", "rate": RATE}],
    }  # fmt: skip
    for task, about in TASKS.items():
        lines = [{**row, "question": "What is it?", "answer": "red"} for row in rows[task]]
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        head = f"task: {task}\nmetric: exact_match\nfiles: {task}.jsonl\nanswer: answer\n"
        (folder / f"{task}.yaml").write_text(head + about + "\n")
    return folder


def content(name: str, row: Row) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The question's pictures or video as a message's parts, and what the call needs beside them."""
    if row.question.task == "pictures":
        return [{"type": "image", "image": picture(SIZES[i], i)} for i in range(len(row.question.media))], {}
    shown = [0, 3, 7, 11]
    if name not in WITH_VIDEO:
        return [{"type": "image", "image": picture((48, 32), i)} for i in shown], {}
    film = torch.stack([torch.tensor(list(picture((48, 32), i).tobytes())).view(32, 48, 3) for i in shown])
    known = {"total_num_frames": COUNT, "fps": RATE, "duration": COUNT / RATE, "frames_indices": shown}
    more = {"video_metadata": [known], "do_sample_frames": False, "return_tensors": "pt"}
    return [{"type": "video", "video": film.to(torch.uint8).numpy()}], {"processor_kwargs": more}


@pytest.mark.share(3)
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_sweep_feeds_what_the_chat_template_makes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: dict[str, Row] = {}

    def noted(*given: Any) -> Row:
        row = make_row(*given)
        return fed.setdefault(row.question.question_id, row)

    processor = processor_of(name)
    monkeypatch.setattr(runner, "make_row", noted)
    monkeypatch.setattr(bench, "load_model", lambda *_: Loaded(tiny(name), processor, name, name))
    options = BenchOptions(
        data=save_questions(tmp_path / "data"), output=tmp_path / "out", pruners=["random"], keeps=[0.5], seeds=1,
        random=False, timing=1, max_new_tokens=2,
    )  # fmt: skip
    bench.run_bench(options, Console(quiet=True))
    assert {q: len(row.question.media) for q, row in fed.items()} == {"pictures/1": 1, "pictures/2": 3, "clips/1": 1}
    for row in fed.values():
        parts, more = content(name, row)
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]
        want = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **more
        )
        got = {"input_ids": row.ids[None], **{k: v[None] for k, v in row.tokens.items()}, **row.vision}
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert torch.equal(got[key], value) if isinstance(value, Tensor) else got[key] == value, key
    check_counts(read_all(tmp_path / "out" / "results.jsonl"), fed)


def check_counts(lines: Sequence[dict[str, Any]], fed: dict[str, Row]) -> None:
    assert len(lines) == 2 * len(fed)
    for line in lines:
        row = fed[line["question_id"]]
        assert (line["prompt_tokens"], line["visual_total"]) == (len(row.ids), row.visual)
        assert line["visual_kept"] == row.visual if line["cell"] == "unpruned" else line["visual_kept"] < row.visual
