"""p-MoD's vectors: a LLaVA whose text model has the drawn weights, wrapped, prefilled and decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import golden_pmod_draws as draws
import numpy as np
import torch
import transformers as tf
from golden_support import Golden, golden
from golden_trained_draws import normal, sha
from torch import Tensor, nn

import vtc
from vtc.pruners.base import Loan, Stop
from vtc.pruners.pmod import OFFICIAL, PMoD, PModRouters

IMAGE, PAD, FIRST = 0, 1, 2  # ids; those from FIRST on are the text tokens as drawn


@dataclass(kw_only=True)
class AtRatios(PMoD):
    """The method at a vector's own layers."""

    name = "pmod"
    at: tuple[tuple[int, float], ...] = ()

    def stops(self, depth: int) -> tuple[Stop, ...]:
        return tuple(Loan(layer, ratio) for layer, ratio in self.at)


def text_config(meta: dict[str, Any], vocabulary: int) -> tf.LlamaConfig:
    return tf.LlamaConfig(
        hidden_size=meta["width"],
        intermediate_size=meta["inner"],
        num_hidden_layers=meta["layers"],
        num_attention_heads=meta["heads"],
        num_key_value_heads=meta["kv_heads"],
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rms_norm_eps=meta["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["rope_theta"]},
    )


def model_of(meta: dict[str, Any], words: np.ndarray, weights: dict[str, np.ndarray]) -> nn.Module:
    """A LLaVA of the drawn text model, whose table holds the text tokens `words` `[n, D]`."""
    tower = tf.CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = tf.LlavaConfig(
        vision_config=tower, text_config=text_config(meta, FIRST + len(words)), image_token_id=IMAGE
    )
    with torch.device("meta"):
        model: Any = tf.LlavaForConditionalGeneration(config)
    lm = model.model.language_model
    table = np.concatenate([np.zeros((FIRST, meta["width"]), np.float32), words])
    given = {name: torch.from_numpy(w) for name, w in weights.items() if ".router." not in name}
    missing = lm.load_state_dict({**given, "embed_tokens.weight": torch.from_numpy(table)}, assign=True)
    assert not missing.missing_keys
    model.model.vision_tower, model.lm_head = nn.Identity(), nn.Identity()
    lm.rotary_emb = type(lm.rotary_emb)(lm.config)
    return model.eval()


def routers_of(meta: dict[str, Any], weights: dict[str, np.ndarray]) -> PModRouters:
    routers = PModRouters(meta["width"], meta["layers"])
    for i, router in enumerate(routers.routers):
        router.weight.data = torch.from_numpy(weights[f"layers.{i}.router.weight"])
        router.bias.data = torch.from_numpy(weights[f"layers.{i}.router.bias"])
    return routers


def method_of(vector: Golden) -> PMoD:
    """The method as its own schedule sets it up, which must give the vector's layers and ratios."""
    meta = vector.meta
    expected = list(zip(vector["mod_layers"].tolist(), vector["ratio"].tolist(), strict=True))
    if "one MoD layer" in meta["target"]:
        return AtRatios(at=((0, expected[0][1]),))
    pruner = PMoD(target=meta["target"], official=meta["denominator"] == OFFICIAL and meta["layers"] != OFFICIAL + 1)
    stops = pruner.stops(meta["layers"])
    assert [stop.layer for stop in stops] == [layer for layer, _ in expected]
    np.testing.assert_allclose([stop.keep for stop in stops], [ratio for _, ratio in expected], rtol=1e-6)
    return pruner


@contextmanager
def watched(model: Any, pruner: PMoD) -> Iterator[SimpleNamespace]:
    """What every layer gives, and the gates of every loan, in turn."""
    seen = SimpleNamespace(layers=[], gates=[])
    choose = pruner.select

    def select(tokens: vtc.VisualTokens, k: int) -> Any:
        found = choose(tokens, k)
        seen.gates.append(found.gate)
        return found

    pruner.select = select  # type: ignore[method-assign]
    handles = [
        layer.register_forward_hook(lambda _, __, out: seen.layers.append(out))
        for layer in model.model.language_model.layers
    ]
    yield seen
    for handle in handles:
        handle.remove()


def close(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@golden("p-MoD")
@torch.no_grad()
def check(vector: Golden) -> None:
    meta = vector.meta
    if meta.get("part") == "ratio schedule":
        return check_schedule(vector)
    weights = draws.llama_layers(*(meta[n] for n in ("weight_seed", "layers", "width", "inner", "router")))
    embeds, visual, valid = draws.sequence(meta["input_seed"], meta["rows"], meta["width"])
    assert sha(*weights.values()) == meta["sha"]["weights"]
    assert sha(embeds) == meta["sha"]["embeds"]
    steps = np.zeros((0, meta["width"]), np.float32)
    if meta["decode_steps"]:
        drawn = np.random.default_rng(meta["decode_seed"])
        steps = normal(drawn, 1, meta["decode_steps"], meta["width"])[0]
    text = valid & ~visual
    ids = torch.full(visual.shape, PAD)
    ids[torch.from_numpy(visual)] = IMAGE
    ids[torch.from_numpy(text)] = torch.arange(int(text.sum())) + FIRST
    model: Any = model_of(meta, np.concatenate([embeds[text], steps]), weights)
    pictures = [torch.from_numpy(e[v]) for e, v in zip(embeds, visual, strict=True) if v.any()]
    model.model.get_image_features = lambda *_, **__: SimpleNamespace(pooler_output=pictures, values=lambda: [pictures])
    pruner = method_of(vector)
    pruner.use(routers_of(meta, weights), {"width": meta["width"], "layers": meta["layers"]})
    mask = torch.from_numpy(valid).long()
    with vtc.compressed(model, pruner), watched(model, pruner) as seen:
        out = model.model(
            input_ids=ids, attention_mask=mask, pixel_values=torch.zeros(len(pictures), 3, 2, 2), use_cache=True
        )
        report, cache, layers = model.vtc.report, out.past_key_values, list(seen.layers)
        check_prefill(vector, report, seen.gates, layers, out.last_hidden_state, valid)
        if "kv_after_prefill" in vector.arrays:
            assert [layer.keys.shape[-2] for layer in cache.layers] == vector["kv_after_prefill"].tolist()
        if meta["decode_steps"]:
            first = FIRST + int(text.sum())
            for step in range(meta["decode_steps"]):
                out = model.model(input_ids=torch.tensor([[first + step]]), past_key_values=cache, use_cache=True)
                close(out.last_hidden_state[..., :8], vector["decode_first8"][:, step : step + 1])
                close(out.last_hidden_state.norm(dim=-1), vector["decode_rownorm"][:, step : step + 1])
            assert [layer.keys.shape[-2] for layer in cache.layers] == vector["kv_after_decode"].tolist()
    return None


def check_prefill(
    vector: Golden, report: Any, gates: list[Tensor], layers: list[Tensor], last: Tensor, valid: np.ndarray
) -> None:
    loans = [step for step in report.steps if step.loan]
    assert len(loans) == len(gates) == len(vector["mod_layers"])
    rows = [span.sample for span in report.spans]
    for at, (step, gate) in enumerate(zip(loans, gates, strict=True)):
        for row, kept, one in zip(rows, step.kept, gate, strict=True):
            count = vector["kept_counts"][at, row]
            assert kept.tolist() == vector["kept"][at, row, :count].tolist()
            expected = vector["gate"][at, row]
            close(one[: int((~np.isnan(expected)).sum())], expected[~np.isnan(expected)])
    real = torch.from_numpy(valid)[..., None]
    stored = layers if len(vector["layer_first4"]) == len(layers) else layers[::4]
    close(torch.stack([(x * real).norm(dim=-1) for x in layers]), vector["layer_rownorm"])
    close(torch.stack([(x * real)[..., :4] for x in stored]), vector["layer_first4"])
    close((last * real).norm(dim=-1), vector["out_rownorm"])
    close((last * real)[..., :8], vector["out_first8"])


def check_schedule(vector: Golden) -> None:
    for name, expected in vector.arrays.items():
        rule, depth = name.removeprefix("kept576_").split("_")
        pruner = PMoD(official=rule == "asis")
        loans = {stop.layer: stop for stop in pruner.stops(int(depth))}
        if name.startswith("kept576"):
            assert [loans[i].count(576) if i in loans else 576 for i in range(int(depth))] == expected.tolist()
            continue
        assert [i in loans for i in range(int(depth))] == (~np.isnan(expected)).tolist()
        np.testing.assert_allclose([loans[i].keep for i in sorted(loans)], expected[~np.isnan(expected)], rtol=1e-6)
