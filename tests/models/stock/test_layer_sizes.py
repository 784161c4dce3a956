"""Sizes of layers that differ, read off configurations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import CONFIG_MAPPING
from versions import known

from vtc.eval.check.check_job import small_model
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.cost.prefill_cost import lm_cost
from vtc.eval.plan.selection_cost import _sizes
from vtc.models.facts_of_model import facts_of
from vtc.models.layout.model_parts import locate
from vtc.models.stock.layer_sizes import layer_size


def test_a_size_that_differs_is_that_of_the_layer() -> None:
    config = CONFIG_MAPPING[known("gemma4_text")]()
    found = [layer_size(config, "head_dim", i) for i in range(config.num_hidden_layers)]
    said = config.to_dict()
    own = {int(i): more for i, more in (said.get("per_layer_config") or {}).items()}  # newer versions have it
    assert found == [own.get(i, said).get("head_dim", said["head_dim"]) for i in range(len(found))]
    assert (len(set(found)) > 1) == bool(own)


def test_what_a_configuration_does_not_say() -> None:
    assert layer_size(SimpleNamespace(), "head_dim") is None
    assert layer_size(SimpleNamespace(head_dim=8), "head_dim", 3) == 8
    assert layer_size(None, "hidden_size", default=2) == 2


def test_costs_and_facts_of_a_model_whose_layers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = small_model(config_of(known("gemma4")))
    parts = locate(model)
    config = parts.lm.config
    assert _sizes(parts, 10).head == layer_size(config, "head_dim")
    assert facts_of(parts).heads == config.num_attention_heads
    read = lm_cost(model)
    for layer in parts.layers:  # as where the attention does not say it
        monkeypatch.delattr(layer.self_attn, "head_dim")
        monkeypatch.delattr(layer.self_attn, "num_key_value_groups")
    assert lm_cost(model) == read
