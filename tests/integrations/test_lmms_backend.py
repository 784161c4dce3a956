"""One of lmms-eval's backends with a compressed model: token counts, failures, and what is left when it is cleaned."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from bench_world import TOKENS, png, save_model
from lmms_world import requests_of, require_lmms_eval, write_pope

require_lmms_eval()

from vtc.integrations.lmms_eval.adapter import VtcChat, VtcSimple, compress_backend  # noqa: E402
from vtc.integrations.lmms_eval.model_arguments import read_setup  # noqa: E402
from vtc.integrations.lmms_eval.task_lookup import load_tasks  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model and a task."""
    root = tmp_path_factory.mktemp("backend")
    write_pope(
        root / "tasks", [(png(i), f"is there a {c} square?", "yes") for i, c in enumerate(("red", "blue", "teal"))]
    )
    save_model(root / "tiny")
    return root


def backend(world: Path, arguments: str, kind: Any = VtcChat) -> Any:
    text = f"base=llava_hf,{arguments},pretrained={world / 'tiny'},dtype=float32"
    return kind.create_from_arg_string(text, {"batch_size": 1, "max_batch_size": None, "device": "cpu"})


@pytest.mark.parametrize("kind", [VtcChat, VtcSimple])
def test_answers_carry_their_tokens(world: Path, kind: Any) -> None:
    lm = backend(world, "method=uniform,keep=3", kind)
    assert lm.is_simple == (kind is VtcSimple)
    assert lm.model.vtc.config.pruner == "uniform"
    answers = lm.generate_until(requests_of(world / "tasks", lm))
    prompts = {answer.token_counts.input_tokens for answer in answers}
    assert min(prompts) > TOKENS
    for answer in answers:
        told = answer.token_counts.to_dict()
        assert (told["visual_tokens"], told["visual_tokens_kept"]) == (TOKENS, 3)
        assert told["visual_tokens_mean_per_layer"] == 3
        assert answer.text
    told = lm.vtc_results.summary()
    assert (told["requests"], told["visual_tokens_kept"], told["kept_share"]) == (3, 9, 3 / TOKENS)
    assert told["prompt_tokens"] == sum(answer.token_counts.input_tokens for answer in answers)
    assert lm.vtc_results.path is None  # without an output path lmms-eval writes nothing either
    plain = backend(world, "method=none", kind)
    assert not hasattr(plain.model, "vtc")
    unpruned = plain.generate_until(requests_of(world / "tasks", plain))
    assert [a.text for a in unpruned] != [a.text for a in answers]
    assert {a.token_counts.to_dict()["visual_tokens_kept"] for a in unpruned} == {TOKENS}


def broken(lm: Any, calls: int) -> None:
    """Have the backend's model fail in its `calls`-th generate call."""
    forward, seen = lm.model.model.forward, []

    def fails(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] > 1:  # a prefill
            seen.append(1)
        if len(seen) == calls:
            raise RuntimeError("out of luck")
        return forward(*args, **kwargs)

    fails.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    lm.model.model.forward = fails


def test_a_failing_model_stops_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval's backends log such an error and go on with an empty answer, that is a wrong one."""
    lm = backend(world, "method=uniform,keep=3")
    requests = requests_of(world / "tasks", lm)
    broken(lm, 2)
    with pytest.raises(RuntimeError, match=r"failed on a request \(RuntimeError: out of luck\).*on_error=skip"):
        lm.generate_until(requests)
    lm = backend(world, "method=uniform,keep=3")
    broken(lm, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")  # others would wait for this process, so it ends
    with pytest.raises(SystemExit, match="out of luck"):
        lm.generate_until(requests_of(world / "tasks", lm))


def test_or_counts_as_an_empty_answer_if_asked_for(world: Path) -> None:
    lm = backend(world, "method=uniform,keep=3,on_error=skip")
    requests = requests_of(world / "tasks", lm)
    broken(lm, 2)
    answers = lm.generate_until(requests)
    assert [bool(answer.text) for answer in answers] == [True, False, True]
    assert [a.token_counts is None for a in answers] == [False, True, False]
    told = lm.vtc_results.summary()
    assert (told["failed"], told["requests"]) == (1, 2)
    assert [r["doc_id"] for r in told["per_request"]] == [0, 2]


def test_cleaned_it_frees_its_model(world: Path) -> None:
    """lmms-eval runs a list of models in one process."""
    lm = backend(world, "method=dart,keep=3,layer=1")
    lm.generate_until(requests_of(world / "tasks", lm))
    model = weakref.ref(lm.model)
    lm.clean()
    gc.collect()
    assert model() is None
    assert lm.vtc_results.summary()["requests"] == 3


def test_a_backend_without_a_torch_model_is_refused() -> None:
    class Remote:
        model = "gpt"

    with pytest.raises(ValueError, match="holds a str, no torch model"):
        compress_backend(Remote(), read_setup("base=llava_hf,method=uniform,keep=3"), "")


def test_requests_stay_as_they_were(world: Path) -> None:
    """The backend changes its generation options, by which lmms-eval would look for the answer in its cache."""
    for kind in (VtcChat, VtcSimple):
        lm = backend(world, "method=uniform,keep=3", kind)
        requests = requests_of(world / "tasks", lm)
        before = copy.deepcopy([[a for a in request.args if isinstance(a, dict)] for request in requests])
        lm.generate_until(requests)
        assert [[a for a in request.args if isinstance(a, dict)] for request in requests] == before


def test_prompts_of_its_own_for_the_backend_are_warned_of(world: Path) -> None:
    """The task gives them by the name of the model, which is vtc."""
    from loguru import logger

    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), level="WARNING", format="{message}")
    try:
        lm = backend(world, "method=uniform,keep=3")
        requests = requests_of(world / "tasks", lm)
        for _ in range(2):
            lm.generate_until(requests)
        assert said == []
        task = load_tasks("pope_local", str(world / "tasks"))["pope_local"]
        for request in requests:
            own = copy.copy(task)
            own._config = copy.copy(task.config)
            own._config.lmms_eval_specific_kwargs = {"default": {}, "llava_hf": {"post_prompt": "Answer:"}}
            request.arguments = tuple(own.doc_to_messages if callable(a) else a for a in request.args)
        for _ in range(2):
            lm.generate_until(requests)
    finally:
        logger.remove(sink)
    (line,) = said
    assert "pope_local has prompts or options of its own for llava_hf, none for vtc" in line
    assert "method=none" in line
