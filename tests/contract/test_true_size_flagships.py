"""The models of today at their true size: wrapped on ``meta``, and run on the pretended GPU. No weights, seconds."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from anatomy import anatomy
from fake_flagships import TEXT, pretended
from methods import asked
from packaging.version import Version
from torch import nn
from versions import known
from zoo.flagships_dense import DENSE
from zoo.flagships_of_gemma import GEMMA
from zoo.flagships_sparse import REFUSED, SPARSE

import vtc

pytestmark = [
    pytest.mark.usefixtures("no_grad"),
    pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.23"), reason="written for newer configuration classes"
    ),
]
FLAGSHIPS = {**DENSE, **GEMMA, **SPARSE}
RUN = [name for name, flagship in FLAGSHIPS.items() if flagship.picture is not None]
# billions of parameters in the checkpoint's own name, beside those measured
NAMED = {
    "molmo2-8b": 8,
    "muse-glimmer-30b": 30,
    "exaone-4.5-33b": 33,
    "gemma-4-31b": 31,
    "gemma-4-26b-a4b": 26,
    "qwen3.5-9b": 9,
    "qwen3.5-35b-a3b": 35,
    "qwen3-vl-30b-a3b": 30,
    "qwen3-omni-30b-a3b": 30,
    "glm-4.5v-106b": 106,
    "command-a-vision-112b": 112,
    "internvl3-38b": 38,
    "lfm2-vl-1.6b": 1.6,
    "lfm3-vl-2b": 2,
    "ernie-4.5-vl-28b-a3b": 28,
    "nemotron-3-nano-omni-30b-a3b": 30,
    "muse-spark-816b": 816,
    "kimi-k2.5": 1000,
    "mistral-large-4": 1000,
}

WITHOUT_KEYS = ("linear_attention", "conv", "moe", "mlp")


def parts(config: Any) -> tuple[list[bool], int]:
    """Whether each decoder layer has keys of its own, and the first layer that can prune by what one before it read."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    own = [kind not in WITHOUT_KEYS for kind in kinds]
    shared = getattr(text, "num_kv_shared_layers", 0)
    return own[: len(own) - shared] + [False] * shared, own.index(True, 1) + 1


def pipeline(layer: int) -> str:
    return f"random(keep=0.5) + fastv(layer={layer}, keep=64) + random(layer={layer + 5}, keep=16)"


def held(cache: Any) -> list[int | None]:
    """Columns in each layer of a cache; None where it has no keys."""
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    return [None if k is None else k.shape[-2] for k in keys]


def size_of(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e9


@pytest.mark.share(2)
@pytest.mark.parametrize("name", FLAGSHIPS)
def test_wrapping_on_meta_and_back(name: str) -> None:
    known(FLAGSHIPS[name].kind)
    model = FLAGSHIPS[name].on_meta()
    assert size_of(model) == pytest.approx(FLAGSHIPS[name].billions, rel=0.005, abs=0.005)
    before = anatomy(model)
    vtc.compress(model, pipeline(parts(model.config)[1]))
    assert anatomy(model) != before
    vtc.restore(model)
    assert anatomy(model) == before


@pytest.mark.parametrize("name", NAMED)
def test_a_true_size_is_the_named_one(name: str) -> None:
    assert {**FLAGSHIPS, **REFUSED}[name].billions == pytest.approx(NAMED[name], rel=0.1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_vtc_refuses_is_refused_untouched(name: str) -> None:
    known(REFUSED[name].kind)
    model = REFUSED[name].on_meta()
    assert size_of(model) == pytest.approx(REFUSED[name].billions, rel=0.005)
    before = anatomy(model)
    with pytest.raises(NotImplementedError) as told:  # test_refused_families.py holds the reasons
        vtc.compress(model, pipeline(2))
    assert len(str(told.value).splitlines()) == 1
    assert anatomy(model) == before


@pytest.mark.share(4)
@pytest.mark.parametrize("name", RUN)
def test_a_picture_and_a_step_wait_for_nothing(name: str) -> None:
    known(FLAGSHIPS[name].kind)
    with pretended(FLAGSHIPS[name]) as run:
        config, lengths = run.model.config, run.picture.lengths
        own, layer = parts(config)
        vtc.compress(run.model, pipeline(layer))
        out = run.prefill()
        half = [asked(0.5, n) for n in lengths]
        left = [[min(keep, n) for n in half] for keep in (10**6, 64, 16)]
        expected = [TEXT + sum(left[(i >= layer) + (i >= layer + 5)]) for i in range(len(own))]
        columns = [n if has else None for n, has in zip(expected, own, strict=True)]
        assert held(out.past_key_values) == columns
        vocabulary = config.get_text_config().vocab_size
        assert out.logits.shape == (1, run.width, vocabulary)
        report = run.model.vtc.report
        assert (report.tokens_total, report.tokens_kept) == (sum(lengths), sum(left[2]))
        step = run.step(out.past_key_values)
        assert step.logits.shape == (1, 1, vocabulary)
        assert held(step.past_key_values) == [n and n + 1 for n in columns]
        assert out.logits.device.type == step.logits.device.type == "cuda"
