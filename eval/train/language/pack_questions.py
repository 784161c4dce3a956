"""Many questions behind one image: token ids, positions and the mask that keeps them apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vtc.eval.train.scenes.palette import NUM_PATCHES
from vtc.eval.train.scenes.questions import Question
from vtc.eval.train.scenes.vocabulary import ASSISTANT_ID, BOS_ID, EOS_ID, PAD_ID, USER_ID, build_tokenizer

NO_TARGET = -100
_FAR = -1e4


@dataclass(frozen=True)
class Wording:
    """How a model is asked.

    Attributes
    ----------
    prefix : tuple of int
        What stands before the image tokens.
    patches : int
        Number of image tokens; a question starts at the position after the last one, whichever of them are kept.
    prompt, answer : callable
        A question's token ids up to where the answer begins; an answer's, the end token included.
    pad : int
        What fills up rows.
    """

    prefix: tuple[int, ...]
    patches: int
    prompt: Callable[[str], Sequence[int]]
    answer: Callable[[str], Sequence[int]]
    pad: int

    @property
    def text_position(self) -> int:
        """Where the text behind the image begins."""
        return len(self.prefix) + self.patches


@dataclass(frozen=True)
class PackedQuestions:
    """The text of a batch, one row per image.

    Attributes
    ----------
    tokens, positions : Tensor
        [batch, length]; every question starts at the position after the last image token.
    bias : Tensor
        [batch, length, length]; 0 where a token may attend to a token of its own question.
    targets : Tensor
        [batch, length]; the next answer token, or -100.
    spans : list of list of (int, int)
        Per image and question, the range of ``targets`` that holds its answer and the end token.
    """

    tokens: Tensor
    positions: Tensor
    bias: Tensor
    targets: Tensor
    spans: list[list[tuple[int, int]]]


@functools.lru_cache(maxsize=8192)
def text_ids(text: str) -> tuple[int, ...]:
    """Return the token ids of a text without ``<s>``."""
    return tuple(_tokenizer().encode(text, add_special_tokens=False).ids)


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return build_tokenizer()


BUNDLED = Wording(
    prefix=(BOS_ID, USER_ID),
    patches=NUM_PATCHES,
    prompt=lambda text: (*text_ids(text), ASSISTANT_ID),
    answer=lambda text: (*text_ids(text), EOS_ID),
    pad=PAD_ID,
)
"""``<s> USER: <image> question ASSISTANT: answer </s>``"""


def pack(questions: Sequence[Sequence[Question]], wording: Wording = BUNDLED) -> PackedQuestions:
    """Pack the questions of several images.

    A question attends to the image and to itself only, so each is answered exactly as if it had
    been asked alone.

    Parameters
    ----------
    questions : sequence of sequence of Question
        One list per image.
    wording : Wording
        How the model is asked.
    """
    rows = [_row(asked, wording) for asked in questions]
    length = max(len(row[0]) for row in rows)
    tokens = torch.full((len(rows), length), wording.pad)
    positions = torch.full((len(rows), length), wording.text_position)
    owner = -torch.ones(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), NO_TARGET)
    for index, (ids, places, owners, wanted, _) in enumerate(rows):
        used = len(ids)
        tokens[index, :used] = torch.tensor(ids)
        positions[index, :used] = torch.tensor(places)
        owner[index, :used] = torch.tensor(owners)
        targets[index, :used] = torch.tensor(wanted)
    same = owner[:, :, None] == owner[:, None, :]
    allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.where(allowed, 0.0, _FAR)
    return PackedQuestions(tokens, positions, bias, targets, [row[4] for row in rows])


def _row(
    asked: Sequence[Question], wording: Wording
) -> tuple[list[int], list[int], list[int], list[int], list[tuple[int, int]]]:
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    targets: list[int] = []
    spans: list[tuple[int, int]] = []
    for number, question in enumerate(asked):
        prompt = [*wording.prompt(question.text)]
        answer = [*wording.answer(question.answer)]
        text = prompt + answer[:-1]
        start = len(tokens) + len(prompt) - 1
        tokens += text
        positions += range(wording.text_position, wording.text_position + len(text))
        owners += [number] * len(text)
        targets += [NO_TARGET] * (len(prompt) - 1) + answer
        spans.append((start, start + len(answer)))
    return tokens, positions, owners, targets, spans
