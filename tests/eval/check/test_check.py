"""vtc check: right on every family, and wrong where something is made wrong; what it can't check it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Dinov2Config
from versions import ENCODES_FIRST
from zoo import FAMILIES as ZOO

from vtc.eval.check.check_job import STAGES, CheckOptions, run_check, small_model
from vtc.eval.check.contracts import CONTRACTS
from vtc.eval.check.outcome_table import table_of
from vtc.eval.check.prompts.build_prompts import KINDS, kind_of
from vtc.eval.check.results import BROKEN, EXACT, FAILED, FINE, REFUSED, UNSUPPORTED, WRONG, Outcome, Result
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.check.tiny_model.layer_kinds import pick
from vtc.eval.check.tiny_model.shrink import rescaled, shrink
from vtc.models.adapter import Adapter
from vtc.models.language import narrowed_calls
from vtc.models.language.forward_state import Run
from vtc.models.layout.families import FAMILIES

TYPES = {f.model_types[0]: f for f in FAMILIES if f.model_types[0] in ZOO}  # others: test_families_of_*.py
EXAONE = {
    "model_type": "llava",
    "text_config": {"model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": 4},
    "vision_config": {"model_type": "clip_vision_model"},
}
# what older transformers does wrong by itself (tests/versions.py)
OLD = () if ENCODES_FIRST else ("beams, several pictures", "second turn")


def check(model: str, *stages: str, attention: str = "sdpa", tokens: int = 3, **more: Any) -> Result:
    return run_check(CheckOptions(model, (attention,), stages or tuple(STAGES), tokens=tokens, **more))


def problems(result: Result) -> list[Outcome]:
    return [o for o in result.outcomes if o.status in (WRONG, FAILED)]


def folder_of(config: dict[str, Any], path: Path) -> str:
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.share(3)
@pytest.mark.parametrize("kind", TYPES)
def test_every_family(kind: str) -> None:
    assert kind in KINDS, "how pictures are given to the family stands in eval/check/prompts.py"
    result = check(kind)
    assert problems(result) == []
    assert result.exit_code == FINE
    assert result.family == TYPES[kind].name
    for stage in STAGES:
        statuses = {o.status for o in result.outcomes if o.stage == stage and o.contract not in OLD}
        assert statuses == {REFUSED if stage == "vision" and TYPES[kind].no_vision_stage else EXACT}
    assert {"keep=1.0, bit for bit", "pruned = masked", "picture last", "second turn", "beams", "restored"} <= {
        o.contract for o in result.outcomes
    }


@pytest.mark.parametrize("pruner", ["tome", "pool"])
def test_a_merging_method_where_the_picture_comes_last(pruner: str) -> None:
    """The last token asks the next one, also when it is gone."""
    result = check("llava", pruner=pruner, keep=0.4)
    assert problems(result) == []
    assert "picture last" in {o.contract for o in result.outcomes if o.status == EXACT}


@pytest.mark.parametrize("attention", ["eager", "flex", "flash"])
def test_attention_implementations(attention: str) -> None:
    result = check("gemma3", "decoder", attention=attention)
    assert problems(result) == []
    statuses = {o.status for o in result.outcomes if o.contract not in OLD}
    assert statuses == {"not run" if attention == "flash" else EXACT}


def test_an_implementation_that_the_model_does_not_have_is_not_run() -> None:
    result = check("qwen2_vl", "input", attention="flex")
    assert {o.status for o in result.outcomes} == {"not run"}
    assert result.exit_code == UNSUPPORTED
    assert "flex" in result.outcomes[0].why


# ---------------------------------------------------------------------- it notices


def _mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowed_calls.LayerCalls, "_build_mask", lambda *_: None)


def _rotary(monkeypatch: pytest.MonkeyPatch) -> None:
    real = narrowed_calls.LayerCalls._rotary
    monkeypatch.setattr(
        narrowed_calls.LayerCalls, "_rotary", staticmethod(lambda run, x: tuple(t.roll(1, -2) for t in real(run, x)))
    )


def _tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Run.drop
    monkeypatch.setattr(
        Run, "drop", lambda run, hidden, ids, *rest: real(run, hidden, torch.where(ids > 0, ids - 1, ids), *rest)
    )


def _everything_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Run.drop
    monkeypatch.setattr(Run, "drop", lambda run, hidden, *rest: real(run, hidden, *rest) * 1.00001)


def _traces(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Adapter.detach

    def detach(adapter: Adapter) -> None:
        real(adapter)
        adapter.parts.lm.register_forward_pre_hook(lambda *_: None)

    monkeypatch.setattr(Adapter, "detach", detach)


def _crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(*_: Any) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(Run, "drop", drop)


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("fault", "contract", "status"),
    [
        (_mask, "pruned = masked", WRONG),
        (_mask, "one by one", WRONG),
        (_rotary, "pruned = masked", WRONG),
        (_tokens, "pruned = masked", WRONG),
        (_everything_kept, "keep=1.0, bit for bit", WRONG),
        (_traces, "restored", WRONG),
        (_crash, "pruned = masked", FAILED),
    ],
)
@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_a_broken_vtc_is_told(kind: str, fault: Any, contract: str, status: str, monkeypatch: Any) -> None:
    fault(monkeypatch)
    result = check(kind, "decoder")
    told = {o.contract: o for o in problems(result)}
    assert told[contract].status == status
    assert told[contract].why
    assert result.exit_code == BROKEN
    assert "BROKEN" in result.verdict


def test_layers_with_a_window_that_they_do_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exaone 4: full layers carry the window too. A mask that has it there is wrong, and is told."""
    real = narrowed_calls.slot_mask
    twelve = lambda config, q, k, dtype, *_, **__: real(config, q, k, dtype, True, 12)  # noqa: E731
    monkeypatch.setattr(narrowed_calls, "slot_mask", twelve)
    result = check(folder_of(EXAONE, tmp_path), "decoder")
    assert "sliding attention" in result.about
    assert "full attention" in result.about
    assert next(o for o in result.outcomes if o.contract == "pruned = masked").status == WRONG


