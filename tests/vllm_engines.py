"""Engines of vLLM in this process on tiny checkpoints, and the same prompts through transformers and vtc."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from vllm_checkpoints import CHECKPOINTS, PLACEHOLDERS

import vtc
from vtc.integrations.vllm.families import row_of

KEEP, TOKENS = 0.4, 8
# read when vLLM is imported
for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Blurred noise: neighbours are alike, and no two patches the same."""
    coarse = np.random.default_rng(seed).integers(
        0, 255, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8
    )
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


A, B, C = picture(0, 112, 112), picture(1, 224, 168), picture(2, 100, 224)


@dataclass
class Answer:
    """What came back: the prompt's length, greedy tokens, and how much of the prompt was cached."""

    length: int
    tokens: list[int]
    cached: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and (self.length, self.tokens) == (other.length, other.tokens)


@dataclass
class Engine:
    """An engine, and what transformers needs to answer the same."""

    family: str
    folder: Path
    llm: Any
    rotary: bool
    choices: Sequence[str]

    def words(self, *parts: str) -> str:
        """A prompt: text, and `i` for a picture, `v` for a video."""
        image = PLACEHOLDERS[self.family]
        return "".join({"i": image, "v": image.replace("image", "video")}.get(part, part) for part in parts)

    @property
    def one(self) -> str:
        """A prompt with one picture."""
        return self.words("user: ", "i", "what is the colour assistant:")

    @property
    def two(self) -> str:
        """A prompt with two."""
        return self.words("user: ", "i", "please answer ", "i", "what is the colour assistant:")

    def request(self, prompt: str, images: Sequence[Any] = (), **ours: Any) -> dict[str, Any]:
        """What ``generate`` takes."""
        found: dict[str, Any] = {"prompt": prompt}
        if images:
            found["multi_modal_data"] = {"image": list(images)}
        return {**found, "mm_processor_kwargs": ours} if ours else found

    def ask(self, *requests: dict[str, Any]) -> list[Answer]:
        """Greedy answers, all at once."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
        out = self.llm.generate(list(requests), sampling, use_tqdm=False)
        return [Answer(len(o.prompt_token_ids), list(o.outputs[0].token_ids), o.num_cached_tokens or 0) for o in out]

    def forget(self) -> None:
        """Empty every cache but the memory of choices."""
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    @property
    def worker(self) -> Any:
        """The process's worker."""
        return self.llm.llm_engine.model_executor.driver_worker.worker

    @property
    def model(self) -> Any:
        """The engine's model."""
        return self.worker.model_runner.get_model()

    @cached_property
    def stock(self) -> Any:
        """The transformers model."""
        return tf.AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        """Its processor."""
        return tf.AutoProcessor.from_pretrained(self.folder)

    def inputs(self, prompt: str, images: Sequence[Any], **more: Any) -> dict[str, Any]:
        """What the transformers model takes."""
        given = [list(images)] if self.family == "gemma3" else list(images)
        return dict(self.processor(text=prompt, images=given or None, return_tensors="pt", **more))

    @torch.no_grad()
    def expected(self, prompt: str, images: Sequence[Any], pruner: str, keep: Any = KEEP) -> Answer:
        """The same through ``vtc.compress``; where positions have one dimension, an engine knows only compact ones."""
        compact = {} if self.rotary else {"positions": "compact"}
        with vtc.compressed(self.stock, pruner, keep=keep, tokenizer=self.processor.tokenizer, **compact) as model:
            inputs = self.inputs(prompt, images)
            ids = model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
            length, report = inputs["input_ids"].shape[1], model.vtc.report
            return Answer(length - report.tokens_total + report.tokens_kept, ids[0, length:].tolist())


@contextmanager
def engine(family: str, folder: Path, choices: Sequence[str], **arguments: Any) -> Iterator[Engine]:
    """An engine on a checkpoint of `family` in `folder`, whose requests choose among `choices`; chunked prefill."""
    import json

    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    if not (folder / "config.json").exists():
        CHECKPOINTS[family](folder)
    row = row_of(json.loads((folder / "config.json").read_text())["architectures"])
    assert row is not None
    limits = {"image": 3}
    if family.startswith(("qwen", "glm", "internvl")) or family == "llava_onevision":
        limits["video"] = int(family.startswith("qwen"))
    given: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 48,
        "block_size": 32,
        "enforce_eager": True,
        "limit_mm_per_prompt": limits,
        "hf_overrides": {
            "architectures": [row.name],
            "vtc": {"pruner": choices[0], "keep": KEEP, "choices": list(choices)},
        },
        **({"video_pruning_rate": 1e-18} if row.rotary else {}),
        **arguments,
    }
    found = Engine(family, folder, LLM(model=str(folder), **given), row.rotary, choices)
    try:
        yield found
    finally:
        del found.llm
        gc.collect()
        cleanup_dist_env_and_memory()
