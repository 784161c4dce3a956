"""benchmarks/trained/focusllava.py: what it trains and answers is what the wrapped model says of the same picture."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from study_scripts import imported
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from vtc.bundled_files import bundled_model_path
from vtc.eval.tasks.questions import Question
from vtc.eval.train.basics.images import draw_scene
from vtc.eval.vlm.prompts import make_row


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from imported(monkeypatch, "focusllava")


@torch.no_grad()
def test_logits_are_those_of_the_whole_model_asked_by_itself(study: Any) -> None:
    import asked_alone
    import pictures

    image = draw_scene(random.Random(1), pictures.DENSITY)
    asked = pictures.sample_questions(random.Random(2), image.scene, pictures.LATER_SHARES)[:2]
    model = AutoModelForImageTextToText.from_pretrained(bundled_model_path(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(bundled_model_path())
    vtc.compress(model, "focusllava", keep=64, weights="untrained")
    row = make_row(processor, model.config, Image.fromarray(image.pixels), Question("q", "t", "i", asked[1].text, ""))
    inputs = {"input_ids": row.ids[None], **{n: v[None] for n, v in row.tokens.items()}, **row.vision}
    expected = model(**inputs).logits[0, -1]
    states = model.model.vision_tower(row.vision["pixel_values"], output_hidden_states=True).hidden_states
    wrapped, network = study.wrapped(study.CELLS["both samplers"])
    assert sorted(network.state_dict()) == sorted(model.vtc.pipeline[0].built.state_dict())
    rows = asked_alone.rows_of(states[-2][:, 1:], [asked], model.config.image_token_id)
    ours = asked_alone.logits_of(wrapped, rows)[1, 0]
    assert wrapped.vtc.report.tokens_kept == 64 * len(asked)
    assert torch.allclose(ours, expected, atol=1e-3)
    assert rows.targets.shape == rows.weights.shape


def test_cells_of_a_group_see_as_many_tokens_in_every_layer(study: Any) -> None:
    seen: dict[str, set[Any]] = {}
    for cell in study.CELLS.values():
        params = {"weights": "untrained"} if cell.pruner == study.FOCUS else {}
        stops = [s for p in vtc.parse(cell.pruner, **cell.params, **params) for s in p.stops(8)]
        seen.setdefault(cell.group, set()).add(tuple((s.stage, s.layer, s.keep) for s in stops))
    assert {name: len(found) for name, found in seen.items()} == dict.fromkeys(("both", "vision", "text"), 1)
    assert set(study.ORDER) == set(study.CELLS)
    assert {study.CELLS[name].group for name in study.FIRST.values()} == set(study.FIRST)


def test_a_table_is_of_what_is_there(study: Any, tmp_path: Any) -> None:
    from pictures import Evaluation

    names = [f"q{i}" for i in range(6)]
    given = Evaluation(
        torch.zeros(0), [], [], {n: f"i{i // 2}" for i, n in enumerate(names)}, dict.fromkeys(names, "t")
    )
    for cell, right in (("pool + fastv", 3), ("both samplers", 4)):
        scores = {n: float(i < right) for i, n in enumerate(names)}
        (tmp_path / f"{study.named(cell + ':0')}.json").write_text(json.dumps(scores))
    found = study.table(tmp_path, replace(given))
    assert "| 128, then 64 | pool + fastv | nothing |  | 50.0 |  |" in found
    assert "| both samplers | samplers, projector, language model | 1 | 66.7 | +16.7 [" in found
    assert "vision alone" not in found
