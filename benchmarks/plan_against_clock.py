"""``vtc plan --gpu cpu`` beside the clock: ``OMP_NUM_THREADS=1 python benchmarks/plan_against_clock.py [llava qwen]``.

Models of true layer shapes, few layers and random weights: LLaVA-1.5-7B (CLIP-L/336 and a Llama of width 4096) and
Qwen2.5-VL-3B. Tower, prefill and speed-up at three keeps are predicted from the configuration, and measured in CPU time
of one thread, all settings in turns, medians. The answers mean nothing.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf
from true_shape_model import TEMPLATE, byte_tokenizer
from true_shape_model import write as write_qwen

from vtc.eval.cost.clocks import work_clock
from vtc.eval.cost.timed_prompt import TimedPrompt
from vtc.eval.plan.picture import QUESTION, blank, parse_size
from vtc.eval.plan.plan_job import PlanOptions, make_plan
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.encode_once import encode
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell, make_cell

KEEPS = (0.5, 0.25, 0.11)
NEAR = 0.25  # of the clock: what a prediction may be off


def write_llava(folder: Path, layers: int, tower_layers: int, seed: int) -> None:
    """Layers of LLaVA-1.5-7B, and its processor with a tokenizer of single bytes."""
    words = byte_tokenizer()
    config = tf.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "image_size": 336,
            "num_hidden_layers": tower_layers, "num_attention_heads": 16, "patch_size": 14, "projection_dim": 768,
        },
        text_config={
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
            "num_hidden_layers": layers, "vocab_size": 320, "max_position_embeddings": 4096,
        },
        image_token_index=words.convert_tokens_to_ids("<|image_pad|>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    tf.LlavaProcessor(
        tf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), words,
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<|image_pad|>", chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip


# what writes a model, its layers of decoder and tower, and its picture
MODELS: dict[str, tuple[Callable[[Path, int, int, int], None], int, int, str]] = {
    "llava": (write_llava, 1, 3, "640x480"),
    "qwen": (write_qwen, 2, 2, "672x672"),
}


@torch.no_grad()
def measured(folder: Path, picture: str, cells: list[Cell], turns: int) -> dict[str, dict[str, float]]:
    """Median seconds of tower (with projector) and prefill of each cell, behind a turn that is not counted."""
    loaded = load_model(str(folder), "cpu", "float32")
    question = Question("q", "t", "i", QUESTION, "")
    row = make_row(loaded.processor, loaded.model.config, blank(parse_size(picture)), question)
    prompt = TimedPrompt(loaded.model, row, clock=work_clock(torch.device("cpu")))
    found: dict[str, dict[str, list[float]]] = {c.spec: {"tower": [], "prefill": []} for c in cells}
    for turn in range(turns + 1):
        for cell in random.Random(turn).sample(cells, len(cells)):
            with pruned(loaded.model, cell) as model:
                taken = {
                    "tower": prompt.clock.measure(lambda: encode(model, row)),
                    "prefill": prompt.clock.measure(lambda: prompt.forward(model)),
                }
            for part, (seconds, _) in taken.items() if turn else ():
                found[cell.spec][part].append(seconds)
    return {spec: {part: statistics.median(s) for part, s in parts.items()} for spec, parts in found.items()}


def compare(name: str, turns: int, pruner: str) -> None:
    """Print a row for each figure."""
    write, layers, tower_layers, picture = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), layers, tower_layers, 0)
        keeps = ",".join(map(str, KEEPS))
        plan = make_plan(PlanOptions(folder, image=picture, keep=keeps, batch="1", gpu="cpu", pruner=pruner))
        cells = {keep: make_cell(pruner, keep) for keep in KEEPS}
        times = measured(Path(folder), picture, [UNPRUNED, *cells.values()], turns)
    print(f"{name}, {plan.picture.tokens} visual tokens; {plan.reckoning.device.assumed}")
    stock, plain = times[UNPRUNED.spec], plan.cells[0].plain
    show("tower", plain.tower + plain.projector, stock["tower"])
    show("prefill", plain.prefill, stock["prefill"])
    for made in plan.cells:
        own = times[cells[float(made.setting.keep or 0)].spec]
        show(f"prefill, keep {made.setting.keep}", made.times.prefill, own["prefill"])
        show(f"speed-up, keep {made.setting.keep}", made.speed_up, stock["prefill"] / own["prefill"])


def show(what: str, predicted: float, clocked: float) -> None:
    """One figure."""
    off = "" if abs(predicted / clocked - 1) <= NEAR else f"  NOT within {NEAR:.0%}"
    print(f"  {what:24} predicted {predicted:8.3f}  measured {clocked:8.3f}  ratio {predicted / clocked:.2f}{off}")


def main() -> None:
    """Read the options and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), choices=[*MODELS, []])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pruner", default="uniform", help="at the input stage")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        compare(name, options.turns, options.pruner)


if __name__ == "__main__":
    main()
