"""FlowCut's vectors: the schedule on given signals, its parts, and a real CLIP tower under vtc's hooks."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from golden_support import Golden, call_recipe, golden, normal
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Stop
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives.flow import flow_score, kept_counts, shares
from vtc.pruners.signals import EncoderAttention, EncoderValues, Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens


def inputs_of(text: str, meta: dict[str, Any], names: tuple[str, ...]) -> list[np.ndarray]:
    """What a recipe call gives, the hashes checked."""
    arrays = call_recipe(text)
    for array, name in zip(arrays, names, strict=True):
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        assert digest == meta.get(f"sha_{name}", digest), f"{name}: other bytes"
    return [torch.from_numpy(a) for a in arrays]


@dataclass
class Flow(SignalSource):
    """Serves the given attention, semantic score and mean value of every layer; crops of a batch follow each other."""

    attention: Tensor  # [L, B, N]
    semantic: Tensor
    value: Tensor  # [L, B, N, d]

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        ids = tokens.ids[0]
        if isinstance(signal, EncoderValues):
            return self.value[signal.layer].flatten(0, 1)[ids][None, :, None]
        assert isinstance(signal, EncoderAttention)
        given = self.semantic if signal.of else self.attention
        return given[signal.layer].flatten()[ids][None, None]


@golden("flowcut")
def schedule(vector: Golden) -> None:
    """The crops of a batch are one picture's: the authors cut the same number from all of them."""
    meta = vector.meta
    batch, n, layers, last, target = (meta[k] for k in ("B", "N", "layers", "select_layer", "target_patches"))
    signals = Flow(*inputs_of(meta["signals"], meta, ("a", "s", "v")))
    pruner = vtc.parse("flowcut", keep=batch * target, official=True)[0]
    layout = Layout((Grid(1, n),) * batch)
    ids, state, counts, stages = torch.arange(batch * n)[None], {}, [n] * layers, []
    for stop in pruner.tower_stops(Stop("vision", None, batch * target), last):
        before = ids.shape[1]
        tokens = VisualTokens(
            features=torch.zeros(1, before, 1), ids=ids, counts=[before], budgets=[batch * target], layouts=[layout],
            sample=torch.zeros(1, dtype=torch.long), order=[0], span=[0], stage="vision", layer=stop.layer,
            last=last, state=state, source=signals,
        )  # fmt: skip
        assert set(pruner.signals_at(stop)) >= {EncoderAttention(layer=stop.layer - 1, queries="global")}
        kept = pruner.select(tokens, batch * target)[0]
        kept = kept[kept >= 0].sort().values  # as the host does
        ids, score = ids[:, kept], state["score"] if state["lies"] else state["score"][:, kept]
        left = ids.shape[1] // batch
        assert (ids[0] // n).bincount().tolist() == [left] * batch
        counts[stop.layer - 1 :] = [left] * (layers - stop.layer + 1)
        stages.append([stop.layer - 1, last - stop.layer, before // batch - left, left])
        if left == target:
            break
    assert counts == vector["counts_after_layer"].tolist()
    official = vector["stages_layer_rpl_prune_keep"].tolist()
    for (layer, left, lost, kept_now), theirs in zip(stages, official, strict=True):
        assert [layer, left, kept_now] == [theirs[0], theirs[1], theirs[3]]
        # theirs is the number before it is capped by the target; at the last cut it is all tokens
        assert lost == theirs[2] if kept_now > target else lost <= theirs[2]
    assert (ids[0] % n).view(batch, -1).tolist() == vector["kept"].tolist()
    np.testing.assert_allclose(score.view(batch, -1), vector["cumulative"], rtol=1e-5)


@golden("flowcut_unit")
def unit(vector: Golden) -> None:
    found = {}
    for entry in vector.meta["inputs"].split(";"):
        name, _, text = entry.strip().partition("=")
        if "(" in text and ".sum" not in text:
            found[name] = torch.from_numpy(call_recipe(text))
    a, s, v = (found[name] for name in "asv")
    n, density = a.shape[1], v.abs().sum(-1)
    a_n, s_n = a / a.sum(), s / s.sum()
    for rows, name in (((a, s), "score"), ((a_n,), "qwen_score_vit"), ((a_n, s_n), "qwen_score_llm")):
        for part in (None, torch.zeros(a.shape, dtype=torch.long)):
            score = flow_score(shares(torch.stack(rows), part, 1), density)
            np.testing.assert_allclose(score, vector[name], rtol=1e-5, err_msg=name)

    def counts(x: Tensor, target: int, left: int) -> int:
        share = shares(x.double(), None, 1)
        sizes, targets = torch.tensor([[n, target]]).double().split(1, 1)
        return n - int(kept_counts(share, None, sizes, targets, left))

    listed = re.findall(r"(?:target|rpl) ([\d,]*\d)", vector.meta["rows"])
    targets, lefts, (target,), qwen_lefts = ([int(number) for number in part.split(",")] for part in listed)
    for x, name in ((a, "prune_num"), (a * a * a * a, "prune_num_a4")):
        assert [[counts(x, t, left) for left in lefts] for t in targets] == vector[name].tolist()
    assert [counts(a_n, target, left) for left in qwen_lefts] == vector["qwen_prune_num"].tolist()


def clip_state(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The recipe's weights, by sorted name."""
    out = {}
    for i, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        if name.endswith("bias"):
            out[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1 and name.endswith("weight"):
            out[name] = np.ones(shape, np.float32)
        elif "embedding" in name and "patch" not in name:
            out[name] = normal(seed + i, *shape)
        else:
            fan = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            out[name] = normal(seed + i, *shape, scale=gain / fan**0.5)
    return out


@golden("flowcut_full_clip")
def full_clip(vector: Golden) -> None:
    meta = vector.meta
    text = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**meta["config"]), text_config=text, image_token_index=3,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    parts = locate(model)
    names = {name.removeprefix("vision_model."): name for name in parts.tower.state_dict()}
    names = {short: name for short, name in names.items() if short in meta["names"]}
    assert sorted(names) == meta["names"]
    shapes = {short: tuple(parts.tower.state_dict()[name].shape) for short, name in names.items()}
    weights = clip_state(meta["seed"], shapes)
    digest = hashlib.sha256(b"".join(weights[k].tobytes() for k in sorted(weights))).hexdigest()
    assert digest == meta["sha_weights_concat_sorted"], "other weights"
    parts.tower.load_state_dict({names[k]: torch.from_numpy(w) for k, w in weights.items()}, strict=False)
    pruner = vtc.parse("flowcut", keep=meta["target_patches"], official=True)[0]
    side = VisionSide(parts, [(pruner, stop) for stop in pruner.stops(1)]).attach()
    outputs: list[Any] = []
    parts.tower.register_forward_hook(lambda module, args, output: outputs.append(output))
    pixels = torch.from_numpy(call_recipe(meta["pixel_values"]))
    with torch.no_grad():
        _, record = side.record(
            "image", {"pixel_values": pixels}, lambda: parts.core.get_image_features(pixel_values=pixels)
        )
    assert record is not None
    kept = record.steps[-1].kept[0]
    assert kept.tolist() == vector["kept"].tolist()
    hidden = outputs[0].hidden_states[-2][0]
    rows = torch.cat([torch.zeros(1, dtype=torch.long), kept + 1])  # the class token stays
    # 24 layers make 1e-7 of rounding about 1e-4 of the largest states
    np.testing.assert_allclose(hidden[rows], vector["hidden_minus2"], rtol=1e-4, atol=1e-4)
    patches = record.lengths[0]
    counts = [patches] * (meta["config"]["num_hidden_layers"] + 1)
    for step in record.steps:
        counts[step.layer :] = [len(step.kept[0])] * (len(counts) - step.layer)
    assert counts == vector["patch_counts_hidden_states"].tolist()
