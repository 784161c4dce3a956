"""A loss that has some heads look at what is asked about: from a question's letter at its patches, from the end at it.

Looking something up takes two heads in a row, and neither pays before the other is there; of so few questions, answers
alone do not teach it. Nothing of this is left in the trained model but its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.eval.train.language.pack_questions import PackedQuestions, Wording
from vtc.eval.train.scenes.palette import LETTERS
from vtc.eval.train.scenes.questions import Question

FIND, CARRY = 4 / 15, 6 / 15
"""How deep the two layers lie: 8 and 12 of SmolLM2's 30."""
BY_LETTER = ("color", "shape", "quadrant")


class WhereToLook:
    """Gathers the loss while the layers run.

    Parameters
    ----------
    packed, asked, wording
        The questions of a step, and how they are asked.
    letters : Tensor
        `[pictures, kept]` which of ``LETTERS`` a visual token shows; -1: none.
    config
        The language model's; one of each group of heads that share keys learns.
    """

    def __init__(
        self,
        packed: PackedQuestions,
        asked: Sequence[Sequence[Question]],
        wording: Wording,
        letters: Tensor,
        config: Any,
    ) -> None:
        self._find, self._carry = (round(share * config.num_hidden_layers) for share in (FIND, CARRY))
        self._heads = list(
            range(0, config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads)
        )
        self._before = len(wording.prefix)
        self._text = self._before + letters.shape[1]
        rows = zip(packed.spans, asked, strict=True)
        self._places = [_places(spans, questions, wording) for spans, questions in rows]
        self._letters = letters
        self._found: list[Tensor] = []
        self.states: Tensor | None = None

    def see(self, layer: int, row: int, weights: Tensor) -> None:
        """Look at a layer's attention of a picture's text: `[heads, text, before + kept + text]`."""
        if layer not in (self._find, self._carry) or not self._places[row]:
            return
        keys, answers, wanted = torch.tensor(self._places[row]).T
        some = weights[self._heads].float()
        if layer == self._carry:
            seen = some[:, answers, self._text + keys]
        else:
            here = self._letters[row] == wanted[:, None]
            some, here = some[:, keys][:, here.any(1)], here[here.any(1)]
            seen = (some[..., self._before : self._text] * here).sum(-1)
        self._found.append(-(seen + 1e-4).log().flatten())

    def passed(self, layer: int, states: Tensor) -> None:
        """Keep what stands behind the second of these layers: from there on an answer could be told."""
        if layer == self._carry:
            self.states = states

    def loss(self) -> Tensor:
        """The mean of minus the log of what these heads give to where they should look."""
        found = [part for part in self._found if len(part)]
        return torch.cat(found).mean() if found else torch.zeros(())


def _places(
    spans: Sequence[tuple[int, int]], questions: Sequence[Question], wording: Wording
) -> list[tuple[int, int, int]]:
    """Of each question about a letter: where in the text it stands, where the answer begins, and which letter."""
    found = []
    for (start, _), question in zip(spans, questions, strict=True):
        if question.task in BY_LETTER:
            text, letter = question.text[:-2], question.text[-2]  # they end in "y?"
            prompt, other = (wording.prompt(f"{text}{name}?") for name in (letter, "b" if letter == "c" else "c"))
            place = next(i for i, (one, two) in enumerate(zip(prompt, other, strict=True)) if one != two)
            found.append((start - len(prompt) + 1 + place, start, LETTERS.index(letter)))
    return found
