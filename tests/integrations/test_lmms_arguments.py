"""The model arguments of ``--model vtc``: everything that is wrong is said before a model is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_world import world
from lmms_world import require_lmms_eval
from places import TESTS

require_lmms_eval()


from vtc.integrations.lmms_eval.build_backend import find_backend, placement  # noqa: E402
from vtc.integrations.lmms_eval.model_arguments import read_setup  # noqa: E402
from vtc.integrations.lmms_eval.parse_model_args import read_value, split_arguments  # noqa: E402

LLAVA = "base=llava_hf,pretrained=/nowhere"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("method=dart,keep=0.25", "dart(keep=0.25)"),
        ("method=dart,keep=25%,layer=3", "dart(keep=0.25, layer=3)"),
        ("method=random,keep=1,seed=7", "random(keep=1, seed=7)"),
        ("method=random,keep=1.0", "random(keep=1.0)"),
        ("pruner=uniform,keep=64", "uniform(keep=64)"),
        ("method=uniform(keep=4)", "uniform(keep=4)"),
        ('pruner="random(keep=9,seed=5) + pool(layer=2,keep=1)"', "random(keep=9, seed=5) + pool(keep=1, layer=2)"),
        ("method=none", "unpruned"),
    ],
)  # fmt: skip
def test_methods_with_their_parameters(text: str, spec: str) -> None:
    setup = read_setup(f"{LLAVA},{text}")
    assert setup.spec == spec
    assert setup.arguments == {"pretrained": "/nowhere"}
    assert (setup.base, setup.positions, setup.on_error) == ("llava_hf", "keep", "stop")


def test_the_rest_goes_to_the_backend_as_lmms_eval_reads_it() -> None:
    setup = read_setup(
        f"{LLAVA},method=none,use_cache=False,max_frames_num=8,dtype=float32,positions=compact,on_error=skip"
    )
    assert setup.arguments == {"pretrained": "/nowhere", "use_cache": False, "max_frames_num": 8, "dtype": "float32"}
    assert (setup.positions, setup.on_error) == ("compact", "skip")
    assert read_setup("base=qwen2_5_vl,method=none,max_pixels=1234").arguments == {"max_pixels": 1234}


WRONG = {
    "method=dart,keep=0.25": "base is missing",
    "base=lava_hf,method=dart,keep=0.25": "unknown base 'lava_hf'. Did you mean 'llava_hf'",
    "base=vtc,method=dart,keep=0.25": "unknown base 'vtc'",
    "base=openai,method=dart,keep=0.25": "'openai' runs no torch model in this process",
    f"{LLAVA}": "say method=NAME",
    f"{LLAVA},method=dartt,keep=0.25": "unknown pruner 'dartt'. Did you mean 'dart'",
    f"{LLAVA},method=dart,pruner=dart,keep=0.25": "method and pruner mean the same",
    f"{LLAVA},method=dart": "dart needs keep",
    f"{LLAVA},method=dart,keep=0": "model_args: keep=0 is out of range",
    f"{LLAVA},method=dart,keep=1.5": "model_args: keep=1.5 is out of range",
    f"{LLAVA},method=dart,keep=much": "got 'much'",
    f"{LLAVA},method=none,keep=0.5": "takes no keep",
    f"{LLAVA},method=dart,kep=0.25": "unknown argument 'kep'. Did you mean 'keep'",
    f"{LLAVA},method=dart,keep=0.25,seed=3": "unknown argument 'seed'",
    f"{LLAVA},method=dart,keep=0.25,atn_implementation=sdpa": "Did you mean 'attn_implementation'",
    f"{LLAVA},method=dart,keep=0.25,keep=0.5": "keep is given twice",
    f"{LLAVA},method=dart,keep=0.25,positions=none": "positions must be one of keep, compact, got 'none'",
    f"{LLAVA},method=dart,keep=0.25,on_error=go": "on_error must be one of stop, skip, got 'go'",
    f"{LLAVA},dart": "'dart' is no name=value",
    f"{LLAVA},pruner=dart(keep=0.25)+random(layer=4),keep=0.1": "say their own parameters",
    f'{LLAVA},pruner="dart(keep=0.25) + ramdom(keep=0.1)"': "unknown pruner 'ramdom'",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_errors_come_before_the_model_is_loaded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.models.simple.llava_hf import LlavaHf

    from vtc.integrations.lmms_eval.adapter import VtcChat, VtcSimple

    def loads(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the backend was built")

    loads.__signature__ = __import__("inspect").signature(LlavaHf.__init__)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlavaHf, "__init__", loads)
    for adapter in (VtcChat, VtcSimple):
        with pytest.raises((ValueError, TypeError)) as caught:
            adapter.create_from_arg_string(text, {"batch_size": 1, "device": None})
        assert WRONG[text] in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(AssertionError, match="was built"):  # what is right gets there
        VtcChat.create_from_arg_string(f"{LLAVA},method=dart,keep=0.25")


UNQUOTED = [
    "pruner=random(keep=0.6,seed=5)+random(layer=2,keep=0.2)",
    "pruner=random(keep=0.6,seed=5)",
    "pruner=random(keep=0.6, layer=2)",
]


@pytest.mark.parametrize("text", UNQUOTED)
def test_commas_in_parentheses_must_be_quoted(text: str) -> None:
    """lmms-eval itself would cut them, and key its cache of responses by what is left."""
    value = text.removeprefix("pruner=")
    with pytest.raises(ValueError, match="in quotes") as caught:
        read_setup(f"{LLAVA},{text}")
    advice = str(caught.value).rpartition(" ")[2] if " " not in value else str(caught.value).partition("quotes, ")[2]
    assert advice == f'pruner="{value}"'
    assert read_setup(f"{LLAVA},{advice}").pipeline


def test_quoted_pipelines_that_differ_are_two_models_for_the_response_cache() -> None:
    """Both as lmms-eval reads the arguments, of which it makes the key."""
    from lmms_eval.utils import simple_parse_args_string

    one, two = (f'{LLAVA},pruner="random(layer={n},keep=0.2) + random(layer=5,keep=0.1)"' for n in (2, 3))
    assert simple_parse_args_string(one) != simple_parse_args_string(two)
    assert list(simple_parse_args_string(one)) == list(split_arguments(one)) == ["base", "pretrained", "pruner"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("0.5", 0.5), ("true", True), ("False", False), ("none", None), ("word", "word"), ("'a b'", "a b"),
        ("(1, 2)", (1, 2)),
    ],
)  # fmt: skip
def test_values_of_parameters(text: str, value: Any) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)


def test_a_name_of_both_the_method_and_the_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vtc.integrations.lmms_eval.model_arguments.accepted_names", lambda backend: ["pretrained", "seed"]
    )
    with pytest.raises(ValueError, match='seed is an argument of both random and llava_hf; write pruner="random'):
        read_setup(f"{LLAVA},method=random,keep=4,seed=3")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval's defaults are made for CUDA; they are replaced where they would not work."""
    llava, qwen = find_backend("llava_hf", False), find_backend("qwen2_5_vl", False)
    cpu, cuda = ({"device": name, "device_map": name} for name in ("cpu", "cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert placement(llava, {}) == placement(qwen, {}) == cpu
    assert placement(llava, {"device_map": "auto"}) == {}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert placement(llava, {}) == cuda
    assert placement(llava, {"device": "cuda:1"}) == {"device": "cuda:1", "device_map": "cuda:1"}
    assert placement(llava, {"device": "cpu"}) == placement(qwen, {"device": "cpu"}) == cpu
    assert placement(qwen, {}) == {}  # its own default is to spread the model
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert placement(llava, {}) == placement(qwen, {}) == {}  # the backends give each process its own


def printed(code: str) -> list[str]:
    """The last line that a fresh process prints, in words."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS)
    return done.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_no_lmms_eval() -> None:
    code = "import sys, vtc.integrations.lmms_eval; print('lmms_eval' in sys.modules, 'torch' in sys.modules)"
    assert printed(code) == ["False", "False"]


def test_a_sweep_without_its_tasks_imports_no_lmms_eval(tmp_path: Path) -> None:
    """Nor what it brings along."""
    model, data = world()
    given = ["bench", "--model", model, "--data", data, "--pruners", "uniform", "--keep", "3", "--limit", "1"]
    given += ["--workers", "1", "--no-timing", "--output", tmp_path / "out"]
    code = f"""if True:
        import contextlib, sys
        from vtc.commands.main import main
        with contextlib.suppress(SystemExit):
            main({list(map(str, given))!r})
        print(*(name in sys.modules for name in ("vtc.eval.bench", "lmms_eval", "datasets", "loguru", "decord")))
    """
    assert printed(code) == ["True", *["False"] * 4]
    assert (tmp_path / "out" / "summary.json").is_file()
