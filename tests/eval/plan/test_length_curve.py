"""A few numbers of tokens tell what the decoder does on others, exactly, and where they can't it is run."""

from __future__ import annotations

from typing import Any

import pytest
from plan_world import weightless

from vtc.eval.cost.model_work import ModelWork

RUN, ASKED = (9, 40, 77, 130), (8, 61, 160)


def ran(kind: str) -> ModelWork:
    work = ModelWork(weightless(kind))
    work.run(RUN)
    return work


def nothing_runs(_: int) -> Any:
    raise AssertionError


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5_moe"])
def test_what_is_told_is_what_a_run_finds(kind: str) -> None:
    work, alone = ran(kind), ModelWork(weightless(kind))
    for length in ASKED:
        told, run = work.decoder(length), alone.decoder(length)
        assert (told.length, told.kv) == (run.length, run.kv)
        for mine, own in zip((told.rest, *told.layers), (run.rest, *run.layers), strict=True):
            assert [(o.kind, o.weights, o.experts) for o in mine] == [(o.kind, o.weights, o.experts) for o in own]
            assert [o.flops for o in mine] == pytest.approx([o.flops for o in own], rel=1e-9)
            assert [o.moved for o in mine] == pytest.approx([o.moved for o in own], rel=1e-9)


def test_full_attention_is_told_and_a_single_token_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    work = ran("llava")
    one = work.decoder(1)
    monkeypatch.setattr(ModelWork, "_decoder", lambda _, length: nothing_runs(length))
    assert work.decoder(61).length == 61
    assert work.decoder(1) is one


def test_equal_layers_are_one_object() -> None:
    work = ran("llava")
    assert len({id(part) for part in work.prefill_parts([61] * work.depth)}) == 2
    assert len({id(part) for part in work.step_parts([61] * work.depth)}) == 2
