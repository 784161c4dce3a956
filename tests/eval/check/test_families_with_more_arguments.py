"""Families with arguments along the columns, shared keys or features elsewhere are exact, or refused when wrapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from versions import known

import vtc
from vtc.eval.check import check_job
from vtc.eval.check.check_job import CheckOptions, run_check, small_model
from vtc.eval.check.contracts import CONTRACTS, PRUNED
from vtc.eval.check.results import EXACT, FINE, REFUSED, Result
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.language import column_arguments
from vtc.models.language.column_arguments import refuse_unknown

FAMILIES = ("muse_glimmer", "muse_spark", "ernie4_5_vl_moe", "gemma3n", "gemma4", "fuyu")
SHORT = ("keep=1.0, bit for bit", PRUNED, "pictures of other sizes", "second turn")


def check(model: str, stages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tokens: int = 4) -> Result:
    monkeypatch.setattr(check_job, "CONTRACTS", {name: CONTRACTS[name] for name in SHORT})
    return run_check(CheckOptions(model, ("sdpa",), stages, tokens=tokens))


def shared(path: Path) -> str:
    """Gemma 4 as its small checkpoints are: the last layers read the keys of layers before them."""
    config = config_of("gemma4").to_dict()
    config["text_config"]["num_kv_shared_layers"] = 10
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_are_exact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = check(known(kind), ("input", "decoder"), monkeypatch)
    assert {o.status for o in result.outcomes} == {EXACT}, result.outcomes
    assert result.exit_code == FINE


def test_a_window_on_what_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    result = check(known("unlimited_ocr"), ("input",), monkeypatch, tokens=16)  # the window holds 12
    assert {o.status for o in result.outcomes} == {EXACT}, result.outcomes


def test_keys_of_layers_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known("gemma4")
    result = check(shared(tmp_path), ("pipeline",), monkeypatch)
    assert {o.status for o in result.outcomes} == {EXACT}, result.outcomes


def test_nothing_is_dropped_behind_keys_that_are_read_on(tmp_path: Path) -> None:
    known("gemma4")
    model, _, _ = small_model(config_of(shared(tmp_path)))
    with pytest.raises(NotImplementedError, match=r"layers 6 to 7 .* read those of layer 4 .* at layer 4 or before"):
        vtc.compress(model, "random(layer=5, keep=0.5)")
    vtc.restore(vtc.compress(model, "random(layer=4, keep=0.5)"))


def test_chunks_are_refused() -> None:
    result = run_check(CheckOptions(known("llama4"), ("sdpa",), ("input",)))
    assert [o.status for o in result.outcomes] == [REFUSED]
    assert "chunks" in result.outcomes[0].why


# ---------------------------------------------------------------------- it notices


@pytest.mark.parametrize("kind", ["ernie4_5_vl_moe", "gemma3n"])
def test_what_goes_along_is_cut_with_the_columns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_arguments, "ALONG", ())
    result = check(known(kind), ("input",), monkeypatch)
    assert result.exit_code != FINE


def test_an_argument_that_nobody_knows_is_refused() -> None:
    class Layer(torch.nn.Module):
        def forward(self, hidden_states: Any, attention_mask: Any, token_weights: Any, output_attentions: Any) -> None:
            """Takes one argument too many."""

    with pytest.raises(NotImplementedError, match=r"Layer\.forward takes token_weights, which vtc does not know"):
        refuse_unknown(Layer())


def test_a_method_that_merges_is_refused_between_streams() -> None:
    model, _, _ = small_model(config_of(known("gemma3n")))
    with pytest.raises(NotImplementedError, match="new vectors into the hidden states"):
        vtc.compress(model, "pool(layer=2, keep=0.5)")


def test_hidden_states_of_several_streams_come_back_whole() -> None:
    model, prompts, _ = small_model(config_of(known("gemma3n")))
    inputs = prompts["ragged"].inputs
    plain = model(**inputs, output_hidden_states=True).hidden_states
    with vtc.compressed(model, "random(layer=2, keep=0.5)"), torch.no_grad():
        pruned = model(**inputs, output_hidden_states=True).hidden_states
    assert [x.shape for x in pruned] == [x.shape for x in plain]
    text = inputs["attention_mask"].bool()
    assert torch.equal(pruned[1][:, text], plain[1][:, text])  # before anything is dropped


def test_the_name_of_the_pixels_does_not_matter() -> None:
    model, prompts, _ = small_model(config_of(known("fuyu")))
    inputs = prompts["ragged"].inputs
    other = {("image_patches" if k == "pixel_values" else k): v for k, v in inputs.items()}
    with vtc.compressed(model, "random(keep=0.5, seed=5)"), torch.no_grad():
        want, got = model(**inputs).logits, model(**other).logits
        assert model.vtc.report.tokens_kept < model.vtc.report.tokens_total
    assert torch.equal(got, want)
