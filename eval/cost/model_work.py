"""What the parts of a model do, operator by operator, from its configuration: nothing is loaded or multiplied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten

from vtc.models.layout.model_parts import Parts
from vtc.models.stock.call_arguments import cache_of, given, takes
from vtc.models.stock.transformers_api import FEATURES, new_cache
from vtc.models.tower.refusals import vision_layers
from vtc.models.tower.tower_hooks import item_lengths

from .decoder_work import DecoderWork, LengthCurve
from .flops import fake_weights
from .operators import ATTENTION, CAUSAL, MATMUL, Operator, Operators, Recording, recording


@dataclass(frozen=True)
class TowerWork:
    """What the vision side does on the pictures of one prompt.

    Attributes
    ----------
    layers : tuple
        Operators of each of the tower's layers; empty where they are not known.
    rest, projector : tuple
        Of the tower beside its layers (and, of families without a row, of the projector), and of the projector.
    lengths : tuple of int
        Visual tokens of each picture (or crop) that it makes.
    """

    layers: tuple[Operators, ...]
    rest: Operators
    projector: Operators
    lengths: tuple[int, ...]

    def tower(self, shares: Sequence[float] = ()) -> Operators:
        """All of the tower; `shares` says which part of its tokens each layer sees, all of them without."""
        seen = shares or [1.0] * len(self.layers)
        layers = (o if s == 1 else o.shortened(s) for ops, s in zip(self.layers, seen, strict=True) for o in ops)
        return (*self.rest, *layers)


class ModelWork:
    """Counts the parts of a model without weights (``model_without_weights``), or of one with them.

    Parameters
    ----------
    parts : Parts
        Of the model.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self.depth = len(parts.layers)
        self._known: dict[int, DecoderWork] = {}
        self._lengths = LengthCurve()
        types = getattr(parts.lm.config.get_text_config(), "layer_types", None) or ()
        self._kinds = [(_kind(layer), types[i] if i < len(types) else None) for i, layer in enumerate(parts.layers)]
        self._steps: dict[tuple[int, int], Operators] = {}

    @torch.no_grad()
    def tower(self, inputs: dict[str, Any]) -> TowerWork:
        """The vision side on a processor's outputs for the pictures of one prompt.

        Raises
        ------
        NotImplementedError
            If the tower looks at values that only weights give.
        """
        core, family = self.parts.core, self.parts.family
        layers = _layers_of(self.parts.tower)
        projector = [core.get_submodule(family.projector)] if family.projector else []
        dtype = next(self.parts.model.parameters()).dtype
        get = getattr(core, FEATURES[0])
        wanted = {n: v for n, v in inputs.items() if n in _arguments(get)}
        for name, value in wanted.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                wanted[name] = value.to(dtype)
        with self._fake(), recording(self.parts.model, [*layers, *projector]) as found, _replayed(layers, found):
            try:
                output = get(**wanted, return_dict=True)
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                raise _uncounted(self.parts, "vision tower", error) from error
            lengths = item_lengths(self.parts, output)
        made = [tuple(found.inside(i)) for i in range(len(layers) + len(projector))]
        return TowerWork(
            tuple(made[: len(layers)]), tuple(found.outside()), sum(made[len(layers) :], ()), tuple(lengths)
        )

    def decoder(self, length: int) -> DecoderWork:
        """The decoder on `length` tokens; layers of one kind are run once.

        Where the lengths that were run before tell one another exactly, so do they tell this one, and nothing is run.

        Raises
        ------
        NotImplementedError
            If its layers look at values.
        """
        if length not in self._known:
            told = self._lengths.at(length) if length > 1 else None
            self._known[length] = self._decoder(length) if told is None else told
        return self._known[length]

    def run(self, lengths: Sequence[int]) -> None:
        """Run the decoder on these lengths: what others are told by (``LengthCurve``)."""
        for length in dict.fromkeys(lengths):
            if length not in self._known:
                self._known[length] = self._decoder(length)
            if length > 1:  # a single token goes other ways
                self._lengths.add(self._known[length])

    @torch.no_grad()
    def _decoder(self, length: int) -> DecoderWork:
        lm, layers = self.parts.lm, self.parts.layers
        if takes(lm, "token types"):
            raise NotImplementedError(
                f"FLOPs of {self.parts.config.model_type!r} are not counted: its experts depend on the kind of token"
            )
        first = [self._kinds.index(kind) for kind in self._kinds]
        cache = new_cache(lm.config)
        ids = torch.zeros(1, length, dtype=torch.long)
        with self._fake(), _once(layers, first), recording(self.parts.model, list(layers)) as found:
            try:
                out = lm(input_ids=ids, use_cache=True, **(given(lm, cache=cache) if takes(lm, "cache") else {}))
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                raise _uncounted(self.parts, "language model", error) from error
            held = [_held(layer) for layer in cache_of(out).layers]
        held += [0] * (self.depth - len(held))  # layers that read the keys of others
        made = {i: tuple(found.inside(i)) for i in set(first)}
        return DecoderWork(
            length,
            tuple(made[i] for i in first),
            tuple(found.outside()),
            tuple(held[i] for i in first),
        )

    def prefill(self, lengths: Sequence[int]) -> Operators:
        """A prefill whose layer `l` sees ``lengths[l]`` tokens."""
        return tuple(chain.from_iterable(self.prefill_parts(lengths)))

    def prefill_parts(self, lengths: Sequence[int]) -> list[Operators]:
        """The same by what is beside the layers, and each layer; equal ones are the same object."""
        return [self.decoder(lengths[0]).rest, *(self.decoder(n).layers[i] for i, n in enumerate(lengths))]

    def kv_bytes(self, lengths: Sequence[int]) -> int:
        """Bytes of the cache behind such a prefill."""
        return sum(self.decoder(n).kv[i] for i, n in enumerate(lengths))

    def step(self, lengths: Sequence[int]) -> Operators:
        """One more token behind such a prefill."""
        return tuple(chain.from_iterable(self.step_parts(lengths)))

    def step_parts(self, lengths: Sequence[int]) -> list[Operators]:
        """The same by what is beside the layers, and each layer; equal ones are the same object."""
        return [self.decoder(1).rest, *(self._step(i, n) for i, n in enumerate(lengths))]

    def _step(self, layer: int, length: int) -> Operators:
        key = self._kinds.index(self._kinds[layer]), length
        if key not in self._steps:
            behind = self.decoder(length)
            own = (o for o in self.decoder(1).layers[layer] if o.kind not in (ATTENTION, CAUSAL))
            self._steps[key] = (*own, Operator(ATTENTION, behind.attention(layer), 0, behind.kv[layer]))
        return self._steps[key]

    def head(self) -> Operators:
        """The output layer on one token."""
        config, size = self.parts.lm.config.get_text_config(), next(self.parts.model.parameters()).element_size()
        rows, width = config.vocab_size, config.hidden_size
        return (Operator(MATMUL, 2 * rows * width, size * rows * width, size * (rows + width)),)

    def weight_bytes(self) -> int:
        """Bytes of all weights, those that are tied once."""
        return sum(p.numel() * p.element_size() for p in self.parts.model.parameters())

    def _fake(self) -> Any:
        return fake_weights(self.parts.model, all_fake=False)


