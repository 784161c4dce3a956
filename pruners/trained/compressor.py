"""The base of methods that bring a network of their own, trained beside the model it works on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vtc.pruners.base import Pruner
from vtc.pruners.model_facts import ModelFacts, Sketch
from vtc.pruners.primitives.precision import wide_dtype
from vtc.pruners.untrusted_json import parse_json
from vtc.pruners.visual_tokens import VisualTokens

from .network_file import NAME, NetworkFile, hint, network_bytes, read_network

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
UNTRAINED = "untrained"
SEED = 0  # of an untrained network
ROUNDING = 0.02  # of a weight's largest value: the same weights in another dtype


@dataclass(kw_only=True)
class TrainedCompressor(Pruner):
    """A method with a trained network.

    Parameters
    ----------
    weights : str, optional
        A safetensors file that ``vtc train`` wrote, or a folder with a ``compressor.safetensors``. ``"untrained"`` is a
        new network for whatever model it meets, always the same. By default the one that comes with vtc, which belongs
        to the bundled model and refuses others.

    Notes
    -----
    A subclass says in ``sizes_for`` what a new network for given tokens is built from, in ``build`` builds it, and
    calls ``run`` in ``select``. The network belongs to the method and never to the model, so that ``vtc.restore``
    leaves the stock model. It computes in float32 (in float64 on float64 tokens), whatever the model's dtype.
    """

    weights: str | None = None

    trained: ClassVar[bool] = True
    files: ClassVar[Mapping[str, str]] = {"weights": NAME}
    training_counts: ClassVar[tuple[tuple[int, float], ...]] = ()  # tokens of a step, and the share of such steps
    no_files: ClassVar[tuple[str, ...]] = (UNTRAINED,)
    captions: ClassVar[bool] = False  # whether a part of it learns captions, in a stage of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        # sizes and weights that an untrained network has in place of its own
        self.start: tuple[Mapping[str, Any], Mapping[str, Tensor]] = {}, {}
        self._file: NetworkFile | None = None
        self._network: nn.Module | None = None
        self._live = False
        self._sizes: dict[str, Any] = {}
        self.about: dict[str, str] = {}
        self._copies: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    def sizes_for(self, tokens: VisualTokens) -> dict[str, Any]:
        """Plain values that ``build`` makes a new network for `tokens` from."""
        raise NotImplementedError

    @classmethod
    def build(cls, sizes: Mapping[str, Any]) -> nn.Module:
        """A new network of these `sizes`, in float32.

        Raises
        ------
        KeyError, TypeError, ValueError, RuntimeError
            If there is none of such sizes.
        """
        raise NotImplementedError

    def check_files(self) -> None:
        """Read the file of the network, if there is one to read."""
        if self.weights != UNTRAINED and self._network is None:
            self._read()

    def check_model(self, model: ModelFacts) -> None:
        """Refuse a model that the network was not made for.

        Raises
        ------
        ValueError
            Naming what the network was made for and what the model has, and the command that trains one.
        """
        if self.weights == UNTRAINED or self._live:
            return
        about = self._read().about
        made, name = _plain(about.get("fits")), about.get("model", "a model")
        found = {key: getattr(model, key, None) for key in made}
        if any(found[key] is not None and found[key] != value for key, value in made.items()):
            raise ValueError(
                f"{self._called()} was made for {name} ({_say(made)}); this model has {_say(found)}; {self._hint()}"
            )
        other = differs(_plain(about.get("sketch")), model.sketch())
        if other:
            raise ValueError(
                f"{self._called()} was made for {name}, whose {other} has other values than this model's (of the same "
                f"sizes: {_say(made)}); {self._hint()}"
            )

    def network(self, tokens: VisualTokens) -> nn.Module:
        """The network, built when it is first needed.

        Raises
        ------
        ValueError
            If the weights of its file don't fit the sizes that the file says.
        """
        if self._network is None:
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                self._network = self._build(tokens)
        return self._network

    def _build(self, tokens: VisualTokens) -> nn.Module:
        if self.weights == UNTRAINED:
            self._sizes = self.sizes_for(tokens)
            made = self.build(self._sizes)
            made.load_state_dict(self.start[1], strict=False)
            return made
        file = self._read()
        try:
            network = self.build(file.sizes)
            network.load_state_dict(
                {name: x.float() if x.is_floating_point() else x for name, x in file.weights.items()}
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self._called()}: its weights don't fit the sizes that it says ({error}); {self._hint()}"
            ) from error
        self._sizes = file.sizes
        return network.requires_grad_(False).eval()

    def run(self, tokens: VisualTokens, *inputs: Tensor, **options: Any) -> Any:
        """What the network makes of `inputs`, computed on the device of the first, in its dtype, float32 at least."""
        network = self.network(tokens)
        device, dtype = inputs[0].device, wide_dtype(inputs[0])
        if self._live:
            return network(*(x.to(dtype) if x.is_floating_point() else x for x in inputs), **options)
        where = device, dtype
        if where not in self._copies:
            state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            self._copies[where] = {
                name: x.detach().to(device, dtype if x.is_floating_point() else None) for name, x in state.items()
            }
        inputs = tuple(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in inputs)
        return functional_call(network, self._copies[where], inputs, options)

    @classmethod
    def learning(cls, network: nn.Module, stage: str) -> list[nn.Parameter]:
        """The weights of `network` that learn in a `stage` of ``vtc train``: all, unless a method says otherwise."""
        return list(network.parameters())

    def use(self, network: nn.Module, sizes: Mapping[str, Any]) -> None:
        """Work with `network` itself from now on, as it changes: what training does. It is not copied.

        What ``about`` holds then goes into the metadata of its file: the recipe, seed, figures.
        """
        self._network, self._sizes, self._live, self._copies = network, dict(sizes), True, {}

    @property
    def built(self) -> nn.Module:
        """The network that there is: behind the first picture one, which training then changes."""
        return self._there().requires_grad_(True).train()

    def _there(self) -> nn.Module:
        if self._network is None:
            raise ValueError(f"{self.spoken_name} has no network yet: run a picture through the model first")
        return self._network

    @property
    def sizes(self) -> dict[str, Any]:
        """What the network was built from; empty before there is one."""
        return dict(self._sizes)

    def file_content(self, parameter: str, model: ModelFacts | None = None) -> bytes | None:
        """The network as it is now, made to belong to `model`; none of an untrained one that is not being trained."""
        if parameter != "weights":
            return super().file_content(parameter, model)
        if self._live and self._network is not None:
            return network_bytes(self.name, self._network.state_dict(), self._sizes, {**self.about, **_facts(model)})
        if self.weights == UNTRAINED:
            return None
        file = self._read()
        return network_bytes(self.name, file.weights, file.sizes, {**file.about, **self.about, **_facts(model)})

    def save(self, path: str | Path, about: Mapping[str, str], model: ModelFacts | None = None) -> None:
        """Write the network that there is to `path`, whole or not at all, with what it is and the model it is for."""
        found = {**about, **_facts(model)}
        draft = Path(path).with_suffix(".part")
        draft.write_bytes(network_bytes(self.name, self._there().state_dict(), self._sizes, found))
        draft.replace(path)

    def _read(self) -> NetworkFile:
        if self._file is None:
            path = self.weights
            if path is None:
                own = SHIPPED / f"{self.name}-bundled.safetensors"
                if not own.is_file():
                    raise ValueError(f"no trained network of {self.name} comes with vtc; {self._hint()}")
                path = str(own)
            self._file = read_network(path, self.name)
        return self._file

    def _called(self) -> str:
        return (
            f"the network of {self.name} that comes with vtc"
            if self.weights is None
            else f"{self.name}.weights={self.weights!r}"
        )

    def _hint(self) -> str:
        return hint(self.name)


def _facts(model: ModelFacts | None) -> dict[str, str]:
    """What a file says of the model that its network belongs to."""
    return {} if model is None else {"fits": json.dumps(_fits(model)), "sketch": json.dumps(dict(model.sketch()))}


def _fits(model: ModelFacts) -> dict[str, Any]:
    values = {key: getattr(model, key) for key in ("width", "layers", "heads", "vision_width", "vision_layers")}
    return {key: value for key, value in values.items() if value is not None}


def _plain(text: str | None) -> dict[str, Any]:
    """A mapping that metadata hold as JSON; empty where they hold none."""
    try:
        found = parse_json(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _say(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sizes.items())


def differs(made: Sketch, found: Sketch) -> str:
    """The first weight of which both sketches have values that rounding does not explain; empty if there is none."""
    for name in made.keys() & found.keys():
        a, b = made[name], found[name]
        reach = ROUNDING * max((abs(x) for x in a), default=0.0)
        if len(a) != len(b) or any(abs(x - y) > reach for x, y in zip(a, b, strict=True)):
            return name
    return ""
