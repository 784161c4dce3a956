"""Notices when transformers no longer does what vtc takes for granted: on the first forward, and before a wrong token.

By shapes and identities only, so that nothing waits for the device: what vtc hands to the text model and its layers
must be what arrives there, and the cache must hold just the columns that were left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn

from .call_arguments import Call, cache_of, call_of
from .transformers_api import STATE, Cache, StaticLayer, has_state, hidden_of, holds_columns, versions

CHECKED = "_vtc_checked"  # of a cache: a step behind its prefill was found right


@dataclass
class Checks:
    """What one forward is expected to do.

    Attributes
    ----------
    columns : dict
        By layer: how many columns its cache must hold afterwards; None: it holds a state, or nothing.
    arguments : dict
        By layer: the mask and the rotary embeddings that it was given.
    """

    columns: dict[int, int | None] = field(default_factory=dict)
    arguments: dict[int, dict[str, Any]] = field(default_factory=dict)

    def expect(self, layer: int, cache: Any, new: int) -> None:
        """Note that `new` columns enter `layer`."""
        columns = held(cache, layer)
        self.columns[layer] = None if columns is None else columns + new

    def gave(self, layer: int, call: Call, *meanings: str) -> None:
        """Note what `layer` was given: the mask and the rotary embeddings, unless `meanings` says otherwise."""
        self.arguments[layer] = {meaning: call.get(meaning) for meaning in meanings or ("mask", "rotary")}


def checks_for(cache: Any, prefill: bool) -> Checks | None:
    """What to check of a forward: every prefill, and the first step behind it; later steps are built alike."""
    if prefill or not getattr(cache, CHECKED, False):
        return Checks()
    return None


def trip(what: str) -> NoReturn:
    """Raise the one error of this module."""
    raise RuntimeError(
        f"visual-token pruning stopped before it could be wrong: {what}. Perhaps this transformers calls its models in "
        f"a way that vtc does not know. {versions()} `vtc check MODEL` tests the model with what is installed; "
        "vtc.restore(model) gives the stock model back."
    )


def held(cache: Any, layer: int) -> int | None:
    """Columns that a layer of the cache holds; None: it is of a kind that holds none, or always as many."""
    if not isinstance(cache, Cache) or layer >= len(cache.layers):
        return 0
    if not holds_columns(cache.layers[layer]) or isinstance(cache.layers[layer], StaticLayer):
        return None
    keys = getattr(cache.layers[layer], "keys", None)
    return 0 if keys is None or not keys.numel() else int(keys.shape[-2])


def check_columns(run: Any, layer: int, hidden: Tensor) -> None:
    """The columns that enter a layer are those that are left."""
    rows, columns = run.columns.shape
    if tuple(hidden.shape[-3:-1]) != (rows, columns):
        trip(f"decoder layer {layer} gets {list(hidden.shape[-3:-1])} columns, and vtc left {[rows, columns]}")


def check_attention(run: Any, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A layer's attention gets the mask and positions that vtc gave to the layer."""
    if run.checks is None:
        return
    call = call_of(module, args, kwargs)
    for meaning, value in run.checks.arguments.get(layer, {}).items():
        got = call.get(meaning)
        if not _same(got, value):
            trip(f"the attention of decoder layer {layer} does not get the {meaning} that vtc made, but {_form(got)}")
    if run.cache is not None and call.get("cache") is not run.cache:
        trip(f"the attention of decoder layer {layer} writes to {_form(call.get('cache'))}, not to the cache of vtc")


def check_output(lm: nn.Module, depth: int, run: Any, output: Any) -> None:
    """All layers ran, the cache that comes back is the one that vtc tracks, and it holds what is left."""
    hidden, left = hidden_of(output), run.columns.shape
    if tuple(hidden.shape[:2]) != tuple(left):
        trip(f"{type(lm).__name__} gives back {list(hidden.shape[:2])} columns, and vtc left {list(left)}")
    if run.checks is None:
        return
    seen = len(run.checks.columns)
    if seen != depth:
        trip(f"{seen} of {depth} decoder layers passed vtc's hooks")
    if run.cache is None:
        return
    if cache_of(output) is not run.cache:
        trip(f"{type(lm).__name__} gives back {_form(cache_of(output))} for the cache that vtc tracks")
    for layer, expected in run.checks.columns.items():
        got, window = held(run.cache, layer), getattr(run.cache.layers[layer], "sliding_window", None)
        if got is None or expected is None:
            if type(run.cache.layers[layer]) is STATE and not has_state(run.cache.layers[layer]):
                trip(f"no token went into the state of decoder layer {layer}")
        elif got != expected and (window is None or got > expected):
            trip(f"the cache of decoder layer {layer} holds {got} columns, and {expected} were left to it")
    setattr(run.cache, CHECKED, not run.batch.spans)


def check_features(core: Any) -> NoReturn:
    """Pictures were encoded, and no pruning was possible."""
    trip(f"{type(core).__name__} encoded pictures that never reached the hook of its text model")


def check_update(pending: int | None, keys: Tensor) -> None:
    """What a pruned cache layer is about to store was announced to it."""
    if pending is None:
        raise RuntimeError(
            "this KV cache holds pruned visual tokens, and is now used by a model that is not wrapped by vtc (any "
            "more), or by a forward that vtc did not see: masks would be wrong. Start from an empty cache, or wrap the "
            "model as it was when the cache was made. " + versions()
        )
    if pending != keys.shape[-2]:
        trip(f"a cache layer is about to store {keys.shape[-2]} columns, and vtc left {pending}")


def _same(got: Any, value: Any) -> bool:
    """Whether `got` is `value`, or as much as that once accelerate has moved it to another device."""
    if isinstance(got, tuple) and isinstance(value, tuple):
        return len(got) == len(value) and all(map(_same, got, value))
    if isinstance(got, Tensor) and isinstance(value, Tensor):
        return got is value or got.shape == value.shape
    return got is value


def _form(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
