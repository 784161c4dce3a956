"""The adapter's training on a tiny model of the same making: no package with weights is needed."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn
from zoo import models

from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.loop import Place, run_steps
from vtc.eval.train.export import fast_tokenizer
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import NO_TARGET, pack
from vtc.eval.train.real import real_stage
from vtc.eval.train.real.asking import wording_of
from vtc.eval.train.real.card import verdict, write_card
from vtc.eval.train.real.figures import SHARES, as_markdown
from vtc.eval.train.real.low_rank import add_low_rank, save_adapter
from vtc.eval.train.real.pictures import FeatureStore, draw
from vtc.eval.train.real.recipe import RealRecipe, tiny_real_recipe
from vtc.eval.train.real.where_to_look import WhereToLook
from vtc.eval.train.scenes.build_evaluation_set import evaluation_scenes
from vtc.eval.train.scenes.palette import GRID, LETTERS
from vtc.eval.train.scenes.questions import Question
from vtc.eval.train.scenes.render import patch_labels
from vtc.real.assemble import apply_adapter

PATCHES, SIDE = 16, 28


def small_model() -> nn.Module:
    """DINOv2 and a Llama with grouped heads, of the vocabulary of the bundled model's tokenizer."""
    torch.manual_seed(0)
    text = {**models.TEXT, "vocab_size": len(fast_tokenizer())}
    config = tf.LlavaConfig(
        vision_config=models.dinov2(),
        text_config=tf.LlamaConfig(**text),
        image_token_id=4,
        image_seq_length=PATCHES,
        vision_feature_layer=[1, -2],
        vision_feature_select_strategy="default",
    )
    return models.build(tf.LlavaForConditionalGeneration, config, "sdpa")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tf.BitImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = SimpleNamespace(tokenizer=fast_tokenizer(), image_processor=pixels)
    monkeypatch.setattr(real_stage, "build_model", small_model)
    monkeypatch.setattr(real_stage, "build_processor", lambda: processor)


def trained(folder: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    place = Place(folder, Ranks(), save_seconds=0.0)
    student = real_stage.train_adapter(tiny_real_recipe(seed), place)
    return {name: tensor.clone() for name, tensor in student.parts().state_dict().items()}


def test_a_run_that_was_killed_ends_where_another_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path / "whole")

    def die(place, name, total, train_step, parts):
        def step_or_die(step):
            if name == "real" and step >= 1:
                raise KeyboardInterrupt
            return train_step(step)

        return run_steps(place, name, total, step_or_die, parts)

    with monkeypatch.context() as patch:
        patch.setattr(real_stage, "run_steps", die)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed")
    resumed = trained(tmp_path / "killed")
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)
    other = trained(tmp_path / "seed", seed=1)
    assert not torch.equal(other["projector.linear_1.weight"], whole["projector.linear_1.weight"])


def test_both_parts_are_trained_and_nothing_else(tmp_path: Path) -> None:
    student = real_stage.build_student(tiny_real_recipe())
    before = {name: p.clone() for name, p in student.model.named_parameters()}
    learnt = trained(tmp_path)
    after = real_stage.train_adapter(tiny_real_recipe(), Place(tmp_path, Ranks())).model
    changed = {name for name, p in after.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[1] for name in changed} == {"multi_modal_projector", "language_model"}
    assert all(name.endswith((".up", ".down")) for name in changed if "language_model" in name)
    assert any(tensor.abs().max() > 0 for name, tensor in learnt.items() if name.startswith("low_rank"))


def test_the_last_part_goes_on_from_an_adapter(tmp_path: Path) -> None:
    whole, file = trained(tmp_path / "whole"), tmp_path / "adapter.safetensors"
    student = real_stage.train_adapter(tiny_real_recipe(), Place(tmp_path / "whole", Ranks()))
    save_adapter(student.projector, student.added, file)
    nothing = replace(tiny_real_recipe(), more_steps=0)
    read = real_stage.train_adapter(nothing, Place(tmp_path / "read", Ranks()), start=file).parts().state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(read[name], tensor.bfloat16().float(), rtol=0, atol=0)
    more = real_stage.train_adapter(tiny_real_recipe(), Place(tmp_path / "more", Ranks()), start=file)
    assert any(not torch.equal(tensor, read[name]) for name, tensor in more.parts().state_dict().items())
    assert {path.name for path in (tmp_path / "more").glob("*.pt")} == {"real-more.pt"}


