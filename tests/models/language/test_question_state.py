"""``QuestionState``: the language model's last state of the question alone, beside the prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from asking import BUNDLED, ask
from reference import text_model
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer
from zoo import FAMILIES, prompt, tiny
from zoo.tokens import BOS, IMAGE, VIDEO

import vtc
from vtc.models.language.question_words import question_alone
from vtc.pruners.signals import QuestionState, Signal

pytestmark = pytest.mark.usefixtures("no_grad")


@dataclass(kw_only=True)
class Asker(vtc.Pruner):
    """Keeps the first tokens; remembers the states it was told."""

    name: ClassVar[str] = "asker"
    keep: int = 2
    of: str = "ids"
    stage: str = "input"  # type: ignore[misc]
    layer: int | None = None
    seen: list[Tensor] = field(default_factory=list)
    uses_text = True
    ragged = True

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        return (QuestionState(of=self.of),)

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.seen.append(tokens.text(QuestionState(of=self.of)))
        return torch.arange(k).expand(len(tokens.counts), -1)


def behind(row: list[int]) -> list[int]:
    """BOS and the ids of a row behind its last placeholder."""
    last = max(i for i, x in enumerate(row) if x in (IMAGE, VIDEO))
    return [BOS, *row[last + 1 :]]


def bundled() -> Any:
    return AutoModelForImageTextToText.from_pretrained(BUNDLED, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_last_state_of_the_stock_model_on_the_question(family: str) -> None:
    model, given, asker = tiny(family), prompt(family, "ragged"), Asker()
    lm = text_model(model)
    expected = [lm(input_ids=torch.tensor([behind(row)])).last_hidden_state[0, -1] for row in given.rows]
    with vtc.compressed(model, asker):
        model(**given.inputs)
        asked = model.vtc.report.asked_alone
    [states] = asker.seen
    assert torch.allclose(states, torch.stack(expected), atol=1e-5)
    assert asked == {i: len(behind(row)) for i, row in enumerate(given.rows)}


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_a_sample_without_pictures_has_zeros_and_equal_questions_are_read_once(impl: str) -> None:
    model, given, asker = tiny("llava", impl), prompt("llava", "text_row"), Asker()
    text = next(i for i, media in enumerate(given.media) if not media)
    with vtc.compressed(model, asker):
        model(**given.inputs)
    assert not asker.seen[0][text].any()
    one = prompt("llava", "one").inputs
    calls: list[int] = []
    lm = text_model(model)
    stock = lm.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        found = stock(*args, **kwargs)
        calls.append(len(found.last_hidden_state))
        return found

    lm.forward = counted
    with vtc.compressed(model, asker):
        model(**{k: v.expand(2, *v.shape[1:]) for k, v in one.items()})
    assert calls == [1, 2], "the question of both once, then the prompts"


def test_the_prompt_is_read_as_without_it_and_what_is_recorded_is_the_prompt_s() -> None:
    model, given = tiny("llava"), prompt("llava", "one").inputs
    seen: list[int] = []
    handle = text_model(model).register_forward_hook(lambda *_: seen.append(1))
    with vtc.compressed(model, Asker()):
        out = model(**given, output_hidden_states=True)
        length = out.past_key_values.get_seq_length()
    handle.remove()
    assert seen == [1], "no hook of the text model's own runs for it"
    assert len(out.hidden_states) == len(text_model(model).layers) + 1
    assert length == given["input_ids"].shape[1], "nothing of the question is in the cache"


def test_words_are_tokenized_anew_and_alone() -> None:
    model, asker = bundled(), Asker(of="words")
    inputs, tokenizer = ask("what color is a?"), AutoTokenizer.from_pretrained(BUNDLED)
    ids = tokenizer("what color is a?", add_special_tokens=False)["input_ids"]
    expected = text_model(model)(input_ids=torch.tensor([[tokenizer.bos_token_id, *ids]])).last_hidden_state[0, -1]
    with vtc.compressed(model, asker):
        model(**inputs)
        asked = model.vtc.report.asked_alone
    assert torch.allclose(asker.seen[0][0], expected, atol=1e-5)
    assert asked == {0: len(ids) + 1}
    with vtc.compressed(model, asker):
        model(**ask("what color is b?"))
    assert not torch.allclose(asker.seen[1], asker.seen[0], atol=1e-2)


class Spelled:
    """A tokenizer of given words."""

    eos_token, all_special_tokens = "</s>", ("<s>", "</s>", "USER:")

    def __init__(self, text: str):
        self.text = text

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return self.text


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("\nWhat is it? ASSISTANT:", "What is it?"),
        ("\nWhat is it? ASSISTANT: A cat.</s>USER: And now? ASSISTANT:", "What is it?"),
        (" what?</s>USER: again", "what?"),
        ("two\nlines ASSISTANT:", "two\nlines"),
        (" ASSISTANT:", "image"),
        ("", "image"),
        ("<s> plain ", "plain"),
    ],
)
def test_the_question_ends_where_the_answer_begins(text: str, question: str) -> None:
    assert question_alone(torch.tensor([1]), Spelled(text)) == question


def test_what_can_not_be_asked_is_refused_in_words() -> None:
    model, given = tiny("llava"), prompt("llava", "one").inputs
    with pytest.raises(ValueError, match=r"asker reads QuestionState .* at the decoder stage"):
        vtc.compress(model, Asker(stage="decoder", layer=2))
    vtc.compress(model, Asker(of="words"))
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        model(**given)
    vtc.restore(model)
    vtc.compress(model, Asker())
    embeds = model.get_input_embeddings()(given["input_ids"])
    with pytest.raises(ValueError, match=r"without input_ids .*inputs_embeds only"):
        model(**{k: v for k, v in given.items() if k != "input_ids"}, inputs_embeds=embeds)
    vtc.restore(model)
    with pytest.raises(ValueError, match=r"QuestionState\.of must be 'words' or 'ids'"):
        QuestionState(of="sound")