def test_a_text_model_of_full_and_sliding_layers(tmp_path: Path) -> None:
    assert problems(check(folder_of(EXAONE, tmp_path))) == []


def test_a_tower_whose_projector_reads_several_layers(tmp_path: Path) -> None:
    tower = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14).to_dict()
    assert len(tower["stage_names"]) == 13, "which a smaller one does not have"
    more = {"vision_feature_layer": [3, 6, 11], "vision_feature_select_strategy": "default"}
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": tower, **more}
    result = check(folder_of(config, tmp_path), "input", "decoder")
    assert problems(result) == []
    assert result.count(EXACT) > 20


# ---------------------------------------------------------------------- what it can't check


def test_a_model_without_visual_columns_is_refused_in_words() -> None:
    result = check("mllama")
    assert [o.status for o in result.outcomes] == [REFUSED]
    assert "by cross-attention" in result.outcomes[0].why
    assert result.exit_code == UNSUPPORTED


def test_the_modules_of_an_unknown_family_can_be_named() -> None:
    result = check("vipllava", "input", "decoder", parts={"lm": "model.language_model"})
    assert problems(result) == []
    assert result.count(EXACT) > 20


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("someone/model", "stays offline"),
        ("qwen3vl", "Near: qwen3_vl"),
        ("llama", "takes no pictures beside text"),
        ("timm:digits", "classifier"),
    ],
)
def test_no_such_model(model: str, words: str) -> None:
    with pytest.raises((ValueError, OSError), match=words):
        check(model)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no JSON"), ("[]", "no model_type"), ('{"model_type": "mine", "auto_map": {}}', "code of its own")],
)
def test_broken_configurations(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ValueError, match=words):
            check(str(path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"no config\.json"):
        check(str(tmp_path))


def test_a_setting_of_ones_own() -> None:
    assert check("llava", pruner="dart", keep=0.4).exit_code == FINE
    assert check("llava", pruner="pool", keep=0.5, tokens=2).exit_code == FINE  # merges tokens
    assert "9 of 32 llama layers" in check("llava", pruner="random(layer=6)", keep=0.4, tokens=2).about
    result = check("llava", pruner="random", keep=64, tokens=2)
    assert "drops no token" in next(o.why for o in result.outcomes if o.contract == "pruned = masked")
    refused = check("llava_onevision", pruner="visionzip", keep=0.5, tokens=2)
    assert {o.status for o in refused.outcomes if o.contract in ("pruned = masked", "beams")} == {REFUSED}
    assert refused.exit_code == UNSUPPORTED


# ---------------------------------------------------------------------- the small model


def test_every_kind_of_layer_is_kept() -> None:
    assert pick("aaaaaab", 4) == [0, 1, 2, 6]
    assert pick("abcdef", 2) == [0, 1, 2, 3, 4, 5]
    assert rescaled([24, 20, 20], 8) == [3, 3, 2]
    assert rescaled([16, 24, 24], 8) == [2, 3, 3]
    config = config_of("qwen3_vl")
    small, layers = shrink(config, kind_of(config).geometry)
    assert layers == list(range(6))
    assert small.vision_config.deepstack_visual_indexes == [1, 2, 3]
    assert small.vision_config.depth == 4
    assert small.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert list(config.vision_config.deepstack_visual_indexes) == [8, 16, 24], "the given configuration stays as it is"


def test_experts_and_their_kinds_of_layer_are_kept(tmp_path: Path) -> None:
    text = {"model_type": "qwen3_moe", "num_hidden_layers": 12, "mlp_only_layers": [9], "num_experts": 128}
    model, prompts, about = small_model(config_of(folder_of({**EXAONE, "text_config": text}, tmp_path)))
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    assert about.startswith("random weights, 6 of 12 qwen3_moe layers")
    assert model.config.text_config.mlp_only_layers == [5]
    assert model.config.text_config.num_experts == 4
    assert lists
    assert prompts["ragged"].inputs["input_ids"].shape[0] == 3


# ---------------------------------------------------------------------- the command


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from vtc.commands.main import main

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["check", *args])
        return int(stop.value.code or 0), *capsys.readouterr()

    code, out, _ = run("bundled", "--attn", "sdpa", "--stage", "decoder", "--tokens", "2")
    assert code == FINE
    assert "vtc works with this model" in out
    assert "beams, several pictures" in out
    code, out, _ = run("llava", "--attn", "flash", "--json")
    told = json.loads(out)
    assert code == told["exit_code"] == UNSUPPORTED
    assert {o["contract"] for o in told["outcomes"]} < set(CONTRACTS)
    for args in (["--attn", "fast"], ["--stage", "middle"], ["--part", "lm"]):
        code, _, err = run("llava", *args)
        assert code == 2
        assert args[0] in err