@torch.no_grad()
def test_the_file_of_the_adapter_makes_the_same_model(tmp_path: Path) -> None:
    plain = small_model()
    student, merged = deepcopy(plain), deepcopy(plain)
    added = add_low_rank(student.model.language_model, rank=3)
    assert len(added) == 7 * models.DEPTH
    for module in added.values():
        module.frozen.float()
        module.up.normal_(0, 0.1)
        for weight in (module.up, module.down):  # what bfloat16 holds
            weight.copy_(weight.bfloat16())
    for weight in student.model.multi_modal_projector.parameters():
        weight.normal_(0, 0.1).copy_(weight.bfloat16())
    save_adapter(student.model.multi_modal_projector, added, tmp_path / "a" / "adapter.safetensors")
    apply_adapter(merged, tmp_path / "a" / "adapter.safetensors")
    ids = torch.tensor([[1, *[4] * PATCHES, 7, 8, 9]])
    pixels = torch.randn(1, 3, SIDE, SIDE)
    # frozen matrices are kept in bfloat16 while training: the reference is rounded alike
    for name in added:
        weight = merged.model.language_model.get_parameter(f"{name}.weight")
        own = plain.model.language_model.get_parameter(f"{name}.weight")
        weight.add_(own.bfloat16().float() - own)
    want = student(input_ids=ids, pixel_values=pixels).logits
    have = merged(input_ids=ids, pixel_values=pixels).logits
    assert not torch.allclose(have, plain(input_ids=ids, pixel_values=pixels).logits, atol=0.1)
    torch.testing.assert_close(have, want, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("count", [PATCHES, 5])
def test_packed_questions_are_answered_as_each_alone(count: int) -> None:
    """Grouped heads, and the words in front of the image that this model has."""
    model = small_model()
    wording = wording_of(fast_tokenizer(), PATCHES)
    asked = [[Question("", "what color is k?", "red"), Question("", "where is b?", "top-left")]]
    packed = pack(asked, wording)
    kept = torch.arange(PATCHES)[:: PATCHES // count][:count]
    features = torch.randn(1, len(kept), 64)
    found = answer_logits(model, features, kept, packed, wording)
    row, embed = 0, model.get_input_embeddings()
    for question in asked[0]:
        answer = [*wording.answer(question.answer)]
        text = [*wording.prompt(question.text), *answer[:-1]]
        before = len(wording.prefix)
        inputs = torch.cat([embed(torch.tensor([wording.prefix])), features, embed(torch.tensor([text]))], dim=1)
        start = wording.text_position
        places = torch.cat([torch.arange(before), kept + before, torch.arange(start, start + len(text))])[None]
        hidden = model.model.language_model(inputs_embeds=inputs, position_ids=places).last_hidden_state[0]
        want = model.lm_head(hidden[-len(answer) :])
        torch.testing.assert_close(found[row : row + len(answer)], want, atol=1e-3, rtol=1e-3)
        row += len(answer)
    assert row == len(found) == int((packed.targets != NO_TARGET).sum())


def test_features_are_encoded_once(tmp_path: Path) -> None:
    seen: list[int] = []

    def store() -> FeatureStore:
        encode = lambda number: seen.append(number) or torch.full((2, 3), float(number))  # noqa: E731
        return FeatureStore(tmp_path, (5, 2, 3), encode, lambda number: number)

    first = store()
    assert first([3, 1]).tolist() == [[[3.0] * 3] * 2, [[1.0] * 3] * 2]
    assert store()([1, 2, 3])[:, 0, 0].tolist() == [1, 2, 3]
    assert seen == [3, 1, 2]


def test_training_pictures_are_none_of_the_evaluation_set() -> None:
    recipe = RealRecipe()
    asked = {scene.fingerprint() for scene in evaluation_scenes()}
    scenes = [draw(recipe, number).scene for number in range(recipe.scenes)]
    assert {scene.fingerprint() for scene in scenes if scene}.isdisjoint(asked)
    easy = [draw(recipe, recipe.scenes + number).easy for number in range(recipe.easy)]
    assert {image.path.parent.parent.name for image in easy if image} == {"train"}


@pytest.mark.parametrize("recipe", [RealRecipe(), RealRecipe().more()])
def test_scenes_come_in_order_and_round_again(recipe: RealRecipe) -> None:
    steps = [real_stage.numbers_of(recipe, step) for step in range(recipe.steps)]
    shown = [number for numbers in steps for number in numbers]
    scenes = [number for number in shown if number < recipe.scenes]
    assert scenes == [number % recipe.scenes for number in range(len(scenes))]
    easy = [number for number in shown if number >= recipe.scenes]
    assert easy == [recipe.scenes + number % recipe.easy for number in range(len(easy))]
    first, end = recipe.window_steps
    by_step = {len(numbers) for step, numbers in enumerate(steps) if step % recipe.easy_every != recipe.easy_every - 1}
    assert by_step == {recipe.windows_per_step, recipe.scenes_per_step}
    assert len(steps[first + 2 * (first % 4 == 3)]) == recipe.windows_per_step
    assert len(steps[end + 2]) == recipe.scenes_per_step


def test_a_window_is_asked_about_what_lies_in_it() -> None:
    rng = random.Random(0)
    picture = draw(RealRecipe(), 500)
    kept, part = real_stage.draw_window(rng, grid=16, side=8)
    assert len(kept) == 64
    rows, columns = kept // 16, kept % 16
    assert (int(columns.min()) / 16, int(rows.min()) / 16) == part[:2]
    assert (int(columns.max() + 1) / 16, int(rows.max() + 1) / 16) == part[2:]
    owners = set(picture.labels(16).owner[kept].tolist())
    asked = {q.text.split()[-1][0] for q in picture.ask(rng, {"color": 99}, part)}
    inside = {e.label for i, e in enumerate(picture.scene.entities) if i in owners and e.kind == "lettered"}
    assert asked
    assert asked <= inside
    assert len(picture.ask(rng, {"color": 99})) > len(asked)


def test_labels_of_a_coarser_grid_are_of_the_same_things() -> None:
    scene = evaluation_scenes(1)[0]
    fine, coarse = patch_labels(scene), patch_labels(scene, 16)
    assert coarse.color.shape == (256,)
    for entity in scene.entities:
        row, column = int(entity.y / 21), int(entity.x / 21)
        assert coarse.color[row * 16 + column] == fine.color[int(entity.y / 14) * GRID + int(entity.x / 14)]
    assert np.abs(coarse.offset[coarse.owner >= 0]).max() < 2


def test_figures_as_a_table_and_a_card(tmp_path: Path) -> None:
    rows = {row: {"color": [50.0, 40.0, 60.0, 7]} for row in SHARES}
    rows["prior"] = {"color": 12.5}
    write_card(rows, tmp_path / "README.md")
    card = (tmp_path / "README.md").read_text()
    assert as_markdown(rows) in card
    assert "above the blind model: no task (0 of 1). It is a model for features and speed" in card
    rows["blind"] = {"color": [30.0, 20.0, 40.0, 7]}
    assert verdict(rows).startswith("20 points or more above the blind model: color (1 of 1)")
    table = as_markdown(rows).splitlines()
    assert table[2].startswith("| color | 7 | 50.0 (40.0 to 60.0) |")
    assert table[2].endswith("| 12.5 |")
    assert len({line.count("|") for line in table}) == 1


def test_heads_are_told_where_to_look() -> None:
    wording = wording_of(fast_tokenizer(), patches=4)
    asked = [[Question("count", "how many shapes are ring?", "1"), Question("color", "what color is c?", "red")]]
    packed = pack(asked, wording)
    letters = torch.tensor([[-1, LETTERS.index("c"), LETTERS.index("d"), LETTERS.index("c")]])
    config = SimpleNamespace(num_hidden_layers=15, num_attention_heads=4, num_key_value_heads=2)
    look = WhereToLook(packed, asked, wording, letters, config)
    before, length = len(wording.prefix), packed.tokens.shape[1]
    prompt = fast_tokenizer()("c", add_special_tokens=False).input_ids
    (key,) = (packed.tokens[0] == prompt[-1]).nonzero().flatten().tolist()
    start = packed.spans[0][1][0]
    weights = torch.zeros(4, length, before + 4 + length)
    weights[[0, 2], key, before + 1], weights[[0, 2], key, before + 3] = 0.25, 0.5
    weights[[0, 2], start, before + 4 + key] = 0.1
    for layer in range(15):
        look.see(layer, 0, weights)
    expected = -(torch.tensor([0.75, 0.1]) + 1e-4).log().mean()
    torch.testing.assert_close(look.loss(), expected)


def test_nothing_by_letter_is_no_loss() -> None:
    wording = wording_of(fast_tokenizer(), patches=1)
    asked = [[Question("count", "how many shapes are ring?", "1")]]
    config = SimpleNamespace(num_hidden_layers=15, num_attention_heads=2, num_key_value_heads=2)
    look = WhereToLook(pack(asked, wording), asked, wording, torch.tensor([[-1]]), config)
    look.see(4, 0, torch.ones(2, 3, 9))
    assert look.loss() == 0
