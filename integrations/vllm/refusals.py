"""What can't run in the engine, said in words when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtc.models.layout.model_parts import Parts
from vtc.pipeline_text import Pipeline
from vtc.pruners.signals import QuestionState, Signal

from .families import Row
from .settings import DEPTH, EngineSettings

SWITCH = 1e-18  # so small that 1 less it is 1: no video loses a token
INSTEAD = "methods of the input stage run here (`vtc pruners` lists the stages), or serve it with transformers"


def refuse_pipeline(pipeline: Pipeline) -> None:
    """Refuse methods for which an engine has no place.

    Raises
    ------
    NotImplementedError
        Naming the method, and why.
    """
    for pruner in pipeline:
        name = pruner.spoken_name
        stages = [stop.stage for stop in pruner.stops(DEPTH)]
        if "decoder" in stages:
            raise NotImplementedError(
                f"{name} drops tokens between decoder layers, and vLLM's KV blocks hold as many tokens in every layer: "
                f"it can't run inside vLLM; {INSTEAD}"
            )
        if "vision" in stages:
            raise NotImplementedError(
                f"{name} drops tokens inside the vision tower, which is vLLM's own and has no place for it: it can't "
                f"run inside vLLM; {INSTEAD}"
            )
        if pruner.calibrates:
            raise NotImplementedError(
                f"{name} adds to the attention of each decoder layer, which is vLLM's own and has no place for it: it "
                f"can't run inside vLLM; {INSTEAD}"
            )
        if pruner.adaptive_count:
            raise NotImplementedError(
                f"{pruner} decides itself how many tokens it keeps, and vLLM makes a picture's placeholders before it "
                "is encoded: leave its adaptive option out, so that it keeps a fixed number"
            )
        if any(isinstance(s, QuestionState) for stop in pruner.stops(DEPTH) for s in pruner.signals_at(stop)):
            raise NotImplementedError(
                f"{name} has the language model read the question alone first, and an engine has no such pass: it "
                f"can't run inside vLLM; other {INSTEAD}"
            )


def refuse_checkpoint(tower: str | None, row: Row) -> None:
    """Refuse a checkpoint of a known architecture whose vision `tower`, a ``model_type``, the plugin doesn't know.

    Raises
    ------
    NotImplementedError
        If it is one.
    """
    if row.stock.startswith("Llava") and tower == "pixtral":
        raise NotImplementedError(
            "LLaVA on a Pixtral tower puts break tokens between a picture's rows, which vtc does not prune inside "
            "vLLM: serve it with transformers"
        )


def refuse_engine(vllm_config: Any, settings: EngineSettings, row: Row) -> None:
    """Refuse settings of the engine under which pictures would not be pruned, or pruned wrongly.

    Raises
    ------
    NotImplementedError, ValueError
        Naming the option, and what to do.
    """
    refuse_checkpoint(vllm_config.model_config.hf_config.vision_config.model_type, row)
    for pipeline in settings.pipelines:
        refuse_pipeline(pipeline)
    compilation = vllm_config.compilation_config
    if getattr(compilation, "cudagraph_mm_encoder", False):
        raise NotImplementedError(
            "cudagraph_mm_encoder replays the vision tower without the model class, so nothing would be pruned: set it "
            "to false in --compilation-config"
        )
    rate = vllm_config.model_config.get_multimodal_config().video_pruning_rate or 0.0
    if not row.rotary:
        return
    if not rate:
        raise ValueError(
            f"{row.stock} has positions of several dimensions, which pruned pictures must keep, and vLLM only asks for "
            f"them where its switch for pruned videos is on: start it with --video-pruning-rate {SWITCH} (no video "
            "loses a token by that)"
        )
    if 1.0 - rate != 1.0:
        raise NotImplementedError(
            f"--video-pruning-rate {rate} prunes videos by vLLM's own method, beside which vtc's pictures are not "
            f"tested: give {SWITCH}, which prunes none"
        )
    if vllm_config.speculative_config is not None:
        raise NotImplementedError(
            f"speculative decoding looks one token ahead of the positions that pictures of {row.stock} are given: "
            "leave --speculative-config out"
        )


def refuse_tower(vllm_config: Any, parts: Parts, settings: EngineSettings, signals: Sequence[Signal]) -> None:
    """Refuse what the engine's vision tower, as it is built here, can't give the methods.

    Raises
    ------
    NotImplementedError
        Naming what is read, and what to do.
    """
    encoder = [s for s in signals if s.part == "encoder"]
    pipelines = settings.pipelines
    tables = [p.spoken_name for pipeline in pipelines for p in pipeline if p.reads_vocabulary or p.projects]
    if vllm_config.parallel_config.tensor_parallel_size > 1 and (encoder or tables):
        what = f"reads {encoder[0]}" if encoder else "reads weights of the model"
        raise NotImplementedError(
            f"a method here {what}, of which each rank of a tensor-parallel engine has a share, so that ranks would "
            "choose differently: use --tensor-parallel-size 1, or a method that reads features only"
        )
    if encoder and getattr(vllm_config.compilation_config, "compile_mm_encoder", False):
        raise NotImplementedError(
            f"a method here reads {encoder[0]}, and a compiled vision tower runs no hooks: set compile_mm_encoder to "
            "false in --compilation-config"
        )
    backends = {str(getattr(m, "attn_backend", "")) for m in parts.tower.modules()}
    if encoder and any("FLASHINFER" in name for name in backends):
        raise NotImplementedError(
            f"a method here reads {encoder[0]}, and FlashInfer's vision attention is told the segments in a form "
            "of its own: choose another with --mm-encoder-attn-backend, e.g. FLASH_ATTN or TORCH_SDPA"
        )
    for pipeline in pipelines:
        for pruner in pipeline:
            if pruner.projects and parts.family.project is None:
                raise NotImplementedError(
                    f"{pruner.spoken_name} runs the projector on single tokens, which {parts.family.name}'s can't: "
                    f"{parts.family.no_project}"
                )
