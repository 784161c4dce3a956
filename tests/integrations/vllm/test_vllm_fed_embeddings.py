"""Without the plugin: stock vLLM is fed what ``vtc.embed`` gives, and answers as transformers and vtc do."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM, which .ci/vllm installs into an environment of its own")

from vllm_checkpoints import CHECKPOINTS
from vllm_engines import KEEP, A, Engine, picture

import vtc

WIDE = picture(3, 112, 224)


def test_stock_vllm_fed_with_embeddings(tmp_path: Path) -> None:
    from vllm import LLM

    folder = tmp_path / "llava"
    CHECKPOINTS["llava"](folder)
    limits = {"image": 2}
    llm = LLM(
        str(folder),
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=2,
        enforce_eager=True,
        enable_mm_embeds=True,
        limit_mm_per_prompt=limits,
    )
    run = Engine("llava", folder, llm, False, ())
    for pruner in ("divprune", "cdpruner", "pool", "tome"):
        for prompt, images in ((run.one, [A]), (run.two, [A, WIDE])):
            setting = {"keep": KEEP, "positions": "compact", "tokenizer": run.processor.tokenizer}
            with vtc.compressed(run.stock, pruner, **setting) as model:
                pictures = vtc.embed(model, run.inputs(prompt, images))[0]
            assert run.ask(run.request(prompt, pictures))[0] == run.expected(prompt, images, pruner), pruner
