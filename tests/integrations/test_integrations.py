"""Around the model: accelerate's dispatch, transformers' pipeline, PEFT, threads, several models in one process."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload, dispatch_model
from anatomy import anatomy
from asking import BUNDLED, ask, chat
from contracts import TOLERANCE, same_report
from methods import BOTH_STAGES, IN_THE_TOWER, READING, Setting, fits
from peft import LoraConfig, get_peft_model
from reference import greedy
from torch import nn
from versions import greedy_offloaded
from zoo import prompt, tiny

import vtc

no_grad = pytest.mark.usefixtures("no_grad")
# Idefics3 itself fails in generate() when offloaded: it reads a tensor that is still on meta
OFFLOADED = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl")


def split_map(model: nn.Module) -> dict[str, str]:
    """A device map with a part in memory, a part on disk, cut inside the decoder."""
    core = model.base_model
    text = "language_model" if hasattr(core, "language_model") else "text_model"
    out = {"lm_head": "cpu"}
    for name, _ in core.named_children():
        if name != text:
            out[f"model.{name}"] = "disk" if name in ("vision_tower", "visual", "vision_model") else "cpu"
    for name, _ in getattr(core, text).named_children():
        if name != "layers":
            out[f"model.{text}.{name}"] = "cpu"
    for i in range(6):
        out[f"model.{text}.layers.{i}"] = "disk" if i in (1, 2, 4) else "cpu"
    for name, _ in core.named_parameters(recurse=False):
        out[f"model.{name}"] = "cpu"
    return out


@no_grad
@pytest.mark.parametrize("setting", [BOTH_STAGES, READING, IN_THE_TOWER], ids=str)
@pytest.mark.parametrize("how", ["cpu", "disk", "map"])
@pytest.mark.parametrize("family", OFFLOADED)
def test_offloaded_by_accelerate(family: str, how: str, setting: Setting, tmp_path: Path) -> None:
    if not fits(setting, family):
        pytest.skip("this family has no vision stage")
    model, inputs = tiny(family), prompt(family, "text_row").inputs
    plain = vtc.compress(copy.deepcopy(model), setting.pruner)
    expected = greedy(plain, inputs, 4)
    if how == "cpu":
        model = cpu_offload(model, execution_device=torch.device("cpu"))
    elif how == "disk":
        model = disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        model = dispatch_model(model, split_map(model), main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    unpruned = greedy_offloaded(model, inputs, 4)
    before = anatomy(model)
    vtc.compress(model, setting.pruner)
    given = greedy(model, inputs, 4)
    assert torch.equal(given.tokens, expected.tokens)
    assert torch.allclose(given.logits, expected.logits, atol=TOLERANCE)
    assert same_report(model.vtc.report, plain.vtc.report)
    vtc.restore(model)
    assert anatomy(model).keys() == before.keys()
    assert torch.equal(greedy(model, inputs, 4).logits, unpruned.logits)


@no_grad
def test_loaded_with_a_device_map(tmp_path: Path) -> None:
    settings = {"pruner": "fastv", "keep": 64}
    plain = vtc.load(BUNDLED, **settings)
    layers = plain.config.text_config.num_hidden_layers
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "disk", "lm_head": "cpu"}
    for part in ("embed_tokens", "norm", "rotary_emb"):
        places[f"model.language_model.{part}"] = "cpu"
    for i in range(layers):
        places[f"model.language_model.layers.{i}"] = "disk" if i % 2 else "cpu"
    spread = vtc.load(BUNDLED, **settings, device_map=places, offload_folder=str(tmp_path))
    inputs = ask("What colour is it?")
    a, b = (m.generate(**inputs, max_new_tokens=4, do_sample=False) for m in (plain, spread))
    assert torch.equal(a, b)
    assert spread.vtc.report.tokens_kept == 64


@no_grad
def test_transformers_pipeline() -> None:
    model = vtc.load(BUNDLED)
    processor = transformers.AutoProcessor.from_pretrained(BUNDLED)
    question = "What colour is it?"

    def answer() -> str:
        pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
        return pipe(text=chat(question), max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]

    plain = answer()
    vtc.compress(model, "uniform", keep=1.0)
    assert answer() == plain
    vtc.compress(model, "uniform", keep=144)
    pruned = answer()
    assert model.vtc.report.tokens_total == 576
    assert model.vtc.report.tokens_kept == 144
    inputs = ask(question)
    direct = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(direct, skip_special_tokens=True).strip() == pruned.strip()
    vtc.restore(model)
    assert answer() == plain


LORA = {"target_modules": r".*(language_model|text_model).*\.(q_proj|v_proj)", "r": 4, "init_lora_weights": False}


def lora(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(**LORA)).eval()


@no_grad
@pytest.mark.parametrize("setting", [BOTH_STAGES, READING, IN_THE_TOWER], ids=str)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "idefics3"])
def test_lora_inside_and_outside(family: str, setting: Setting) -> None:
    """A PEFT model wrapped, and PEFT put on a wrapped model, equal the wrapped model with merged weights."""
    if not fits(setting, family):
        pytest.skip("this family has no vision stage")
    inputs = prompt(family, "text_row").inputs
    merged = vtc.compress(lora(tiny(family)).merge_and_unload(), setting.pruner)
    expected = greedy(merged, inputs, 4)
    assert (expected.logits - greedy(vtc.compress(tiny(family), setting.pruner), inputs, 4).logits).abs().max() > 1e-2

    wrapped = lora(tiny(family))
    before = anatomy(wrapped)
    plain = greedy(wrapped, inputs, 4)
    assert vtc.compress(wrapped, setting.pruner) is wrapped
    outside = lora(vtc.compress(tiny(family), setting.pruner))
    for model in (wrapped, outside):
        given = greedy(model, inputs, 4)
        assert torch.equal(given.tokens, expected.tokens)
        assert torch.allclose(given.logits, expected.logits, atol=TOLERANCE)
        assert same_report(model.vtc.report, merged.vtc.report)
    vtc.restore(wrapped)
    assert anatomy(wrapped).keys() == before.keys()
    assert torch.equal(greedy(wrapped, inputs, 4).logits, plain.logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_under_pruning(checkpointing: bool, tmp_path: Path) -> None:
    model = get_peft_model(tiny("llava"), LoraConfig(**{**LORA, "init_lora_weights": True})).train()
    vtc.compress(model, READING.pruner)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    inputs = prompt("llava", "ragged").inputs
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for n, p in model.named_parameters() if "lora" not in n)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()


@no_grad
@pytest.mark.parametrize("setting", [BOTH_STAGES, READING, IN_THE_TOWER], ids=str)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_threads_share_a_wrapped_model(family: str, setting: Setting) -> None:
    """Results and reports of parallel calls equal those of sequential ones."""
    model = vtc.compress(tiny(family), setting.pruner)
    prompts = [prompt(family, s).inputs for s in ("one", "ragged", "text_row", "text")]

    def work(i: int) -> tuple[Any, Any]:
        with torch.no_grad():
            return greedy(model, prompts[i], 6), model.vtc.report

    sequential = [work(i) for i in range(len(prompts))]
    jobs = [i for _ in range(6) for i in range(len(prompts))]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(work, jobs))
    for i, (given, report) in zip(jobs, parallel, strict=True):
        assert torch.equal(given.logits, sequential[i][0].logits)
        if i < 3:
            assert same_report(report, sequential[i][1])


@no_grad
def test_two_models_in_one_process_are_independent() -> None:
    first, second, third = tiny("llava"), tiny("llava"), tiny("qwen3_vl")
    inputs, other = prompt("llava", "ragged").inputs, prompt("qwen3_vl", "ragged").inputs
    plain = first(**inputs).logits
    vtc.compress(first, "uniform", keep=4)
    assert torch.equal(second(**inputs).logits, plain)
    vtc.compress(second, "fastv", keep=8)
    vtc.compress(third, READING.pruner)
    one, two, three = first(**inputs).logits, second(**inputs).logits, third(**other).logits
    assert [len(k) for k in first.vtc.report.steps[-1].kept] == [4] * 4
    assert [len(k) for k in second.vtc.report.steps[-1].kept] == [8] * 4
    vtc.restore(first)
    assert torch.equal(first(**inputs).logits, plain)
    assert torch.equal(second(**inputs).logits, two)
    assert torch.equal(third(**other).logits, three)
    assert not torch.equal(one, plain)


@no_grad
def test_a_compiled_model_is_wrapped_and_restored() -> None:
    """What ``torch.compile`` gives stands for the model inside it."""
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, READING.pruner):
        pruned = model(**inputs).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    assert vtc.compress(compiled, READING.pruner) is compiled
    assert torch.allclose(compiled(**inputs).logits, pruned, atol=TOLERANCE)
    assert compiled.vtc is model.vtc
    assert model.vtc.report.tokens_kept == 5
    assert vtc.restore(compiled) is compiled
    assert not hasattr(model, "vtc")
    torch._dynamo.reset()


@no_grad
def test_layers_compiled_before_wrapping_see_the_hooks() -> None:
    """Compiled by region and run without hooks, then wrapped: the old graphs, which know no pruning, are not used."""
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    plain = model(**inputs).logits
    with vtc.compressed(model, READING.pruner):
        pruned = model(**inputs).logits
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    assert torch.allclose(model(**inputs).logits, plain, atol=TOLERANCE)
    with vtc.compressed(model, READING.pruner):
        assert torch.allclose(model(**inputs).logits, pruned, atol=TOLERANCE)
    assert torch.allclose(model(**inputs).logits, plain, atol=TOLERANCE)
    torch._dynamo.reset()


@no_grad
def test_a_copy_of_a_wrapped_model_is_refused_and_a_restored_one_can_be_copied() -> None:
    """A copy would share hooks with its original: mixed state is refused."""
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    plain = greedy(model, inputs, 3)
    vtc.compress(model, READING.pruner)
    expected = greedy(model, inputs, 3)
    with pytest.raises(TypeError, match="restore"):
        copy.deepcopy(model)
    assert torch.equal(greedy(model, inputs, 3).logits, expected.logits)
    twin = copy.deepcopy(vtc.restore(model))
    assert torch.equal(greedy(twin, inputs, 3).logits, plain.logits)
