"""Which questions can be answered as branches behind their images' prefixes, and their answers (``question_branches``).

Nothing is taken on trust: once a sweep (once more where layers hold different tokens) the logits of two branches are
held against those of ordinary turns.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.model_parts import locate
from vtc.models.stock.attention_api import attention_kind
from vtc.models.stock.transformers_api import own_generate, plain_cache
from vtc.pipeline_text import parse
from vtc.pruners.base import Loan

from .prompts import Row, pad_id
from .pruning_settings import Cell
from .question_branches import Branches, begun_alike, first_logits, greedy

COPY = 1 / 8  # what it takes to copy a column's keys and values, over running it through the layers
AHEAD = 4  # tokens of an answer that there is room for from the start
KINDS = ("sdpa", "eager")  # implementations that take any mask
# of a generation config: what does not change greedy answers of a given length
HARMLESS = {
    "bos_token_id", "cache_config", "cache_implementation", "do_sample", "eos_token_id", "epsilon_cutoff", "eta_cutoff",
    "max_length", "max_new_tokens", "min_p", "output_attentions", "output_hidden_states", "output_logits",
    "output_scores", "pad_token_id", "return_dict_in_generate", "temperature", "top_h", "top_k", "top_p",
    "transformers_version", "typical_p", "use_cache", "_from_model_config",
}  # fmt: skip
NEUTRAL = (None, 0, 1, False)  # values of the others that do nothing

_Part = tuple[int, list[Row]]  # an image's number, and questions about it that share a row


class Branching:
    """Of one model, and one sweep.

    Parameters
    ----------
    model : nn.Module
        The model under test.
    processor : Any
        Its processor.
    most : int
        Unpruned prompts that a batch may have: as many columns are held at once.

    Attributes
    ----------
    possible : bool
        Whether nothing is known that speaks against it.
    proved : dict
        Whether the logits of branches were those of ordinary turns, by whether layers hold different tokens.
    """

    def __init__(self, model: nn.Module, processor: Any, most: int):
        self.fill, self.most, self.processor = pad_id(processor), most, processor
        self.parts = locate(model)
        self.stops = _stops(model)
        self.possible = (
            attention_kind(self.parts.lm.config) in KINDS and not own_generate(self.parts.model) and _greedy(model)
        )
        self.proved: dict[bool, bool] = {}

    def under(self, cell: Cell) -> Branching | None:
        """This, or None for a cell whose tokens go round layers and come back: what follows a prompt may, too."""
        if cell.stock:
            return self
        stops = (stop for pruner in parse(cell.spec) for stop in pruner.stops(len(self.parts.layers)))
        return None if any(isinstance(stop, Loan) for stop in stops) else self

    def serves(self, cache: Any, rows: Sequence[Row], turn: Callable[[Row], Tensor]) -> bool:
        """Whether questions about the images of `cache` can be branches.

        Parameters
        ----------
        cache : Cache
            Of the images' prefixes, a row each.
        rows : sequence of Row
            Questions about the first one.
        turn : callable
            Gives the logits `[V]` behind one of them in an ordinary turn behind the first image.
        """
        if not (self.possible and plain_cache(cache) and len(cache.layers) == len(self.parts.layers)):
            return False
        if any(getattr(layer, "keys", None) is None for layer in cache.layers):  # it reads another layer's
            return False
        if any(set(row.tokens) - {"attention_mask"} for row in rows):
            return False
        differ = len({layer.keys.shape[2] for layer in cache.layers}) > 1
        if differ not in self.proved:
            self.proved[differ] = self._proves(cache, rows, turn)
        return self.proved[differ]

    def _proves(self, cache: Any, rows: Sequence[Row], turn: Callable[[Row], Tensor]) -> bool:
        shortest, longest = min(rows, key=length), max(rows, key=length)
        pair = [longest.tail, shortest.tail]
        wanted = torch.stack([turn(longest), turn(shortest)]).float()
        # such models say that they can't in many ways
        with contextlib.suppress(ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError,
                                 TypeError, ValueError):  # fmt: skip
            branches = Branches(self.parts, cache, [0], shortest.prefix, columns(pair))
            found = first_logits(branches, [pair], self.fill)[0]
            tolerance = torch.finfo(self.parts.lm.dtype).eps ** 0.5 * float(wanted.abs().max())
            return found.shape == wanted.shape and bool((found - wanted).abs().max() <= tolerance)
        return False

    def answer(self, cache: Any, groups: Sequence[Sequence[Row]], limit: int) -> Iterator[list[tuple[int, Row, str]]]:
        """Greedy answers.

        Parameters
        ----------
        cache : Cache
            For which ``serves`` said so.
        groups : sequence of sequences of Row
            The questions about each image.
        limit : int
            Longest answer, in tokens.

        Yields
        ------
        list of (int, Row, str)
            The image's place in `groups`, a question and its answer: several about each image.
        """
        parts = _even_rows(groups, limit, cache.layers[0].keys.shape[2])
        for turn in self._turns(parts, limit, cache):
            questions = [[row.tail for row in part] for _, part in turn]
            room = max(columns(part) + AHEAD * len(part) for part in questions)
            branches = Branches(self.parts, cache, [i for i, _ in turn], groups[0][0].prefix, room)
            found = greedy(branches, questions, limit, self.stops, self.fill)
            texts = self.processor.batch_decode([tokens for part in found for tokens in part], skip_special_tokens=True)
            asked = [(i, row) for i, part in turn for row in part]
            yield [(i, row, text.strip()) for (i, row), text in zip(asked, texts, strict=True)]

    def _turns(self, parts: Sequence[_Part], limit: int, cache: Any) -> Iterator[list[_Part]]:
        """Rows that are run at once: they hold no more columns than `most` unpruned prefixes."""
        held = sum(layer.keys.shape[2] for layer in cache.layers) / len(cache.layers)
        turn, widest = list[_Part](), 0.0
        for i, part in parts:
            width = held + columns([row.tail for row in part]) + limit * len(part)
            widest = max(widest, width)
            if turn and (len(turn) + 1) * widest > self.most * part[0].prefix:
                yield turn
                turn, widest = [], width
            turn.append((i, part))
        yield turn


def _even_rows(groups: Sequence[Sequence[Row]], limit: int, held: int) -> list[_Part]:
    """The questions about each image in rows that need little padding, an image's in several where that is less work.

    A row more is another copy of the `held` columns of its image, which is about as much as running few of them.
    """
    ordered = [sorted(group, key=lambda row: row.tail) for group in groups]  # neighbours begin alike
    widest = max(columns([row.tail for row in group]) for group in ordered)
    best: tuple[float, list[_Part]] = (math.inf, [])
    for parts in range(1, 5):
        found = [(i, part) for i, group in enumerate(ordered) for part in _filled(group, -(-widest // parts), limit)]
        work = len(found) * (max(columns([row.tail for row in part]) for _, part in found) + COPY * held)
        if work < best[0]:
            best = work, found
    return best[1]


def _filled(group: Sequence[Row], width: int, limit: int) -> list[list[Row]]:
    """Questions about an image in rows of up to `width` columns, which with their answers are no more than it has.

    One that is longer still has a row of its own.
    """
    rows: list[list[Row]] = []
    left: list[list[int]] = []
    for row in group:
        for part, room in zip(rows, left, strict=True):
            need = length(row) - begun_alike(part[-1].tail, row.tail)
            if room[0] >= need and room[1] >= need + limit:
                break
        else:
            part, room, need = [], [width, row.prefix], length(row)
            rows.append(part)
            left.append(room)
        part.append(row)
        room[0] -= need
        room[1] -= need + limit
    return rows


def columns(questions: Sequence[Sequence[int]]) -> int:
    """How many columns a row of questions has, without their answers."""
    alike = sum(begun_alike(one, other) for one, other in itertools.pairwise(questions))
    return sum(map(len, questions)) - alike


def length(row: Row) -> int:
    """Number of a question's tokens behind the last visual one."""
    return len(row.ids) - row.prefix


def _greedy(model: Any) -> bool:
    """Whether a model's generation config leaves greedy answers as they are."""
    told = model.generation_config.to_diff_dict()
    return all(name in HARMLESS or (not isinstance(v, list | dict) and v in NEUTRAL) for name, v in told.items())


def _stops(model: Any) -> list[int]:
    """The tokens that end an answer."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)
