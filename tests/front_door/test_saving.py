"""The set-up lies beside what is saved, whatever saves it and whatever is around it, and goes when it is stale."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from anatomy import anatomy
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.modules import module as torch_module
from zoo import prompt, tiny

import vtc
from vtc import saving
from vtc.config import CONFIG_NAME

LORA = {"target_modules": r".*(language_model|text_model).*\.(q_proj|v_proj)", "r": 2, "init_lora_weights": False}


def lora() -> LoraConfig:
    torch.manual_seed(3)
    return LoraConfig(**LORA)


def wrapped(family: str = "llava") -> Any:
    return vtc.compress(tiny(family), "fastv", keep=3)


def merged(family: str) -> nn.Module:
    return get_peft_model(wrapped(family), lora()).merge_and_unload()


def twice(family: str) -> nn.Module:
    """Two adapters, one in a folder of its own."""
    model = get_peft_model(wrapped(family), lora())
    model.add_adapter("second", lora())
    return model


def added(family: str) -> nn.Module:
    """An adapter put into the model by transformers, without a wrapper."""
    model = wrapped(family)
    try:
        model.add_adapter(lora())
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip("this transformers wants a newer PEFT for add_adapter")
    return model


def around_compiled(family: str) -> nn.Module:
    return vtc.compress(torch.compile(get_peft_model(tiny(family), lora())), "fastv", keep=3)


WAYS: dict[str, Callable[[str], Any]] = {
    "bare": wrapped,
    "adapter after": lambda f: get_peft_model(wrapped(f), lora()),
    "adapter before": lambda f: vtc.compress(get_peft_model(tiny(f), lora()), "fastv", keep=3),
    "adapter after, merged": merged,
    "two adapters": twice,
    "add_adapter": added,
    "compiled": lambda f: torch.compile(wrapped(f)),
    "compiled, adapter before": around_compiled,
    "adapter after, compiled": lambda f: torch.compile(get_peft_model(wrapped(f), lora())),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_around_the_model_saves_its_set_up(way: str, tmp_path: Path) -> None:
    model = WAYS[way]("llava")
    model.save_pretrained(tmp_path)
    assert vtc.VTCConfig.from_pretrained(tmp_path) == model.vtc.config
    vtc.restore(model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / CONFIG_NAME).exists()
    assert not any("save_pretrained" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3"])
def test_an_adapter_saved_from_around_a_wrapped_model_loads_with_both(family: str, tmp_path: Path) -> None:
    inputs = prompt(family, "one").inputs
    tiny(family).save_pretrained(tmp_path / "base")
    model = get_peft_model(vtc.load(tmp_path / "base", "fastv", keep=3), lora()).eval()
    model.save_pretrained(tmp_path / "adapter")
    try:
        tf.AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")
    except KeyError:  # 5.5.0, of families whose checkpoints have other names for their layers
        pytest.skip("this transformers can't load an adapter of this family, unwrapped either")
    again = vtc.load(tmp_path / "adapter")
    assert again.vtc.config == model.vtc.config
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, model(**inputs).logits, atol=1e-4)
    assert again.vtc.report.tokens_kept == model.vtc.report.tokens_kept


@pytest.mark.parametrize("way", ["bare", "adapter after", "adapter before"])
def test_the_trainer_saves_it(way: str, tmp_path: Path) -> None:
    arguments = tf.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    tf.Trainer(model=WAYS[way]("llava"), args=arguments).save_model(str(tmp_path / "saved"))
    assert vtc.VTCConfig.from_pretrained(tmp_path / "saved").pruner == "fastv"


class Api:
    """Stands for the hub: notes what a commit would hold."""

    def __init__(self) -> None:
        self.uploaded: list[str] = []

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return type("Repo", (), {"repo_id": repo_id})


@pytest.mark.parametrize("way", ["bare", "adapter after"])
def test_what_is_pushed_holds_it(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[set[str]] = []

    def upload(self: Any, working_dir: Any, repo_id: str, files_timestamps: dict[str, float], **_: Any) -> None:
        files = {p.name: p.stat().st_mtime for p in Path(working_dir).iterdir()}
        sent.append({name for name, changed in files.items() if changed > files_timestamps.get(name, 0)})

    monkeypatch.setattr(tf.utils.hub.PushToHubMixin, saving.UPLOAD, upload)
    where = tf.modeling_utils if hasattr(tf.modeling_utils, "hf_api") else None
    if where is not None:
        monkeypatch.setattr(where, "hf_api", Api)
        monkeypatch.setattr(tf.utils.hub, "hf_api", Api)
    else:
        for module in (tf.modeling_utils, tf.utils.hub):
            monkeypatch.setattr(module, "create_repo", Api().create_repo)
    monkeypatch.setattr(tf.utils.hub, "create_and_tag_model_card", lambda *_, **__: type("Card", (), {
        "save": staticmethod(lambda path: Path(path).write_text("card"))}))  # fmt: skip
    model = WAYS[way]("llava")
    model.push_to_hub("somebody/something")
    assert CONFIG_NAME in sent[-1]
    if way == "bare":  # PEFT's save_pretrained uploads nothing
        model.save_pretrained(str(tmp_path), push_to_hub=True)  # 5.5.0 takes no Path there
        assert {CONFIG_NAME, "config.json"} <= sent[-1]
        assert saving.UPLOAD not in model.__dict__


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / CONFIG_NAME).exists()
    wrapped().save_pretrained(save_directory=tmp_path)
    assert (tmp_path / CONFIG_NAME).exists()


def test_a_stale_set_up_goes_when_the_plain_model_is_saved_over_it(tmp_path: Path) -> None:
    inputs = prompt("llava", "one").inputs
    model = wrapped()
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    vtc.VTCConfig(pruner="random", keep=5).save_pretrained(tmp_path / "else")  # not this model's
    vtc.restore(model)
    before = anatomy(tiny("llava")).keys()
    for place in ("a", "else", "b"):
        model.save_pretrained(tmp_path / place)
    assert not hasattr(vtc.load(tmp_path / "a"), "vtc")
    assert not (tmp_path / "b" / CONFIG_NAME).exists()
    assert (tmp_path / "else" / CONFIG_NAME).exists()
    assert "save_pretrained" not in model.__dict__
    assert anatomy(model).keys() == before
    # loaded with its set-up, restored, saved again
    vtc.compress(model, "fastv", keep=3).save_pretrained(tmp_path / "a")
    loaded = vtc.restore(vtc.load(tmp_path / "a"))
    twins = copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))  # what stays can be copied
    with torch.no_grad():
        assert all(torch.equal(t(**inputs).logits, loaded(**inputs).logits) for t in twins)
    loaded.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / CONFIG_NAME).exists()
    # wrapped again, it is written again
    vtc.compress(loaded, "uniform", keep=2).save_pretrained(tmp_path / "a")
    assert vtc.load(tmp_path / "a").vtc.config.pruner == "uniform"


def test_a_method_without_a_name_leaves_no_other_method_beside_the_model(tmp_path: Path) -> None:
    class Nameless(vtc.Pruner):
        name = "nameless"

        def select(self, tokens: vtc.VisualTokens, k: int) -> torch.Tensor:
            return torch.arange(k).expand(len(tokens.counts), k)

    model = wrapped()
    model.save_pretrained(tmp_path)
    vtc.compress(model, Nameless(keep=3))
    with pytest.raises(ValueError, match="not registered"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / CONFIG_NAME).exists()


def test_blocks_and_wrappers_leave_nothing_behind(tmp_path: Path) -> None:
    gc.collect()
    hooks = dict(torch_module._global_module_registration_hooks)
    model = tiny("llava")
    with vtc.compressed(model, "fastv", keep=3):
        outer: PeftModel = get_peft_model(model, lora())
        with vtc.compressed(model, "uniform", keep=2):
            outer.save_pretrained(tmp_path / "inner")
        outer.save_pretrained(tmp_path / "outer")
    outer.save_pretrained(tmp_path / "plain")
    pruners = [vtc.VTCConfig.from_pretrained(tmp_path / place).pruner for place in ("inner", "outer")]
    assert pruners == ["uniform", "fastv"]
    assert not (tmp_path / "plain" / CONFIG_NAME).exists()
    assert len(torch_module._global_module_registration_hooks) <= len(hooks)


def test_somebody_elses_save_pretrained_is_called_and_comes_back(tmp_path: Path) -> None:
    model, called = tiny("llava"), []
    own = type(model).save_pretrained.__get__(model)

    def theirs(save_directory: Any, **kwargs: Any) -> None:
        called.append(save_directory)
        own(save_directory, **kwargs)

    model.save_pretrained = theirs
    vtc.compress(model, "fastv", keep=3).save_pretrained(tmp_path)
    assert called == [tmp_path]
    assert (tmp_path / CONFIG_NAME).exists()
    vtc.restore(model)
    model.save_pretrained(tmp_path)
    assert model.__dict__["save_pretrained"] is theirs
