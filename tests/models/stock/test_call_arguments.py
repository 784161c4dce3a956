"""One module (and one of attention) knows what transformers calls things, and finds it in the installed code."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaModel
from zoo import FAMILIES, prompt, tiny

import vtc.models
from vtc.models.stock import call_arguments as api
from vtc.models.stock.attention_api import ConfigView

KNOWING = ("call_arguments.py", "transformers_api.py", "attention_api.py")
SOURCES = sorted(Path(vtc.models.__file__).parent.glob("**/*.py"))


class Layer(nn.Module):
    """A layer that takes its arguments under new names, and any keyword."""

    def forward(self, hidden_states: Any, attention_mask: Any = None, cache: Any = None, **kwargs: Any) -> Any:
        return hidden_states


class Older(nn.Module):
    """The same under an older name."""

    def forward(self, hidden_states: Any, attention_mask: Any = None, past_key_values: Any = None) -> Any:
        return hidden_states


def words(tree: ast.AST) -> set[str]:
    """Strings and keywords in the code; docstrings and messages hold more than one word."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Call):
            found |= {k.arg for k in node.keywords if k.arg and not isinstance(node.func, ast.Name)}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_other_module_knows_the_name_of_an_argument(path: Path) -> None:
    if path.name in KNOWING:
        pytest.skip("the ones that do")
    known = {name for names in api.NAMES.values() for name in names} - {"cache", "inputs", "hidden_states", "is_causal"}
    assert not words(ast.parse(path.read_text())) & known


def test_the_newest_name_that_a_module_takes_is_used() -> None:
    assert api.given(Layer(), cache=1, mask=2) == {"cache": 1, "attention_mask": 2}
    assert api.given(Older(), cache=1, mask=2) == {"past_key_values": 1, "attention_mask": 2}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_an_argument_is_read_under_any_name_and_replaced_under_the_module_s_own(name: str) -> None:
    call = api.call_of(Layer(), (torch.zeros(1),), {name: "old"})
    assert call.get("cache") == "old"
    call.put("cache", "new")
    assert call.kwargs == {"cache": "new"}


def test_of_two_names_the_one_that_the_module_reads_counts() -> None:
    call = api.call_of(Layer(), (), {"past_key_values": "ignored", "cache": None})
    assert call.get("cache") is None
    assert api.call_of(Older(), (), {"past_key_values": "read", "cache": None}).get("cache") == "read"


def test_positional_arguments_stay_positional() -> None:
    call = api.call_of(Layer(), ("h", "m", "c"), {"more": 1})
    assert (call.get("hidden"), call.get("mask"), call.get("cache")) == ("h", "m", "c")
    call.put("mask", "n")
    assert call.pop("cache") == "c"
    assert (call.args, call.kwargs) == (("h", "n", None), {"more": 1})


def test_a_module_that_does_not_take_what_vtc_gives_is_refused_with_both_versions() -> None:
    with pytest.raises(NotImplementedError, match=r"Layer.forward names no position_embeddings.*tested: "):
        api.need(Layer(), "hidden", "rotary")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuples", [False, True])
def test_the_cache_of_an_output_is_found_without_a_warning(
    family: str, tuples: bool, recwarn: pytest.WarningsRecorder
) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        out = model(**inputs, **api.given(model, cache=cache), use_cache=True, return_dict=not tuples)
    assert api.cache_of(out) is cache
    assert not [w for w in recwarn if "deprecated" in str(w.message) and "past_key_values" in str(w.message)]


def test_a_view_of_a_config_follows_the_config() -> None:
    config = LlamaModel.config_class(hidden_size=32, num_attention_heads=4)
    config._attn_implementation = "sdpa"
    view = ConfigView(config, "vtc_test_", lambda *args, **kwargs: None)
    assert view._attn_implementation == "vtc_test_sdpa"
    config._attn_implementation, config.hidden_size = "eager", 64
    assert (view._attn_implementation, view.hidden_size) == ("vtc_test_eager", 64)
    view.hidden_size = 10
    assert config.hidden_size == 10
