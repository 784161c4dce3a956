"""benchmarks/trained: packed answers are the answers of the wrapped model, and data depend on seed and step alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from study_scripts import imported
from torch import Tensor
from transformers import AutoProcessor

import vtc
from vtc.bundled_files import bundled_model_path
from vtc.eval.train.basics.images import draw_scene
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import NO_TARGET, PackedQuestions, pack
from vtc.eval.vlm.prompts import make_row
from vtc.pruners.pmod import PModRouters
from vtc.pruners.tokenflex import FlexProjector


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from imported(monkeypatch, "tokenflex")


@pytest.mark.parametrize("k", [16, 256])
def test_packed_logits_are_those_of_the_saved_model(study: Any, k: int, tmp_path: Path) -> None:
    import pictures

    model = study.load()
    torch.manual_seed(2)
    network = FlexProjector(study.WIDTH, study.WIDTH, study.WIDTH)
    with torch.no_grad():
        network.out.weight.copy_(torch.randn_like(network.out.weight).mul(0.05).bfloat16())
        for weight in (network.gate.weight, network.up.weight):
            weight.copy_(weight.bfloat16())
    image = draw_scene(random.Random(1), pictures.DENSITY)
    asked = pictures.sample_questions(random.Random(2), image.scene, pictures.LATER_SHARES)[:6]
    features = pictures.encoded(model, [image.pixels], tmp_path / "one.pt").float()
    packed = pack([asked])
    with torch.no_grad():
        tokens, places = study.Compressor(model, network)(features, k)
        found = answer_logits(model, tokens, places, packed)
    study.save(model, network, tmp_path / "model", {})
    loaded = vtc.load(tmp_path / "model", keep=k)
    compare(loaded, image.pixels, asked, packed, found)
    assert loaded.vtc.report.tokens_kept == k


def compare(model: Any, pixels: Any, asked: list[Any], packed: PackedQuestions, found: Tensor) -> None:
    """The first word of each answer, as the wrapped `model` says it of a question alone, is that of the packed ones."""
    from PIL import Image

    from vtc.eval.tasks.questions import Question

    processor = AutoProcessor.from_pretrained(bundled_model_path())
    columns = (packed.targets != NO_TARGET)[0].nonzero().flatten().tolist()
    for question, (start, _) in zip(asked, packed.spans[0], strict=True):
        row = make_row(processor, model.config, Image.fromarray(pixels), Question("q", "t", "i", question.text, ""))
        inputs = {"input_ids": row.ids[None], **{n: v[None] for n, v in row.tokens.items()}, **row.vision}
        with torch.no_grad():
            first = model(**inputs).logits[0, -1]
        assert torch.allclose(first, found[columns.index(start)], atol=0.15), "features are kept in bfloat16"


def test_packed_logits_under_loans_are_those_of_the_wrapped_model(study: Any, tmp_path: Path) -> None:
    import packed_loans
    import pictures

    model = study.load()
    depth = model.config.text_config.num_hidden_layers
    routers = PModRouters(study.WIDTH, depth)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in routers.parameters():
            weight.normal_(0, 0.1)
    image = draw_scene(random.Random(1), pictures.DENSITY)
    asked = pictures.sample_questions(random.Random(2), image.scene, pictures.LATER_SHARES)[:6]
    features = pictures.encoded(model, [image.pixels], tmp_path / "one.pt").float()
    packed = pack([asked])
    with torch.no_grad():
        projected = model.model.multi_modal_projector(features)
        found = packed_loans.answer_logits(model, projected, packed, routers)
    [pruner] = vtc.parse("pmod", weights="untrained")
    pruner.use(routers, {"width": study.WIDTH, "layers": depth})
    with vtc.compressed(model, pruner):
        compare(model, image.pixels, asked, packed, found)
        assert model.vtc.report.tokens_per_layer == packed_loans.counts_of(depth, study.PATCHES)


@pytest.mark.parametrize("k", [16, 1])
@pytest.mark.parametrize("text", [True, False])
def test_quecc_of_a_question_in_its_own_row_is_the_wrapped_model_s(
    study: Any, k: int, text: bool, tmp_path: Path
) -> None:
    import pictures
    import quecc
    from one_by_one import Shared

    torch.manual_seed(4)
    answers = quecc.Answers(quecc.Cell(text=text), k)
    answers.network.requires_grad_(False)
    image = draw_scene(random.Random(1), pictures.DENSITY)
    asked = pictures.sample_questions(random.Random(2), image.scene, pictures.LATER_SHARES)[:3]
    features = pictures.encoded(answers.model, [image.pixels], tmp_path / "one.pt", quecc.LEVELS).float()
    packed = [pack([[q]]) for q in asked]
    together = pack([[q] for q in asked])
    with torch.no_grad():
        alone = [answers.says(Shared(features, torch.zeros(1, dtype=torch.long)), p, 0) for p in packed]
        found = answers.says(Shared(features, torch.zeros(3, dtype=torch.long)), together, 0)
    assert torch.allclose(torch.cat(alone), found, atol=1e-4)
    [pruner] = vtc.parse("quecc", keep=k, weights="untrained", no_text=not text)
    sizes = {"width": quecc.WIDTH, "text": quecc.WIDTH, "levels": 4 * quecc.WIDTH, "kernel": quecc.SIDES[k], "heads": 8}
    pruner.use(answers.network, sizes)
    tokenizer = AutoProcessor.from_pretrained(bundled_model_path()).tokenizer
    with vtc.compressed(answers.model, pruner, tokenizer=tokenizer):
        for question, one, said in zip(asked, packed, alone, strict=True):
            compare(answers.model, image.pixels, [question], one, said)
        assert answers.model.vtc.report.tokens_kept == k


def test_steps_depend_on_seed_and_number_alone(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pictures

    monkeypatch.setattr(pictures, "SCENES", 3)
    monkeypatch.setattr(pictures, "EASY", 2)
    torch.save(torch.arange(5.0)[:, None, None].expand(5, 576, 2).bfloat16(), tmp_path / "training.pt")
    drawn = pictures.TrainingPictures(None, tmp_path)
    again = pictures.TrainingPictures(None, tmp_path)
    steps = [drawn.step(1, step) for step in range(12)]
    assert all(torch.equal(a.features, again.step(1, i).features) for i, a in enumerate(steps))
    assert [a.questions for a in steps] == [again.step(1, i).questions for i in range(12)]
    shown = [int(x) for a in steps[:11] for x in a.features[:, 0, 0]]
    assert sorted(shown[:3]) == sorted(shown[3:6]) == [0, 1, 2], "every scene once before any comes again"
    assert min(steps[11].features[:, 0, 0]) >= 3, "a twelfth of the steps shows easy-VQA"
    cell = study.CELLS["flexible"]
    counts = [study.count_at(cell, 0, step) for step in range(1000)]
    assert abs(counts.count(256) / 1000 - 0.5) < 0.05
    assert set(counts) == {64, 144, 256}
