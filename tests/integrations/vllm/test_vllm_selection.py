"""The plugin's selection without an engine: on the features and signals of a transformers model, it keeps the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import METHODS, Setting, fits
from vision_tools import ready
from zoo import FAMILIES, Prompt, prompt
from zoo.models import DEPTH
from zoo.tokens import IMAGE

import vtc
from vtc.integrations.vllm.item_fields import cut_items
from vtc.integrations.vllm.selection import Picture, select
from vtc.integrations.vllm.settings import kept_counts
from vtc.models.layout.model_parts import locate

pytestmark = pytest.mark.usefixtures("no_grad")


def _here(setting: Setting) -> bool:
    """Whether an engine has a place for it."""
    pipeline = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
    stages = {stop.stage for p in pipeline for stop in p.stops(DEPTH)}
    return stages == {"input"} and not any(p.adaptive_count for p in pipeline)


HERE = [s for s in METHODS if _here(s)] + [Setting("uniform(keep=0.8) + divprune(keep=0.5) + norm(keep=5)")]
# one picture a row, because seeds of what is drawn go by the place of a picture in its prompt
ROWS = {"llava": 1, "llava_next": 1, "llava_onevision": 1, "qwen2_5_vl": 1, "qwen3_vl": 1, "gemma3": 1, "internvl": 3}


@pytest.mark.parametrize("family", ROWS)
@pytest.mark.parametrize("setting", HERE, ids=str)
def test_the_same_tokens_are_kept_as_in_a_wrapped_model(setting: Setting, family: str) -> None:
    if not fits(setting, family):
        pytest.skip("the family lacks what the method reads")
    batch = prompt(family, "ragged")
    inputs = Prompt(batch.family, [batch.rows[0]], [batch.media[0]]).inputs
    model, params = ready(family), dict(setting.params)
    seen: list[Any] = []
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **params):
        core = model.base_model
        wrapped = core.get_image_features

        def noted(*args: Any, **kwargs: Any) -> Any:
            output = wrapped(*args, **kwargs)
            seen.append((output, model.vtc.adapter.local.records["image"]))
            return output

        core.__dict__["get_image_features"] = noted
        try:
            states = _entering(model, inputs)
        finally:
            core.__dict__["get_image_features"] = wrapped
        report = model.vtc.report
    ((output, record),) = seen
    features = list(torch.cat([f.reshape(-1, f.shape[-1]) for f in output.pooler_output]).split(record.lengths))
    pipeline = vtc.parse(setting.pruner, keep=setting.keep, **params)
    ids = inputs["input_ids"][0]
    places = (ids == IMAGE).nonzero()[:, 0]
    embed = model.get_input_embeddings()
    before, after = embed(ids[: places[0]]), embed(ids[places[-1] + 1 :])
    if len(features) > 1 and family != "internvl":
        pytest.fail("one picture is one span")
    (kept,) = select(pipeline, [Picture(features, before, after)], record, locate(model))
    starts = torch.tensor([0, *record.lengths]).cumsum(0)
    expected = torch.cat([k + s for k, s in zip(report.steps[-1].kept, starts, strict=False)])
    assert torch.equal(kept.ids, expected)
    assert len(kept.ids) == sum(kept_counts(pipeline, record.lengths))
    if kept.vectors is not None:
        torch.testing.assert_close(kept.vectors, states[len(before) : len(before) + len(kept.ids)])


def _entering(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What enters the first decoder layer `[L, D]` of a forward."""
    found: list[torch.Tensor] = []
    layer = locate(model).layers[0]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        model(**inputs)
    finally:
        hook.remove()
    return found[0][0]


def test_pictures_of_several_requests_are_chosen_as_each_alone() -> None:
    family = FAMILIES["llava"]
    torch.manual_seed(0)
    model = ready("llava")
    with vtc.compressed(model, "divprune", keep=5):
        output = model.base_model.get_image_features(pixel_values=torch.randn(3, 3, *family.pixels))
    features, parts = list(output.pooler_output), locate(model)
    pipeline = vtc.parse("divprune", keep=5)
    together = select(pipeline, [Picture([f]) for f in features], output._vtc, parts)
    for i, one in enumerate(features):
        record = _record_of(model, i)
        (alone,) = select(pipeline, [Picture([one])], record, parts)
        assert torch.equal(alone.ids, together[i].ids)


def _record_of(model: Any, i: int) -> Any:
    torch.manual_seed(0)
    pixels = torch.randn(3, 3, *FAMILIES["llava"].pixels)
    given = cut_items({"pixel_values": pixels}, range(i, i + 1), 3, {})
    with vtc.compressed(model, "divprune", keep=5):
        return model.base_model.get_image_features(**given)._vtc
