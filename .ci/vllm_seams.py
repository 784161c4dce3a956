"""Whether a vLLM wheel has every name and argument that the plugin uses: ``python .ci/vllm_seams.py WHEEL``.

Versions that can't run on this machine are compared so; what a name does is not looked at.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# a module's classes and functions, with the arguments that the plugin gives them or takes from them
SEAMS: dict[str, dict[str, tuple[str, ...]]] = {
    "multimodal/processing/processor.py": {
        "BaseMultiModalProcessor.__init__": ("info", "dummy_inputs"),
        "BaseMultiModalProcessor.get_dummy_inputs": (),
        "BaseMultiModalProcessor.get_dummy_mm_inputs": ("mm_counts",),
        "BaseMultiModalProcessor.apply": ("inputs", "timing_ctx"),
        "BaseMultiModalProcessor._get_mm_hashes": ("inputs",),
        "BaseMultiModalProcessor._apply_hf_processor_main": ("mm_items", "hf_kwargs"),
        "BaseMultiModalProcessor._get_mm_fields_config": ("hf_inputs", "hf_processor_mm_kwargs"),
        "BaseMultiModalProcessor._get_mm_prompt_updates": ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
        "PromptUpdateDetails": (),
        "ResolvedPromptUpdate": (),
    },
    "multimodal/processing/context.py": {"InputProcessingContext.get_mm_config": ()},
    "multimodal/hasher.py": {"MultiModalHasher.hash_kwargs": ("algorithm",)},
    "multimodal/parse.py": {"EmbeddingItems": ()},
    "multimodal/inputs.py": {"MultiModalFieldConfig.batched": ("modality", "keep_on_cpu"), "PlaceholderRange": ()},
    "multimodal/utils.py": {"group_and_batch_mm_kwargs": ("mm_kwargs", "device")},
    "multimodal/registry.py": {"MultiModalRegistry.register_processor": ("processor", "info", "dummy_inputs")},
    "model_executor/layers/attention/mm_encoder_attention.py": {"MMEncoderAttention": ()},
    "v1/worker/cpu_model_runner.py": {"CPUModelRunner.load_model": ()},
}
MODEL = ("embed_multimodal", "load_weights")
ROTARY = {
    "get_mrope_input_positions": ("input_tokens", "mm_features"),
    "recompute_mrope_positions": ("input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens"),
}


def functions(source: str) -> dict[str, set[str]]:
    """Every class, function and method of a module, and the names of its arguments."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = set()
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found[f"{node.name}.{inner.name}"] = _arguments(inner)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = _arguments(node)
    return found


def _arguments(node: ast.FunctionDef) -> set[str]:
    given = node.args
    return {a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


def missing(wheel: zipfile.ZipFile) -> list[str]:
    """What the plugin uses and the wheel does not have."""
    from vtc.integrations.vllm.families import ROWS

    seams = {path: dict(names) for path, names in SEAMS.items()}
    for row in ROWS:
        names = seams.setdefault(f"model_executor/models/{row.module}.py", {})
        names[row.model] = ()
    found = []
    for path, names in seams.items():
        try:
            have = functions(wheel.read(f"vllm/{path}").decode())
        except KeyError:
            found.append(f"vllm/{path}")
            continue
        for name, arguments in names.items():
            if name not in have:
                found.append(f"vllm/{path}: {name}")
            found += [f"vllm/{path}: {name}({a})" for a in arguments if name in have and a not in have[name]]
    interfaces = functions(wheel.read("vllm/model_executor/models/interfaces.py").decode())
    for name, arguments in ROTARY.items():
        for owner in ("SupportsMRoPE", "SupportsMultiModalPruning"):
            have_arguments = interfaces.get(f"{owner}.{name}")
            if have_arguments is not None:
                found += [f"{owner}.{name}({a})" for a in arguments if a not in have_arguments]
    runner = wheel.read("vllm/v1/worker/gpu_model_runner.py").decode()
    found += [f"gpu_model_runner: {name}" for name in (*MODEL[:1], *ROTARY) if name not in runner]
    return found


if __name__ == "__main__":
    with zipfile.ZipFile(sys.argv[1]) as opened:
        lacking = missing(opened)
    print("\n".join(lacking) if lacking else "every name and argument is there")
    sys.exit(bool(lacking))
