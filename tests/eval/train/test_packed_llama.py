"""Packed training must compute what the released model computes on each question alone."""

from __future__ import annotations

import random

import pytest
import torch

from vtc.eval.train.basics.recipe import tiny_recipe
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.llava import build_llava
from vtc.eval.train.language.pack_questions import pack, text_ids
from vtc.eval.train.scenes.questions import FIRST_SHARES, sample_questions
from vtc.eval.train.scenes.scene import DENSE, sample_scene
from vtc.eval.train.scenes.vocabulary import ASSISTANT_ID, BOS_ID, IMAGE_ID, USER_ID, build_tokenizer
from vtc.eval.train.vision.tower import build_clip


@pytest.mark.parametrize("kept_count", [576, 100])
def test_packed_logits_equal_those_of_each_question_alone(kept_count: int) -> None:
    torch.manual_seed(0)
    recipe = tiny_recipe()
    clip = build_clip(recipe.vision, build_tokenizer().get_vocab_size())
    model = build_llava(recipe.language, clip, build_tokenizer().get_vocab_size()).eval()
    rng = random.Random(0)
    scene = sample_scene(rng, DENSE)
    asked = [sample_questions(rng, scene, FIRST_SHARES)[:6] for _ in range(2)]
    kept = torch.tensor(sorted(rng.sample(range(576), kept_count)))
    features = torch.randn(2, kept_count, recipe.language.width)
    packed = pack(asked)
    with torch.no_grad():
        found = answer_logits(model, features, kept, packed)
    row = 0
    for image, questions in enumerate(asked):
        for question in questions:
            answer = [*text_ids(question.answer)]
            text = [*text_ids(question.text), ASSISTANT_ID, *answer]
            embedding = model.model.language_model.embed_tokens
            inputs = torch.cat(
                [
                    embedding(torch.tensor([[BOS_ID, USER_ID]])),
                    features[image : image + 1],
                    embedding(torch.tensor([text])),
                ],
                dim=1,
            )
            positions = torch.cat([torch.arange(2), kept + 2, torch.arange(578, 578 + len(text))])[None]
            with torch.no_grad():
                hidden = model.model.language_model(inputs_embeds=inputs, position_ids=positions).last_hidden_state[0]
                expected = model.lm_head(hidden[-len(answer) - 1 :])
            count = len(answer) + 1
            torch.testing.assert_close(found[row : row + count], expected, atol=2e-4, rtol=1e-3)
            row += count
    assert row == len(found)
    assert IMAGE_ID not in packed.tokens
