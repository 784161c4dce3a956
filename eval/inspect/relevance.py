"""Which visual tokens an answer came from: relevance, propagated through the decoder's attention ("the oracle").

The rule is Chefer's (arXiv 2103.15679) as arXiv 2506.01097 uses it. For a generated token t with logit y_t, over the
layers l with post-softmax attention A^l `[H, L, L]`::

    R = I;   R <- R + mean_h relu(A^l * dy_t / dA^l) @ R

and of the row of R at the position that predicts t the visual columns count. Only that row is wanted, and it is the
product of a row vector with one layer after the other, from the last to the first::

    r = e_t;   r <- r + r @ mean_h relu(A^l * dy_t / dA^l)

which is the same numbers without a single `L x L` product. It takes one backward pass for each generated token and
`H * L^2` floats for each layer, so it is slow: a yardstick, and the labels of ``vtc train explainer``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.eval.vlm.encode_once import core_of, to_device
from vtc.eval.vlm.prompts import TOKEN_INPUTS, Row, visual_token_ids
from vtc.pruners.layout import Layout

NOTHING = "random(keep=1.0)"  # wrapped so, a model gives the same bits, and reports where its images are


@dataclass(frozen=True)
class Explanation:
    """What one answer rests on; all tensors lie on the CPU.

    Attributes
    ----------
    relevance : list of Tensor
        `[n]` float32 per image (or video): relevance of each of its tokens, the mean over the answer's tokens.
    attention : list of Tensor
        `[n]` float32 per image: attention that the first layer pays each token, the mean over heads and over the text
        of the prompt behind the image. Zeros where there is none.
    layouts : list of Layout
        Where the tokens of each image sit.
    answer : Tensor
        `[T]` int64: the tokens that were explained.
    heads, width : int
        Attention heads and hidden size of the decoder.
    """

    relevance: list[Tensor]
    attention: list[Tensor]
    layouts: list[Layout]
    answer: Tensor
    heads: int
    width: int


def propagate(weights: Sequence[Tensor], gradients: Sequence[Tensor], row: int) -> Tensor:
    """Row `row` of the relevance R of all layers.

    Parameters
    ----------
    weights, gradients : sequence of Tensor
        `[H, L, L]` each, first layer first: attention after the softmax, and the logit's gradient to it.
    row : int
        The position that predicts the token.

    Returns
    -------
    Tensor
        `[L]` float32.
    """
    relevance = torch.zeros(weights[0].shape[-1], device=weights[0].device)
    relevance[row] = 1
    for weight, gradient in zip(reversed(weights), reversed(gradients), strict=True):
        step = (weight * gradient).clamp_(min=0).mean(0)
        relevance = relevance + relevance @ step.float().to(relevance.device)
    return relevance


@contextmanager
def watched_attention(model: nn.Module, layers: int | None = None) -> Iterator[list[Tensor]]:
    """Gives the attention weights `[1, H, L, L]` of the first `layers` decoder layers (None: all), with gradients.

    They are those of the forwards in the block, in order. Parameters stay out of the graph, which begins at the first
    layer's attention. Afterwards the model is as before.

    Raises
    ------
    ValueError
        If the model is in training mode, where layers may be run twice and dropout changes what they do.
    """
    from vtc.models.layout.model_parts import locate
    from vtc.models.stock.attention_taps import AttentionTap

    if model.training:
        raise ValueError("relevance is of a model in evaluation mode: call model.eval() first")
    found: list[Tensor] = []
    wanted = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as undo:
        for p in wanted:
            undo.callback(p.requires_grad_)
            p.requires_grad_(False)
        for layer in locate(model).layers[:layers]:
            undo.callback(AttentionTap(layer.self_attn, partial(_attend, found)).attach().detach)
        yield found


def _attend(
    found: list[Tensor], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float
) -> Tensor:
    """Attention written out `[B, Q, H, d]`, its weights noted."""
    from vtc.models.stock.attention_taps import attention_rows

    with torch.enable_grad():  # a tap is without
        everyone = torch.arange(query.shape[2], device=query.device).expand(query.shape[0], -1)
        weights = attention_rows(query, key, mask, scaling, everyone)
        if not weights.requires_grad:
            weights.requires_grad_()
        found.append(weights)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return (weights.to(value.dtype) @ value).transpose(1, 2)


def inputs_of(row: Row) -> dict[str, Any]:
    """What ``explain`` takes, of one question."""
    return {**row.text, **row.vision}


@torch.no_grad()
def answer_ids(model: Any, inputs: Mapping[str, Any], max_new_tokens: int) -> Tensor:
    """Greedily generated tokens `[T]` without the one that ends the answer, unless that is the whole answer."""
    config = model.generation_config
    pad = config.pad_token_id
    given: dict[str, Any] = {} if pad is not None else {"pad_token_id": 0}
    # a placeholder in the answer would ask for another image; only untrained models say it
    given["suppress_tokens"] = visual_token_ids(core_of(model).config) or None
    out = model.generate(**inputs, **given, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, use_cache=True)
    new = out[0, inputs["input_ids"].shape[1] :]
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    length = next((i for i, token in enumerate(new.tolist()) if token in ends), len(new))
    return new[: max(1, length)].cpu()


def explain(
    model: nn.Module,
    inputs: Mapping[str, Any],
    answer: Tensor | None = None,
    max_new_tokens: int = 16,
    backward: bool = True,
) -> Explanation:
    """Relevance of every visual token of a prompt for the model's answer.

    Parameters
    ----------
    model : nn.Module
        Any family's stock model in evaluation mode, whatever attention implementation it runs. A wrapped model is
        looked at without its methods.
    inputs : mapping
        The model's inputs for one prompt without padding.
    answer : Tensor, optional
        `[T]` int64, the tokens to explain; None generates them greedily.
    max_new_tokens : int
        Longest answer that is generated.
    backward : bool
        Whether relevance is wanted; else it is an empty list, and only the first layer's attention is written out.

    Raises
    ------
    ValueError
        For a batch of several prompts, an empty answer, a prompt without visual tokens, or a model in training mode.

    Notes
    -----
    The answer is generated first; then one forward over prompt and answer gives all logits, because in a causal model
    the later tokens have no part in them. Time: a forward and T backward passes that go through activations only;
    memory: attention and its gradient of all layers.
    """
    from vtc.api import compressed

    if inputs["input_ids"].shape[0] != 1:
        raise ValueError(f"relevance is of one prompt at a time, got a batch of {inputs['input_ids'].shape[0]}")
    inputs = {name: to_device(value, model) for name, value in inputs.items()}
    prompt = inputs["input_ids"].shape[1]
    with compressed(model, NOTHING):
        if answer is None:
            answer = answer_ids(model, inputs, max_new_tokens)
        if len(answer) == 0:
            raise ValueError("relevance needs an answer: give at least one token")
        whole = _with_answer(inputs, answer[:-1])
        with watched_attention(model, None if backward else 1) as weights, torch.set_grad_enabled(backward):
            logits = model(**whole, use_cache=False).logits[0].float()
        handle: Any = model.vtc
        report = handle.report
    if report is None or not report.spans:
        raise ValueError("the prompt holds no visual token, so there is no relevance to look at")
    relevance = _mean_relevance(logits, weights, answer, prompt).cpu() if backward else None
    first = weights[0].detach()[0].cpu()
    columns = [span.columns for span in report.spans]
    text = torch.ones(prompt, dtype=torch.bool)
    text[torch.cat(columns)] = False
    return Explanation(
        [] if relevance is None else [relevance[c] for c in columns],
        [_first_attention(first, c, text) for c in columns],
        list(report.layouts),
        answer.cpu(),
        first.shape[0],
        core_of(model).config.get_text_config().hidden_size,
    )


def _mean_relevance(logits: Tensor, weights: Sequence[Tensor], answer: Tensor, prompt: int) -> Tensor:
    """`[L]`: relevance of each token for the answer's, one backward pass each; `logits` `[L, V]` know `weights`."""
    total = torch.zeros(logits.shape[0], device=logits.device)
    for t, token in enumerate(answer.tolist()):
        again = t + 1 < len(answer)
        gradients = torch.autograd.grad(logits[prompt - 1 + t, token], weights, retain_graph=again)
        with torch.no_grad():
            found = propagate([w[0] for w in weights], [g[0] for g in gradients], prompt - 1 + t)
            total += found.to(total.device)
    return total / len(answer)


def _first_attention(weights: Tensor, columns: Tensor, text: Tensor) -> Tensor:
    """`[n]`: mean of `weights` `[H, L, L]` over heads and over the rows of the text behind a span."""
    rows = text.nonzero()[:, 0]
    rows = rows[rows > columns[-1]]
    if len(rows) == 0:
        return torch.zeros(len(columns))
    return weights[:, rows][..., columns].mean((0, 1))


def _with_answer(inputs: Mapping[str, Any], answer: Tensor) -> dict[str, Any]:
    """`inputs` with the tokens of an answer behind the prompt."""
    out = dict(inputs)
    ids = inputs["input_ids"]
    for name in ("input_ids", *TOKEN_INPUTS):
        if name not in inputs or not len(answer):
            continue
        fill = 1 if name == "attention_mask" else 0
        more = answer[None].to(ids) if name == "input_ids" else inputs[name].new_full((1, len(answer)), fill)
        out[name] = torch.cat([inputs[name], more], 1)
    return out
