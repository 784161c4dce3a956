"""How far back each decoder layer sees: asked of the text model itself, by the rule behind the mask that it makes.

Attributes don't say it: layers carry a window that they don't use, configurations have one for some layers, and a newer
model may have another kind of mask. So the text model's own forward runs once on layers that only note their mask,
under an attention implementation whose masks are the rules that masks are made of. A recurrent layer has no such rule:
it is told from a layer that mixes no tokens by what it gets when a token is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention_api import Rule, mask_settings, masks_as_rules
from .call_arguments import cache_of, call_of, given, takes, undecorated
from .transformers_api import NOTHING, STATE, new_cache, versions

FAR = 1 << 18  # a window that is longer is taken for none
# kinds of layers: attention under a mask, a recurrence that takes a padding mask, and what mixes no tokens
ATTENTION, RECURRENT, ALONE = "attention", "recurrent", "alone"


class Windows:
    """The kind and the sliding window of each decoder layer of a text model.

    Parameters
    ----------
    lm : nn.Module
        The text model.
    layers : sequence of nn.Module
        Its decoder layers.

    Attributes
    ----------
    kinds : list of str
        Per layer ``ATTENTION``, ``RECURRENT`` or ``ALONE`` (it mixes no tokens).
    streams : int
        How many hidden states a token has between layers: `[n, B, L, D]` if more than one (Gemma 3n).

    Raises
    ------
    NotImplementedError
        If a layer's queries see tokens by another rule than the causal one, with or without a window.
    """

    def __init__(self, lm: Any, layers: Sequence[Any]):
        self.lm, self.layers = lm, layers
        self.streams = 1
        self._known: dict[Any, list[int | None]] = {}
        masks, kept = self._masks_of([1, 1]), new_cache(lm.config).layers
        ruled = all(isinstance(mask, Rule) for mask in masks)
        padded = masks if ruled else self._masks_of([0, 1])
        held = [type(kept[i]) if i < len(kept) else None for i in range(len(masks))]
        self.kinds = [self._kind(*found) for found in zip(masks, padded, held, strict=True)]
        self._known[mask_settings(lm.config)] = self._windows_of(masks)

    def now(self) -> list[int | None]:
        """Per layer the window, or None: a query at 9 with a window of 3 sees 7, 8 and 9. Asked anew if it changed."""
        settings = mask_settings(self.lm.config)
        if settings not in self._known:
            self._known[settings] = self._windows_of(self._masks_of([1, 1]))
        return self._known[settings]

    def attending(self) -> list[int]:
        """Numbers of the layers with attention."""
        return [i for i, kind in enumerate(self.kinds) if kind == ATTENTION]

    @staticmethod
    def _kind(mask: Any, padded: Any, held: Any) -> str:
        """Of a layer by the masks that it got without and with padding, and by what it keeps in the cache."""
        if isinstance(padded, Tensor) and padded.tolist() == [[0, 1]] and held is STATE:
            return RECURRENT
        if mask is None and padded is None and held is not None and held is NOTHING:
            return ALONE
        return ATTENTION  # ``_window`` refuses a rule that it does not know

    def _windows_of(self, masks: list[Any]) -> list[int | None]:
        name = type(self.lm).__name__
        known: dict[int, int | None] = {}
        for i in self.attending():
            if id(masks[i]) not in known:
                known[id(masks[i])] = _window(masks[i], f"decoder layer {i} of {name}")
        return [known.get(id(rule)) for rule in masks]

    def _masks_of(self, valid: list[int]) -> list[Any]:
        """What each layer gets as its mask for two tokens, of which `valid` tells padding (0)."""
        lm, name = self.lm, type(self.lm).__name__
        seen: list[Any] = []
        stand_in = object.__new__(type(lm))
        stand_in.__dict__.update(lm.__dict__)
        # no weight is touched, wherever it may be
        parts = {n: _stand_in(m, _Turning if "rot" in n else _Passing) for n, m in lm._modules.items()}
        noting = [_Noting(layer, seen, self) for layer in self.layers]
        parts["layers"] = nn.ModuleList(noting)
        buffers = {name: None if b is None else torch.ones(b.shape) for name, b in lm._buffers.items()}
        stand_in.__dict__.update(_modules=parts, _buffers=buffers, config=masks_as_rules(lm.config))
        # what is made of token ids besides their embeddings can't be made of embeddings
        if takes(lm, "per-layer inputs"):
            tokens: dict[str, Any] = {"ids": torch.zeros(1, 2, dtype=torch.long)}
        else:
            tokens = {"embeds": torch.zeros(1, 2, lm.config.hidden_size)}
        if takes(lm, "logits to keep"):  # by number, and for these all layers run on all columns
            tokens["logits to keep"] = torch.tensor([1])
        call = given(lm, **tokens, mask=torch.tensor([valid]), **{"use cache": True})
        try:
            with torch.no_grad():
                try:
                    output = undecorated(lm)(stand_in, **call)
                except ValueError:  # what a layer gives is taken apart: hidden states and attention weights (Bamba)
                    seen.clear()
                    for layer in noting:
                        layer.__dict__["pairs"] = True
                    output = undecorated(lm)(stand_in, **call)
        except Exception as error:
            raise NotImplementedError(
                f"vtc can't find out which tokens the layers of {name} see ({type(error).__name__}: {error}), so it "
                f"can't make masks for what pruning leaves. {versions()}"
            ) from error
        if len(seen) != len(self.layers):
            raise NotImplementedError(f"{name} runs {len(seen)} of {len(self.layers)} decoder layers. {versions()}")
        own, ours = type(cache_of(output)), type(new_cache(lm.config))
        if own not in (ours, type(None)):
            raise NotImplementedError(
                f"{name} makes a cache of its own, {own.__name__}, and vtc knows {ours.__name__} only: use a text "
                f"model that makes one. {versions()}"
            )
        return seen


class _Passing(nn.Module):
    """Stands for a module: it has the module's attributes, and its forward gives back what it gets, as wide as it must
    be where that is known."""

    def __init__(self, module: Any):
        super().__init__()
        self.__dict__["module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)

    def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.__dict__["module"]
        if isinstance(module, nn.Embedding):
            return torch.zeros(*hidden.shape, module.embedding_dim)
        if isinstance(module, nn.Linear):
            return hidden.new_zeros(*hidden.shape[:-1], module.out_features)
        return hidden


def _stand_in(module: Any, kind: type[_Passing]) -> nn.Module:
    """A stand-in for a module, or one for each of a list."""
    return nn.ModuleList(map(kind, module)) if isinstance(module, nn.ModuleList) else kind(module)


class _Noting(_Passing):
    """Stands for a decoder layer: its forward only notes the mask, and how many hidden states a token has."""

    def __init__(self, module: Any, seen: list[Any], windows: Windows):
        super().__init__(module)
        self.__dict__.update(seen=seen, windows=windows, pairs=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = call_of(self.module, args, kwargs)
        hidden = call.get("hidden")
        self.seen.append(call.get("mask"))
        if hidden.dim() > 3:
            self.windows.streams = hidden.shape[0]
        return (hidden, None) if self.pairs else hidden


class _Turning(_Passing):
    """Stands for a rotary embedding: one, a pair or one for each kind of layer, as the text model takes it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _Anything()


class _Anything:
    def __getitem__(self, key: Any) -> _Anything:
        if isinstance(key, int) and key > 1:
            raise IndexError
        return self


def _window(rule: Any, layer: str) -> int | None:
    found = set()
    if isinstance(rule, Rule):
        keys, zero = torch.arange(FAR), torch.zeros((), dtype=torch.long)
        for query in (FAR - 2, FAR - 39):  # chunks would begin elsewhere
            sees = torch.as_tensor(rule.function(zero, zero, torch.tensor(query), keys)).expand(FAR)
            first = int(sees.int().argmax())
            causal = bool(sees[first : query + 1].all()) and not bool(sees[query + 1 :].any())
            found.add(query + 1 - first if first else 0) if causal else found.add(-1)
    if len(found) != 1 or -1 in found:
        raise NotImplementedError(
            f"{layer} attends by another rule than the causal one with or without a sliding window (chunks, both "
            "directions, or no attention at all): vtc can't make its masks for what pruning leaves. Use another text "
            "model, or a method of the vision encoder in a model without one"
        )
    return found.pop() or None