def test_the_table_says_the_worst_and_each_reason_once() -> None:
    result = Result("m", "llava", "LLaVA-1.5", "", {})
    result.outcomes = [
        Outcome("one", "input", "sdpa", EXACT),
        Outcome("one", "decoder", "sdpa", WRONG, "off by 1", 1.0),
        Outcome("one", "pipeline", "sdpa", WRONG, "off by 2", 2.0),
        Outcome("two", "input", "sdpa", REFUSED, "can't"),
        Outcome("two", "decoder", "sdpa", REFUSED, "can't"),
    ]
    table, notes = table_of(result)
    cells = list(table.columns[1].cells)
    assert "WRONG[/] (1): decoder, pipeline" in str(cells[0])
    assert str(cells[1]) == "[yellow]refused[/] (2)"
    assert notes == ["(1) pipeline: off by 2", "(2) can't"]
    assert result.exit_code == BROKEN


@pytest.mark.parametrize("error", [RuntimeError("size of tensor a (151) must match"), KeyError("cache")])
def test_a_model_that_fails_under_the_harness_names_the_check(error: Exception) -> None:
    from types import SimpleNamespace

    from vtc.eval.sweep.answer import generate

    class Model(nn.Linear):
        def generate(self, **_: Any) -> None:
            raise error

    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.long)}
    with pytest.raises(RuntimeError, match=r"Model failed inside its forward: .*`vtc check MODEL`"):
        generate(Model(1, 1), SimpleNamespace(pad_token_id=0), batch, 1)
