"""The model card: ``python -m vtc.eval.train.model_card --figures FILE --model DIR``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtc.eval.train.basics.recipe import Recipe

from .bundled_model_figures import Row, as_markdown

_HEADER = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# vtc tiny LLaVA

A very small but genuine `LlavaForConditionalGeneration`, trained from scratch on synthetic scenes,
to try and compare visual-token pruning methods in seconds on a CPU. It knows {words} words and
answers questions about dense pictures of coloured shapes; it is of no use for anything else.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
```

Prompt: `USER: <image> what color is k? ASSISTANT:` (the chat template writes it).

## Model

* Vision: CLIP ViT, 336 px, patches of 14 px, class token, 576 visual tokens, width {vision_width},
  {vision_layers} layers; features of the penultimate layer, as in LLaVA-1.5.
* Projector: two-layer MLP. Language model: Llama, width {width}, {layers} layers, {heads} heads.
* `../clip` is the CLIP model that the tower comes from, with its text side (for methods that rank
  tokens by their relevance to the question).
* Weights in bfloat16.
"""

_DATA = """
## Data

* Synthetic scenes (`vtc.eval.train.scenes`): shapes with a letter each, plates with a two-digit number,
  rings, hearts and moons, on cluttered textures; JPEG. Glyphs are drawn within 2 px of a patch
  centre; this makes reading learnable for so small a tower.
* `easy-vqa` 1.0 (MIT): its training split in training, its test split in the evaluation set.
* Evaluation scenes hold 22 lettered shapes, 8 plates, and rings, hearts and moons, one or four of
  each: questions can ask about 33 to 42 entities, more than the 29 tokens that 5% of 576 leaves.
  Training scenes hold up to 20, 6 and 12 of them. Training and evaluation scenes
  come from differently named random sources, and a test compares their fingerprints.

## Recipe

One seed ({seed}), one command, resumable: `python -m vtc.eval.train --out DIR`.

1. Vision, {vision_steps} steps of {vision_batch} images: linear heads on the patch features (colour,
   shape, letter, digits, position, coarse pixels) and contrastive losses with the text side.
2. Alignment, {align_steps} steps on the projector alone: a projected token should be close to the
   words for what its patch shows and carry its position.
3. Language, {steps} steps of {batch} images with up to 49 questions each; tower frozen; Muon for the
   matrices of the layers, AdamW for the rest; the alignment loss goes on with a small weight.
   Scenes get denser over the first 700 steps; from step 746 to 1150 every second step is sparse
   again. From step {later} on questions get shorter wordings and number reading by the left digit
   is asked too. The attention is *initialised* so that words look up image tokens like them and read
   the words just before them.

Fairness to pruning methods: no training step picks tokens by what they show. In two thirds of the
language steps all 576 tokens are seen; in the others a part of random size (a third to five
sixths), chosen uniformly at random and at original positions. The per-patch labels of stages 1
and 2 name what a patch shows; no loss separates foreground from background. Methods that move
tokens to new positions see a model that never trained on moved tokens.

{history}
"""

_RESULTS = """
## Accuracy

Accuracy (%) on the bundled evaluation set (version {version}); `mean` is over the tasks; tokens keep
their original positions. `prior`: the most frequent answer to the same question, leave-one-out.
`blind`: the model without any visual token. `cls`: attention of the class token in the feature
layer. `farthest`: farthest-point sampling of projected tokens (cosine). Teacher-forced exact match,
which equals greedy decoding. 406 to 560 questions per task: one standard error is at most 2.5 points
per task and about 0.6 on the mean. One training seed; one draw for `random`.

{table}
## Limits

* One scene family, one question grammar, a closed vocabulary; nothing transfers to real images.
* Number reading asks for the plate whose left digit is given. By colour ("what number is on red?")
  it was not learnt, though training asks it, so the evaluation set does not.
* Counting tells one from four of a kind, or which of two kinds is the more frequent; not more.
* The tower reads each digit of a plate only on its own patch (about 60% per patch and digit).
* Nearly every question is answered by one look-up. Which of two named objects lies further left was
  never learnt in trials and is left out: the `spatial` task asks for the outermost plate instead.
* easy-vqa shows one shape on a plain ground; it hardly reacts to pruning.
* One run, one seed. Differences of about two points on a task are noise.
* The tower has been trained with per-patch labels, so its tokens are cleaner than those of a
  contrastive tower in the wild; ranks of methods need not carry over to large models.

Licence: Apache-2.0. The easy-vqa images and questions are MIT, by Victor Zhou.
"""


def write_card(rows: Sequence[Row], version: str, history: str, words: int, target: Path) -> None:
    """Write the card with the measured figures.

    Parameters
    ----------
    rows : sequence of dict
        From :func:`vtc.eval.train.bundled_model_figures.evaluate`.
    version : str
        Version of the evaluation set.
    history : str
        A paragraph on how this checkpoint came about.
    words : int
        Size of the vocabulary.
    target : Path
        The README to write.
    """
    recipe = Recipe()
    vision, language = recipe.vision, recipe.language
    values: Mapping[str, object] = {
        "words": words,
        "seed": recipe.seed,
        "vision_width": vision.width,
        "vision_layers": vision.layers,
        "vision_steps": vision.steps,
        "vision_batch": vision.images_per_rank * recipe.ranks,
        "align_steps": recipe.align.steps,
        "steps": language.steps,
        "batch": language.images_per_rank * recipe.ranks,
        "width": language.width,
        "layers": language.layers,
        "heads": language.heads,
        "later": language.later_questions_from,
        "history": history.strip(),
        "version": version,
        "table": as_markdown(rows),
    }
    target.write_text((_HEADER + _DATA + _RESULTS).format(**values))


def main() -> None:
    """Parse the command line and write the card."""
    from vtc.eval.train.scenes.vocabulary import build_tokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, required=True, help="JSON of selectors_eval")
    parser.add_argument("--record", type=Path, required=True, help="dataset.json of the evaluation set")
    parser.add_argument("--history", type=Path, required=True, help="text file on how the run came about")
    parser.add_argument("--model", type=Path, required=True, help="folder that receives README.md")
    options = parser.parse_args()
    rows = json.loads(options.figures.read_text())
    version = json.loads(options.record.read_text())["version"]
    size = build_tokenizer().get_vocab_size()
    write_card(rows, version, options.history.read_text(), size, options.model / "README.md")


if __name__ == "__main__":
    main()
