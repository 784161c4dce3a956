"""How the questions are dealt out: every image once, alike chunks, a first one that is soon through."""

from __future__ import annotations

from typing import Any

import pytest

from vtc.eval.sweep.chunks_and_batches import IMAGES_PER_CHUNK
from vtc.eval.sweep.sweep_run import Sweep
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.pruning_settings import UNPRUNED


def sweep_of(images: int, per_image: int, batch_size: int = 16) -> Sweep:
    loaded: Any = None
    questions = tuple(Question(f"{i}-{k}", "t", f"i{i}", "?", "a") for i in range(images) for k in range(per_image))
    return Sweep(loaded, TaskSet("x", "1", "", ("t",), questions, {}), [UNPRUNED], batch_size=batch_size)


@pytest.mark.parametrize("per_image", [1, 9, 40])
@pytest.mark.parametrize("images", [1, 2, 9, 20, 150, 1000])
def test_every_image_is_in_one_chunk(images: int, per_image: int):
    sweep = sweep_of(images, per_image)
    chunks = sweep.chunks()
    dealt = [q.question_id for chunk in chunks for group in chunk for q in group]
    assert sorted(dealt) == sorted(q.question_id for q in sweep.tasks.questions)
    assert all(len(group) == per_image for chunk in chunks for group in chunk)
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) <= IMAGES_PER_CHUNK
    assert max(sizes[1:], default=0) - min(sizes[1:], default=0) <= 1
    assert sizes[0] == 1 or sizes[0] <= images / 20, "the estimate of the time left waits for the first chunk"
    if images >= 20:
        assert sizes[0] * per_image <= max(16, per_image)
        batches = sum(-(-size * per_image // 16) for size in sizes[1:])
        assert batches <= 1.3 * sum(sizes[1:]) * per_image / 16 + 1, "most batches are full"


def test_without_questions_there_are_no_chunks():
    assert sweep_of(0, 1).chunks() == []
