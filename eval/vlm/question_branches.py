"""All questions about an image in one row behind its prefix, each a branch that sees the prefix and itself.

What a causal layer makes of a question's columns depends on what they attend to and on their positions, not on what
stands beside them (the tree attention of SpecInfer, arXiv 2305.09781). So the keys and values of a prefix are held once
for all its questions, those of tokens that neighbouring questions begin with once for these, and a decoding step has a
column for each question that is not answered yet.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vtc.models.layout.model_parts import Parts
from vtc.models.stock.attention_api import additive, attention_kind
from vtc.models.stock.call_arguments import call_of, given
from vtc.models.stock.transformers_api import DynamicLayer, new_cache

NOBODY, EVERYBODY = -1, 1 << 30  # below and above the branches 0, 1, ...


class _Room(DynamicLayer):
    """A cache layer with room for columns to come, so that few of them make it copy what it holds."""

    def __init__(self, layer: Any, rows: Tensor, room: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.count = layer.keys.shape[2]
        self.room = [self._empty(x, len(rows), self.count + room) for x in (layer.keys, layer.values)]
        for held, x in zip(self.room, (layer.keys, layer.values), strict=True):
            torch.index_select(x, 0, rows, out=held[:, :, : self.count])
        self.keys, self.values = (held[:, :, : self.count] for held in self.room)

    @staticmethod
    def _empty(like: Tensor, rows: int, columns: int) -> Tensor:
        return like.new_empty(rows, like.shape[1], columns, like.shape[3])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new columns."""
        start, self.count = self.count, self.count + key_states.shape[2]
        if self.count > self.room[0].shape[2]:
            held, self.room = self.room, [self._empty(x, len(x), self.count + x.shape[2] // 2) for x in self.room]
            for room, before in zip(self.room, held, strict=True):
                room[:, :, :start] = before[:, :, :start]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start : self.count] = new
        self.keys, self.values = (room[:, :, : self.count] for room in self.room)
        return self.keys, self.values


class _Columns:
    """Whose the columns are that some layers hold, and who sees them.

    Attributes
    ----------
    owners : Tensor
        `[B, K, 2]`: the first and the last of the branches that each belongs to, which see it; none where the first one
        comes behind the last.
    """

    def __init__(self, layer: Any, rows: Tensor):
        self.owners = torch.tensor([NOBODY, EVERYBODY], device=rows.device).repeat(len(rows), layer.keys.shape[2], 1)
        if getattr(layer, "slots", None) is not None:  # of a vtc cache; the last token of a prefix may have gone
            self.owners[layer.slots.to(rows.device)[rows] < 0, 0] = EVERYBODY

    def push(self, new: Tensor) -> Tensor:
        """Note the owners of new columns, `[B, q, 2]`; gives what these see, `[B, 1, q, K]`."""
        before, q = self.owners.shape[1], new.shape[1]
        self.owners = torch.cat([self.owners, new], 1)
        first, last = self.owners[:, None].unbind(-1)
        # what comes before a column and belongs to one of its branches belongs to all of them
        seen = (first <= new[:, :, :1]) & (new[:, :, :1] <= last)
        seen[:, :, before:] &= torch.ones(q, q, dtype=torch.bool, device=new.device).tril()
        return seen[:, None]


class Branches:
    """Rows of branches behind prefixes, run by an unwrapped model.

    Parameters
    ----------
    parts : Parts
        Of the model, whose layers are plain causal ones and have a cache layer each.
    cache : Cache
        Of the prefixes, a row each; layers may hold different tokens. It stays as it is.
    rows : sequence of int
        Which of the prefixes, in this order.
    start : int
        Tokens of each prefix before anything went: the position of what comes next.
    room : int
        Columns that a row will likely get.
    """

    def __init__(self, parts: Parts, cache: Any, rows: Sequence[int], start: int, room: int):
        self.parts, self.start = parts, start
        self.cache = new_cache(parts.lm.config)
        index = [torch.tensor(rows, device=layer.keys.device) for layer in cache.layers]
        pairs = list(zip(cache.layers, index, strict=True))
        self.cache.layers = [_Room(layer, i, room) for layer, i in pairs]
        # layers of one history hold the same tokens
        self.kinds = [getattr(layer, "history", ()) for layer in cache.layers]
        self.columns = {kind: _Columns(*pair) for kind, pair in zip(self.kinds, pairs, strict=True)}

    @torch.no_grad()
    def logits(self, ids: Tensor, owners: Tensor, places: Tensor, ends: Tensor) -> Tensor:
        """Run new columns.

        Parameters
        ----------
        ids, places : Tensor
            `[B, q]`: tokens, and how many tokens of the same branch came before each.
        owners : Tensor
            `[B, q, 2]`: the first and the last branch whose they are; -1 is padding.
        ends : Tensor
            `[B, n]`: the columns whose logits are wanted.

        Returns
        -------
        Tensor
            `[B, n, V]` float32.
        """
        model, lm = self.parts.model, self.parts.lm
        device = next(model.parameters()).device
        masks = {kind: columns.push(owners.to(columns.owners.device)) for kind, columns in self.columns.items()}
        if attention_kind(lm.config) == "eager":
            masks = {kind: additive(mask, lm.dtype) for kind, mask in masks.items()}
        inputs = {
            "ids": ids.to(device),
            "mask": masks[self.kinds[0]],
            "positions": places.to(device) + self.start,
            "cache": self.cache,
            "use cache": True,
        }
        with self._own_masks(masks), self._head_on(ends):
            return model(**given(model, **inputs)).logits.float()

    def _head_on(self, ends: Tensor) -> Any:
        """Let the head see the columns `ends` only: a vocabulary of logits for each other one would be much."""

        def hook(head: nn.Module, args: tuple[Any, ...]) -> Any:
            hidden = args[0]
            return hidden.gather(1, ends.to(hidden.device)[:, :, None].expand(-1, -1, hidden.shape[-1])), *args[1:]

        return self.parts.model.get_output_embeddings().register_forward_pre_hook(hook)

    @contextmanager
    def _own_masks(self, masks: dict[Any, Tensor]) -> Iterator[None]:
        """Give each layer the mask over what it holds, where that is not the same for all."""

        def put(i: int) -> Any:
            def hook(layer: nn.Module, args: Any, kwargs: Any) -> Any:
                call = call_of(layer, args, kwargs)
                call.put("mask", masks[self.kinds[i]])
                return call.args, call.kwargs

            return hook

        with ExitStack() as stack:
            for i, layer in enumerate(self.parts.layers) if len(masks) > 1 else ():
                stack.enter_context(layer.register_forward_pre_hook(put(i), with_kwargs=True))
            yield


def begun_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two questions begin with in common."""
    return sum(1 for _ in itertools.takewhile(bool, map(operator.eq, one, other)))


def _in_one_row(questions: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """The ids, owners and places of a row's columns, as for ``Branches.logits``, and where each question ends."""
    ids, owners, places, ends = list[int](), list[list[int]](), list[int](), list[int]()
    path, before = list[int](), questions[0][:0]
    for branch, question in enumerate(questions):
        same = begun_alike(before, question)
        for column in path[:same]:
            owners[column][1] = branch
        path = [*path[:same], *range(len(ids), len(ids) + len(question) - same)]
        ids += question[same:]
        owners += [[branch, branch] for _ in question[same:]]
        places += range(same, len(question))
        ends.append(path[-1])
        before = question
    return tuple(map(torch.tensor, (ids, owners, places, ends)))


def first_logits(branches: Branches, questions: Sequence[Sequence[Sequence[int]]], fill: int) -> list[Tensor]:
    """Logits `[n, V]` behind the `n` questions of each row, given as their tokens behind the prefix."""
    rows = zip(*map(_in_one_row, questions), strict=True)
    filled = [
        pad_sequence(list(row), batch_first=True, padding_value=value)
        for row, value in zip(rows, (fill, NOBODY, 0, 0), strict=True)
    ]
    found = branches.logits(*filled)
    return [logits[: len(row)] for logits, row in zip(found, questions, strict=True)]


def greedy(
    branches: Branches, questions: Sequence[Sequence[Sequence[int]]], limit: int, stops: Sequence[int], fill: int
) -> list[list[list[int]]]:
    """Greedy answers, as ``generate`` gives them.

    Parameters
    ----------
    questions : sequence of sequences
        As for ``first_logits``.
    limit : int
        Longest answer, in tokens.
    stops : sequence of int
        Tokens that end one, which they belong to.
    fill : int
        The token that fills rows up.

    Returns
    -------
    list of lists
        The tokens of each question's answer.
    """
    answers: list[list[list[int]]] = [[[] for _ in row] for row in questions]
    waiting = [list(range(len(row))) for row in questions]
    tokens = [logits.argmax(-1).tolist() for logits in first_logits(branches, questions, fill)]
    while True:
        for row, found, new in zip(answers, waiting, tokens, strict=True):
            for g, token in zip(found, new, strict=False):  # behind the last one is padding
                row[g].append(token)
        waiting = [
            [g for g in found if row[g][-1] not in stops and len(row[g]) < limit]
            for row, found in zip(answers, waiting, strict=True)
        ]
        width = max(map(len, waiting))
        if width == 0:
            return answers

        def step(of: Callable[[int, int], int], value: int) -> Tensor:
            return torch.tensor(
                [[of(i, g) for g in row] + [value] * (width - len(row)) for i, row in enumerate(waiting)]  # noqa: B023
            )

        tokens = branches.logits(
            step(lambda i, g: answers[i][g][-1], fill),
            step(lambda i, g: g, NOBODY)[:, :, None].expand(-1, -1, 2),
            step(lambda i, g: len(questions[i][g]) + len(answers[i][g]) - 1, 0),
            torch.arange(width).expand(len(waiting), -1),
        ).argmax(-1).tolist()  # fmt: skip
