"""Token counts of requests behind a backend's calls of ``generate``; needs no lmms-eval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from versions import beam_shape, mixes_pictures
from zoo import prompt, tiny

import vtc
from vtc.integrations.lmms_eval.token_counts import TokenLog, measure
from vtc.integrations.lmms_eval.watched_generate import Failed, Rows, watch_generate, watched_data

no_grad = pytest.mark.usefixtures("no_grad")
GREEDY = {"max_new_tokens": 2, "do_sample": False}


@no_grad
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_rows_of_a_batch_are_counted_each(more: dict[str, int]) -> None:
    model, inputs = tiny("llava"), prompt("llava", beam_shape("llava", "ragged") if more else "ragged").inputs
    ids = inputs["input_ids"]
    visual = (ids == model.config.image_token_id).sum(1).tolist()
    assert len(set(visual)) > 1 or mixes_pictures("llava")
    model.generate(**inputs, **GREEDY, **more)
    assert [m.total for m in measure(model, ids)] == [m.kept for m in measure(model, ids)] == visual
    vtc.compress(model, "uniform(keep=0.5) + uniform(layer=2, keep=0.25)")
    model.generate(**inputs, **GREEDY, **more)
    depth = model.config.text_config.num_hidden_layers
    found = measure(model, ids)
    assert [m.total for m in found] == visual
    assert [m.kept for m in found] == [n // 4 for n in visual]
    assert [m.mean for m in found] == [(2 * n // 2 + (depth - 2) * n // 4) / depth for n in visual]


def fake() -> Any:
    """A model that is only asked for its placeholder."""
    return SimpleNamespace(config=SimpleNamespace(image_token_id=9))


def test_requests_are_told_by_the_rows_that_were_read() -> None:
    log, model = TokenLog(), fake()
    ids = torch.tensor([[9, 9, 1], [0, 9, 1]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    data = watched_data({"a": {"test": ["x", "y", "z"]}, "b": {"test": ["u"]}}, log)
    assert [data["a"]["test"][2], data["b"]["test"][0]] == ["z", "u"]
    log.generated(model, ids, mask)
    assert [(r.task, r.doc_id, r.prompt_tokens, r.visual_tokens) for r in log.rows] == [("a", 2, 3, 2), ("b", 0, 2, 1)]
    for _ in range(2):  # a backend that reads everything twice
        assert [data["a"]["test"][i] for i in (0, 1)] == ["x", "y"]
    log.generated(model, ids, mask)
    assert [(r.task, r.doc_id) for r in log.rows[2:]] == [("a", 0), ("a", 1)]
    assert data["a"]["test"][0] == "x"  # one row for two answers: whose they are is not known
    log.generated(model, ids, None)
    assert [(r.task, r.doc_id, r.prompt_tokens) for r in log.rows[4:]] == [(None, None, 3)] * 2
    assert log.take("a", 0) is log.rows[2]
    assert log.take("a", 0) is None
    last = log.take("b", 0, again=True)  # it only kept the processes in step
    assert last is not None
    assert last not in log.rows
    told = log.summary()
    assert (told["requests"], told["visual_tokens"], told["kept_share"]) == (5, 2 + 2 + 1 + 2 + 1, 1.0)


def test_repeated_requests_are_each_counted() -> None:
    log, model = TokenLog(), fake()
    for _ in range(3):
        log.read("a", 7)
    log.generated(model, torch.tensor([[9, 1], [9, 1], [1, 1]]), None)
    found = [log.take("a", 7) for _ in range(4)]
    assert [f.visual_tokens if f else None for f in found] == [1, 1, 0, None]


def test_a_split_stays_a_sequence() -> None:
    read: list[int] = []
    docs = SimpleNamespace(features={"a": 1})
    assert Rows(docs, read.append).features == {"a": 1}
    rows = Rows(["x", "y"], read.append)
    assert (list(rows), len(rows), rows[0:1]) == (["x", "y"], 2, ["x"])
    assert read == []
    assert rows[1] == "y"
    assert read == [1]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_failures_are_noted_and_stop_as_asked(on_error: str) -> None:
    model, log, failed = fake(), TokenLog(), []

    def fails(**kwargs: Any) -> None:
        raise ValueError("no luck")

    model.generate = fails
    watch_generate(model, log, on_error, failed)
    log.read("a", 0)
    with pytest.raises(Failed if on_error == "stop" else ValueError):
        model.generate(input_ids=torch.tensor([[9]]))
    assert failed == ["ValueError: no luck"]
    assert log.rows == []
    model = fake()
    model.generate = lambda **kwargs: None
    watch_generate(model, log, on_error, failed)
    log.read("a", 1)  # the failed one is not taken for an answer to this
    model.generate(input_ids=torch.tensor([[9]]))
    assert [r.doc_id for r in log.rows] == [1]
