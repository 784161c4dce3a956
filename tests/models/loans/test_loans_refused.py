"""What can't be lent from is refused in words before anything runs; where a layer's MLP branch ends is found."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import transformers as tf
from routed import ROUTED, Routed
from torch import nn
from zoo import prompt, tiny

import vtc
from vtc.models.language.narrowed_calls import _mixer
from vtc.models.loans.mlp_branch import branch_end
from vtc.pruners.base import Lent, Loan, Stop
from vtc.pruners.signals import DecoderHidden

pytestmark = pytest.mark.usefixtures("no_grad")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("llama", "mlp"),
        ("qwen2", "mlp"),
        ("granite", "mlp"),
        ("cohere", "mlp"),
        ("phi", "mlp"),
        ("gemma2", "post_feedforward_layernorm"),
        ("gemma3_text", "post_feedforward_layernorm"),
        ("olmo2", "post_feedforward_layernorm"),
        ("glm4", "post_mlp_layernorm"),
    ],
)
def test_the_end_of_the_mlp_branch(kind: str, end: str) -> None:
    with torch.device("meta"):
        model: Any = tf.AutoModel.from_config(tf.CONFIG_MAPPING[kind](**SIZES))
    layer = model.layers[1]
    assert branch_end(layer, _mixer(layer), 32, "pmod") is getattr(layer, end)


class Further(nn.Module):
    """A layer that bends everything behind its MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Identity(), nn.Identity()

    def forward(self, hidden_states: Any, attention_mask: Any = None, position_embeddings: Any = None) -> Any:
        return torch.tanh(hidden_states + self.mlp(hidden_states))


class Without(Further):
    """A layer whose MLP has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.feed_forward = self.mlp
        del self.mlp


@pytest.mark.parametrize(("layer", "words"), [(Further(), "more to a token behind its MLP"), (Without(), "no 'mlp'")])
def test_layers_without_such_an_end(layer: nn.Module, words: str) -> None:
    with pytest.raises(NotImplementedError, match=words):
        branch_end(layer, layer.self_attn, 8, "pmod")


@dataclass(kw_only=True)
class Lender(vtc.Pruner):
    """Lends at some layers, and may get wrong what it gives back."""

    name: ClassVar[str] = "lender"
    stage = "decoder"
    ragged = True
    lent: tuple[Stop, ...] = (Loan(2, 0.5),)
    gives: str = "lent"

    def stops(self, depth: int) -> tuple[Stop, ...]:
        return self.lent

    def select(self, tokens: vtc.VisualTokens, k: int) -> Any:
        index = torch.arange(k).expand(len(tokens.counts), k)
        gate = torch.ones(tokens.ids.shape)
        return {
            "lent": lambda: Lent(index, gate),
            "index": lambda: index,
            "float": lambda: Lent(index.float(), gate),
            "short": lambda: Lent(index[:, 1:], gate),
            "gates": lambda: Lent(index, gate[:, 1:]),
            "twice": lambda: Lent(torch.zeros_like(index), gate),
        }[self.gives]()


@pytest.mark.parametrize(
    ("gives", "error"),
    [("index", TypeError), ("float", TypeError), ("short", ValueError), ("gates", ValueError), ("twice", ValueError)],
)
def test_what_a_method_gives_back_is_looked_at(gives: str, error: type[Exception]) -> None:
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    plain = model(**inputs).logits
    with vtc.compressed(model, Lender(gives=gives)), pytest.raises(error, match=r"lender\.select must return"):
        model(**inputs)
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize(
    ("pipeline", "error", "words"),
    [
        ([Lender(lent=(Loan(6, 0.5),))], ValueError, "out of range"),
        ([Lender(lent=(Loan(2, 1.5),))], ValueError, "out of range"),
        ([Lender(lent=(Loan(2, 0.5), Loan(2, 0.4)))], ValueError, "two stops at one decoder layer"),
        ([Lender(), *vtc.parse("dart(layer=3, keep=0.5)")], NotImplementedError, "dart can't drop any"),
        ([*vtc.parse("vtw(layer=4)"), Lender()], NotImplementedError, "vtw can't drop any"),
        ([Lender(), Lender(lent=(Loan(3, 0.5),))], NotImplementedError, "lender can't drop any"),
    ],
)
def test_pipelines(pipeline: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        vtc.compress(tiny("llava"), pipeline)


def test_a_lender_that_reads_signals() -> None:
    class Reader(Lender):
        signals = (DecoderHidden(0),)

    with pytest.raises(ValueError, match="nothing but the states that enter the layer"):
        vtc.compress(tiny("llava"), Reader())


def test_streams_shared_keys_and_recurrent_layers() -> None:
    from vtc.models.loans.loan_hooks import Loans

    stops = [(Routed(), Loan(1, 0.5))]
    parts = SimpleNamespace(lm=nn.Linear(1, 1), layers=[None] * 2)

    def side(streams: int = 1, sources: tuple[int, ...] = (0, 1), kind: str = "attention") -> Any:
        windows = SimpleNamespace(streams=streams, kinds=["attention", kind])
        return SimpleNamespace(steps=None, local=None, windows=windows, sources=list(sources), calls=None)

    for given, words in (
        (side(streams=4), "4 of them"),
        (side(sources=(0, 0)), "read the keys of others"),
        (side(kind="recurrent"), "no attention layer"),
    ):
        with pytest.raises(NotImplementedError, match=words):
            Loans(parts, stops, given)  # type: ignore[arg-type]


def test_torch_compile_is_refused_in_words() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, ROUTED.pruner):
        torch._dynamo.reset()
        with pytest.raises(NotImplementedError, match=r"torch\.compile"):
            torch.compile(model, backend="eager")(**inputs)
    torch._dynamo.reset()


def test_an_exception_inside_a_layer_leaves_nothing_behind() -> None:
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    with vtc.compressed(model, ROUTED.pruner):
        good = model(**inputs).logits
        handle = model.model.language_model.layers[4].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        handle.remove()
        text = prompt("llava", "text").inputs
        assert model(**text).logits.isfinite().all()
        assert torch.equal(model(**inputs).logits, good)


def test_loans_are_values() -> None:
    one = Loan(3, 0.475)
    assert (one.stage, one.layer, one.keep) == ("decoder", 3, 0.475)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one._replace(layer=3)):
        assert isinstance(other, Loan)
        assert other == one
    ratios = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for n, ratio in zip(range(1, 3000, 15), ratios.tolist(), strict=True):
        expected = int(torch.tensor(n, dtype=torch.float32) * torch.tensor(ratio, dtype=torch.float32))
        assert Loan(0, ratio).count(n) == expected
