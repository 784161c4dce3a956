"""``VisualTokens.questions``: the words behind each sample's last picture, and where their tokenizer comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import transformers
from asking import ask
from torch import Tensor
from zoo import FAMILIES, SPECIAL, prompt, shapes_of, tiny
from zoo.tokens import BOS, CLOSE, IMAGE, VIDEO

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
BUNDLED = Path(str(files("vtc.eval"))) / "bundled" / "model"


class Spelled:
    """A tokenizer whose words are the ids."""

    def decode(self, ids: Tensor, skip_special_tokens: bool = False) -> str:
        return " ".join(str(i) for i in ids.tolist() if not (skip_special_tokens and i in (BOS, *SPECIAL)))


@dataclass(kw_only=True)
class Asker(vtc.Pruner):
    """Keeps the first tokens; remembers the questions it was told."""

    name: ClassVar[str] = "asker"
    layer: int | None = None
    keep: int = 2
    seen: list[list[str]] = field(default_factory=list)

    uses_question = True
    ragged = True

    @property
    def stage(self) -> str:  # type: ignore[override]
        return "input" if self.layer is None else "decoder"

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.seen.append(tokens.questions())
        return torch.arange(k).expand(len(tokens.counts), -1)


def behind(row: list[int]) -> str:
    """The words of a row behind its last placeholder, from the row itself."""
    last = max((i for i, x in enumerate(row) if x in (IMAGE, VIDEO)), default=-1)
    return " ".join(str(x) for x in row[last + 1 :] if x not in (BOS, *SPECIAL))


@pytest.mark.parametrize(
    ("family", "shape"),
    [(f, s) for f in FAMILIES for s in shapes_of(FAMILIES[f], ("ragged", "text_row", "right", "video"))],
)
def test_the_words_behind_the_last_picture(family: str, shape: str) -> None:
    model, given, asker = tiny(family), prompt(family, shape), Asker(layer=2 if shape == "ragged" else None)
    with vtc.compressed(model, asker, tokenizer=Spelled()):
        model(**given.inputs)
    want = [behind(row) for row in given.rows]
    assert asker.seen == [want]
    assert all(want)
    assert len(set(want)) == len(want)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_in_generate_with_beams_and_with_candidates(family: str) -> None:
    model, given, asker = tiny(family), prompt(family, "one"), Asker()
    vtc.compress(model, asker, tokenizer=Spelled())
    model.generate(**given.inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    assert asker.seen == [[behind(given.rows[0])] * 2]
    # transformers < 5.13 needs an end token here
    model.generate(**given.inputs, max_new_tokens=4, do_sample=False, prompt_lookup_num_tokens=3, eos_token_id=CLOSE)
    assert asker.seen[1:] == [[behind(given.rows[0])]]


def test_a_tokenizer_or_a_processor_can_be_set() -> None:
    model, asker, inputs = tiny("llava"), Asker(), prompt("llava", "one").inputs
    spelled = Spelled()
    vtc.compress(model, asker, tokenizer=SimpleNamespace(tokenizer=spelled))
    assert model.vtc.tokenizer is spelled
    vtc.compress(model, asker, keep=None)
    assert model.vtc.tokenizer is spelled, "another method on the same model"
    with vtc.compressed(model, asker, tokenizer=Spelled()):
        assert model.vtc.tokenizer is not spelled
    assert model.vtc.tokenizer is spelled
    vtc.restore(model)
    vtc.compress(model, asker)
    assert model.vtc.tokenizer is None
    model.vtc.tokenizer = spelled
    model(**inputs)
    assert asker.seen == [[behind(prompt("llava", "one").rows[0])]]
    with pytest.raises(TypeError, match="tokenizer must be"):
        model.vtc.tokenizer = "llava"
    before = model.vtc
    with pytest.raises(TypeError, match="tokenizer must be"):
        vtc.compress(model, "uniform", keep=2, tokenizer=3)
    assert model.vtc is before


@pytest.mark.parametrize("place", ["", "nobody/nothing"])
def test_without_a_tokenizer_the_error_says_what_to_set(place: str) -> None:
    model = tiny("llava")
    model.name_or_path = model.config._name_or_path = place
    vtc.compress(model, Asker())
    with pytest.raises(ValueError, match=r"model\.vtc\.tokenizer = processor"):
        model(**prompt("llava", "one").inputs)


def test_embeddings_alone_have_no_words() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    vtc.compress(model, Asker(), tokenizer=Spelled())
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="without input_ids"):
        model(inputs_embeds=embeds, **inputs)


def test_only_who_declares_it_is_told() -> None:
    class Silent(Asker):
        uses_question = False

    class Early(Asker):
        stage = "vision"
        layer = 1

    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    vtc.compress(model, Silent(), tokenizer=Spelled())
    seen = []
    handle = model.model.language_model.register_forward_hook(
        lambda *_: seen.append(model.vtc.adapter.local.token_ids), with_kwargs=False
    )
    with pytest.raises(ValueError, match="uses_question = True"):
        model(**inputs)
    with vtc.compressed(model, "uniform", keep=2):
        model(**inputs)
    handle.remove()
    assert seen == [None]
    vtc.compress(model, Early(keep=2, layer=1))
    with pytest.raises(NotImplementedError, match="text is not there yet"):
        model(**inputs)


@pytest.mark.parametrize("how", ["load", "folder"])
def test_the_models_own_tokenizer_is_found(how: str) -> None:
    asker, question = Asker(), "what color is it?"  # words that the bundled model knows
    if how == "load":
        model: Any = vtc.load(BUNDLED, asker)
        assert model.vtc.tokenizer is not None
        assert vtc.load(BUNDLED, "uniform", keep=2).vtc.tokenizer is None, "nobody needs it"
    else:
        model = vtc.compress(transformers.AutoModelForImageTextToText.from_pretrained(BUNDLED), asker)
        assert model.vtc.tokenizer is None
    model(**ask(question))
    assert len(asker.seen) == 1
    assert asker.seen[0] == [question]
    assert model.vtc.tokenizer is not None