def _arguments(method: Any) -> set[str]:
    import inspect

    known = set(inspect.signature(method).parameters)
    return known | {"image_sizes"} if "kwargs" in known else known


def _layers_of(tower: Any) -> list[nn.Module]:
    try:
        return list(vision_layers(tower)) if tower is not None else []
    except (NotImplementedError, ValueError):
        return []


def _uncounted(parts: Parts, what: str, error: Exception) -> NotImplementedError:
    said = (str(error).strip().splitlines() or [""])[0]
    return NotImplementedError(
        f"FLOPs of the {what} of {parts.config.model_type!r} can't be counted without weights "
        f"({type(error).__name__}: {said})"
    )


def _kind(layer: nn.Module) -> Any:
    """What tells a layer from others: modules, shapes, settings."""
    settings = [
        (name, attribute, value)
        for name, module in layer.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and attribute not in ("layer_idx", "layer_number", "training")
    ]
    shapes = [(name, tuple(p.shape)) for name, p in layer.named_parameters()]
    return type(layer), settings, shapes


@contextmanager
def _once(layers: Any, first: Sequence[int]) -> Iterator[None]:
    """Layers that are like an earlier one hand on what they get."""
    outputs: dict[int, Any] = {}
    handles = [
        layers[i].register_forward_hook(lambda _, args, out, i=i: outputs.__setitem__(i, out)) for i in set(first)
    ]
    passed = [i for i, f in enumerate(first) if i != f]
    for i in passed:
        layers[i].forward = _handing_on(outputs, first[i])
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for i in passed:
            del layers[i].forward


@contextmanager
def _replayed(layers: Sequence[nn.Module], found: Recording) -> Iterator[None]:
    """A layer that is called as an equal one was gives that one's output, and its operators count again."""
    kinds = [_kind(layer) for layer in layers]
    known: dict[Any, Any] = {}
    for layer, kind in zip(layers, kinds, strict=True):
        layer.forward = _replaying(layer.forward, kinds.index(kind), known, found)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _replaying(plain: Any, kind: int, known: dict[Any, Any], found: Recording) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = tree_flatten((args, kwargs))
        key = kind, repr(tree), tuple(map(_as_called, leaves))
        if key not in known:
            start = len(found.found)
            out = plain(*args, **kwargs)
            known[key] = out, found.found[start:], leaves  # which are held, so that no other has the same id
            return out
        out, operators, _ = known[key]
        found.found.extend(operators)
        return out

    return forward


def _as_called(value: Any) -> Any:
    """What of an argument decides which operators run: without values a tensor's shape, with values all of it."""
    if isinstance(value, FakeTensor):
        return tuple(value.shape), value.dtype
    return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)


def _handing_on(outputs: dict[int, Any], like: int) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        out = outputs[like]
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    return forward


def _held(layer: Any) -> int:
    """Bytes of all that a cache layer holds."""

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value.values())) if isinstance(value, dict) else 0

    return sum(map(size, vars(layer).values()))
