"""Two turns on one cache: prompt, reply, a second turn with or without pictures, and a few tokens more."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from zoo import Prompt, free_prompt
from zoo.models import DEPTH
from zoo.tokens import pad, words

from .case import Case, Skip, positions_of
from .modes import pixels_of
from .oracle import Seen, asks, cast, compacted, joined, last_columns, logits_of, merged, who_answers

REPLY, MORE = 2, 2


def tail_of(case: Case) -> Prompt:
    """The second turn of each row; every other one a piece shorter, so that there is padding within."""
    plan = [case.draw.tail[b % 2 if len(case.draw.tail) > 1 else 0 :] for b in range(len(case.valid))]
    return free_prompt(case.family, plan, case.generator, fresh=False)


def dialogue(case: Case, tail: Prompt) -> dict[str, Any]:
    """All of it as one input."""
    rows, second = len(case.valid), pad(tail.rows)
    reply, more = (torch.tensor([words(n, case.generator) for _ in range(rows)]) for n in (REPLY, MORE))
    parts = [(case.inputs["input_ids"], case.inputs["attention_mask"]), (reply, torch.ones_like(reply))]
    parts += [(second["input_ids"], second["attention_mask"]), (more, torch.ones_like(more))]
    media = [[*a, *b] for a, b in zip(case.prompt.media, tail.media, strict=True)]
    whole = {
        "input_ids": torch.cat([ids for ids, _ in parts], 1),
        "attention_mask": torch.cat([mask for _, mask in parts], 1),
        **case.family.collate(media),
    }
    return cast(case.with_types(whole), case.dtype)


def turns(case: Case) -> None:
    """Logits of every forward of a dialogue."""
    tail = tail_of(case)
    whole = dialogue(case, tail)
    positions = positions_of(case.stock, whole)
    width, total = case.width, whole["input_ids"].shape[1]
    start = width + REPLY
    edges = [0, width, *range(width + 1, start + 1), total - MORE, *range(total - MORE + 1, total + 1)]
    media = {0: pixels_of(case.inputs), start: pixels_of(cast(tail.inputs, case.dtype))}
    with torch.no_grad():
        case.stock(**whole, position_ids=positions, use_cache=False)  # whether it can at all
    case.compress()
    pictures = [any(map(len, prompt.media)) for prompt in (case.prompt, tail)]
    tower = any(stop.stage == "vision" for p in case.model.vtc.pipeline for stop in p.stops(DEPTH))
    if all(pictures) and (tower or "batch_num_images" in whole):
        raise Skip("features of two turns can't be put together, or the processor would change the first turn's")
    found: list[Tensor] = []
    seen: dict[int, Seen] = {}
    cache = None
    with case.watched() as look:
        for a, b in pairwise(edges):
            given = {k: v[:, a:b] for k, v in whole.items() if k in ("input_ids", "mm_token_type_ids")}
            if "token_type_ids" in whole:  # Gemma3 wants the whole dialogue's
                given["token_type_ids"] = whole["token_type_ids"][:, (0 if b - a > 1 else a) : b]
            given |= {"attention_mask": whole["attention_mask"][:, :b], "position_ids": positions[..., a:b]}
            out = case.model(**given, **media.get(a, {}), past_key_values=cache, use_cache=True)
            cache, found, now = out.past_key_values, [*found, out.logits], look()
            if a in media:  # a turn of text alone has no report of its own
                seen[a] = now if pictures[len(seen)] else Seen(SimpleNamespace(spans=[], steps=[]))
    compare(case, whole, positions, start, seen, torch.cat(found, 1))


def compare(
    case: Case, whole: dict[str, Any], positions: Tensor, start: int, seen: dict[int, Seen], found: Tensor
) -> None:
    """Hold the logits of all forwards against one reference over the dialogue."""
    valid = whole["attention_mask"].bool()
    first, second = seen[0], seen[start]
    width, end = case.width, valid.shape[1] - MORE
    joint, features = joined(first.report, second.report, start), {**first.features, **second.features}
    kept, positions = valid.clone(), positions.clone()
    shift = torch.zeros(len(valid), dtype=torch.long)
    replies: list[tuple[int, Tensor, Tensor]] = []  # of each turn: the row, its last column, and the one that answers
    for a, b, after, part in ((0, width, start, first), (start, end, None, second)):
        own = valid[:, a:b]
        who = who_answers(part.report, own, case.draw.positions, DEPTH)
        kept[:, a:b] = who.kept
        last = last_columns(own)
        replies += [(row, a + last[row], a + who.answer[row]) for row in (who.answer >= 0).nonzero()[:, 0].tolist()]
        if case.draw.positions == "compact":
            positions[:, a:b], shift = compacted(positions[:, a:b], part.report, own, shift)
            positions[:, b:after] -= shift[:, None]
    vectors = both(case, first, second, valid, start, end)

    def truth(stock: nn.Module) -> Tensor:
        none = torch.zeros(len(valid), 1, dtype=torch.long)
        prompts = [(0, width), (start, end)]
        logits = logits_of(stock, whole, joint, positions, none, vectors, features, prompts)
        return torch.cat([logits[kept], *(logits[row, answer][None] for row, _, answer in replies)])

    case.same(torch.cat([found[kept], *(found[row, last][None] for row, last, _ in replies)]), truth, "the dialogue")


def both(
    case: Case, first: Seen, second: Seen, valid: Tensor, start: int, end: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """Merged vectors of both turns, by layer, over the columns of the dialogue."""
    if not case.merges:
        return {}
    rows = list(range(len(valid)))
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for a, b, part in ((0, case.width, first), (start, end, second)):
        own = valid[:, a:b]
        for layer, (where, values) in merged(
            part, own, asks(part.report, own, case.draw.positions, b - a), rows
        ).items():
            wide = torch.zeros_like(valid)
            wide[:, a:b] = where
            found.setdefault(layer, []).append((wide, values))
    out = {}
    for layer, pieces in found.items():
        mask = torch.stack([wide for wide, _ in pieces]).any(0)
        values = torch.empty(*valid.shape, pieces[0][1].shape[-1], dtype=pieces[0][1].dtype)
        for wide, vectors in pieces:
            values[wide] = vectors
        out[layer] = (mask, values[mask])
    return out
