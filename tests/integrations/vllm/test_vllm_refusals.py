"""What can't run in an engine is refused in words: by ``vtc export-vllm``, and by the engine when it starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import vtc
from vtc.integrations.vllm.families import ROWS, Row, row_of
from vtc.integrations.vllm.refusals import SWITCH, refuse_checkpoint, refuse_engine, refuse_pipeline, refuse_tower
from vtc.integrations.vllm.settings import EngineSettings
from vtc.pruners.signals import EncoderAttention, QuestionState

SETTINGS = EngineSettings.read({"pruner": "divprune", "keep": 0.25})
LLAVA, QWEN = (row for row in ROWS if row.stock in ("LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration"))


def engine(rate: float | None = None, **compilation: Any) -> Any:
    """As much of an engine's configuration as is looked at."""
    multimodal = SimpleNamespace(video_pruning_rate=rate)
    config = SimpleNamespace(vision_config=SimpleNamespace(model_type="clip_vision_model"))
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config, get_multimodal_config=lambda: multimodal),
        compilation_config=SimpleNamespace(**compilation),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        speculative_config=None,
    )


@pytest.mark.parametrize("name", vtc.list_pruners())
def test_methods_run_here_or_say_why_not(name: str) -> None:
    pruner = vtc.pruner_class(name)(keep=0.4)
    stages = {stop.stage for stop in pruner.stops(32)}
    asks = any(isinstance(s, QuestionState) for stop in pruner.stops(32) for s in pruner.signals_at(stop))
    if stages == {"input"} and not pruner.adaptive_count and not asks and not pruner.calibrates:
        refuse_pipeline((pruner,))
        return
    words = "KV blocks" if "decoder" in stages else "inside the vision tower" if "vision" in stages else "adaptive"
    words = "the question alone" if asks else "adds to the attention" if pruner.calibrates else words
    with pytest.raises(NotImplementedError, match=words):
        refuse_pipeline((pruner,))


def test_an_adaptive_option_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"adaptive=True.*before it is encoded"):
        refuse_pipeline(vtc.parse("prumerge(adaptive=True)", keep=0.4))


def test_an_engine_as_it_should_be_is_not_refused() -> None:
    refuse_engine(engine(), SETTINGS, LLAVA)
    refuse_engine(engine(SWITCH), SETTINGS, QWEN)


@pytest.mark.parametrize(
    ("row", "given", "words"),
    [
        (LLAVA, engine(cudagraph_mm_encoder=True), "cudagraph_mm_encoder"),
        (QWEN, engine(), f"--video-pruning-rate {SWITCH}"),
        (QWEN, engine(0.0), f"--video-pruning-rate {SWITCH}"),
        (QWEN, engine(0.5), "vLLM's own method"),
    ],
)
def test_engines_that_would_prune_wrongly_are_refused(row: Row, given: Any, words: str) -> None:
    with pytest.raises((NotImplementedError, ValueError), match=words):
        refuse_engine(given, SETTINGS, row)


def test_speculation_is_refused_where_positions_have_several_dimensions() -> None:
    given = engine(SWITCH)
    given.speculative_config = object()
    with pytest.raises(NotImplementedError, match="speculative"):
        refuse_engine(given, SETTINGS, QWEN)
    refuse_engine(given, SETTINGS, LLAVA)


def test_towers_that_can_not_be_read_are_refused_where_a_method_reads_them() -> None:
    def tower(backend: str) -> Any:
        return SimpleNamespace(tower=SimpleNamespace(modules=lambda: [SimpleNamespace(attn_backend=backend)]))

    signals = (EncoderAttention(),)
    refuse_tower(engine(), tower("TORCH_SDPA"), SETTINGS, signals)
    with pytest.raises(NotImplementedError, match="--mm-encoder-attn-backend"):
        refuse_tower(engine(), tower("FLASHINFER"), SETTINGS, signals)
    with pytest.raises(NotImplementedError, match="compile_mm_encoder"):
        refuse_tower(engine(compile_mm_encoder=True), tower("TORCH_SDPA"), SETTINGS, signals)
    split = engine()
    split.parallel_config.tensor_parallel_size = 2
    with pytest.raises(NotImplementedError, match="--tensor-parallel-size 1"):
        refuse_tower(split, tower("TORCH_SDPA"), SETTINGS, signals)
    refuse_tower(split, tower("FLASHINFER"), SETTINGS, ())  # features are whole on every rank


def test_a_checkpoint_that_looks_known_is_looked_at_twice() -> None:
    with pytest.raises(NotImplementedError, match="Pixtral"):
        refuse_checkpoint("pixtral", LLAVA)
    assert row_of(["Qwen2VLForConditionalGeneration"]) is QWEN
    assert row_of(["LlamaForCausalLM"]) is None
    assert len({row.name for row in ROWS}) == len(ROWS)
