"""What the server says for all requests, ``vtc`` in the model's configuration, and what one may say for itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vtc.pipeline_text import Pipeline, format_pipeline, parse
from vtc.pruners.base import check_keep, resolve_keep
from vtc.pruners.registry import import_methods, nearest

PREFIX = "vtc_"
REQUEST = ("vtc_keep", "vtc_pruner", "vtc_question")  # of ``mm_processor_kwargs``
DEPTH = 32  # only to ask an input-stage method for its stops, which no depth changes


@dataclass(frozen=True)
class EngineSettings:
    """What the server says.

    Parameters
    ----------
    pruner : str
        A method or a pipeline of methods of the input stage, as ``vtc.parse`` reads it.
    keep : int or float, optional
        For a single method that does not say its own; a request may ask for another.
    choices : sequence of str
        Other methods that a request may ask for, each by exactly this text.
    imports : sequence of str
        Files or modules with methods of one's own, as ``--import`` takes them.
    """

    pruner: str
    keep: int | float | None = None
    choices: Sequence[str] = field(default_factory=tuple)
    imports: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for name in ("choices", "imports"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(v, str) for v in value):
                raise TypeError(f"vtc.{name} must be a list of texts, got {value!r}")
        if not isinstance(self.pruner, str):
            raise TypeError(f"vtc.pruner must be a method's name or a pipeline, got {self.pruner!r}")
        if self.keep is not None:
            check_keep(self.keep, "vtc.keep")
        for source in self.imports:
            import_methods(source)
        for text in self.texts:
            self._pipeline(text, self.keep)

    @classmethod
    def read(cls, given: Any) -> EngineSettings:
        """From a mapping, the ``vtc`` of ``--hf-overrides`` or of a ``config.json``.

        Raises
        ------
        TypeError, ValueError
            If there is none, or it has a setting that is not known or out of range.
        """
        if not isinstance(given, Mapping):
            raise ValueError(
                'the model\'s configuration has no "vtc": say what to prune with, e.g. --hf-overrides '
                '\'{"architectures": [...], "vtc": {"pruner": "divprune", "keep": 0.25}}\'; `vtc export-vllm` prints it'
            )
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(f'"vtc" of the model\'s configuration has no setting {name!r}. {nearest(name, known)}')
        if "pruner" not in given:
            raise ValueError('"vtc" of the model\'s configuration must name a "pruner", e.g. "divprune"')
        return cls(**given)

    @property
    def texts(self) -> tuple[str, ...]:
        """What requests choose from: the server's own method first."""
        return tuple(dict.fromkeys((self.pruner, *self.choices)))

    @property
    def pipelines(self) -> list[Pipeline]:
        """All that may run in this engine."""
        return [self._pipeline(text, self.keep) for text in self.texts]

    def _pipeline(self, text: str, keep: int | float | None) -> Pipeline:
        pipeline = parse(text)
        if len(pipeline) == 1 and pipeline[0].keep is None:
            if keep is None:
                raise ValueError(f'"vtc" of the model\'s configuration must say how much {text!r} keeps: "keep": 0.25')
            return parse(text, keep=keep)
        return pipeline

    def request(self, given: Mapping[str, Any]) -> RequestSettings:
        """What holds for one request.

        Parameters
        ----------
        given : mapping
            Its ``mm_processor_kwargs``; what does not begin with ``vtc_`` is another's.

        Raises
        ------
        TypeError, ValueError
            If one of ours is not known, out of range, or not offered by this server.
        """
        for name in given:
            if name.startswith(PREFIX) and name not in REQUEST:
                raise ValueError(f"mm_processor_kwargs has no {name!r}. {nearest(name, list(REQUEST))}")
        text = given.get("vtc_pruner", self.pruner)
        if text not in self.texts:
            raise ValueError(
                f"vtc_pruner={text!r} is not offered by this server, which has {', '.join(map(repr, self.texts))} "
                '("choices" in its "vtc" settings lists more)'
            )
        keep, own = given.get("vtc_keep"), parse(text)
        if keep is not None:
            check_keep(keep, "vtc_keep")
            if len(own) > 1 or own[0].keep is not None:
                raise ValueError(f"vtc_keep={keep}: {text!r} says itself what it keeps; leave vtc_keep out")
        question = given.get("vtc_question")
        if question is not None and not isinstance(question, str):
            raise TypeError(f"vtc_question must be a text, got {question!r}")
        keep = self.keep if keep is None else keep
        return RequestSettings(self.texts.index(text), keep, self._pipeline(text, keep), question)

    def pipeline(self, choice: int, keep: int | float | None) -> Pipeline:
        """The pipeline of a request's `choice` and `keep`."""
        return self._pipeline(self.texts[choice], keep)


@dataclass(frozen=True)
class RequestSettings:
    """What holds for one request: the place of its method among the server's, and its pipeline."""

    choice: int
    keep: int | float | None
    pipeline: Pipeline
    question: str | None = None

    @property
    def reads_text(self) -> bool:
        """Whether the choice depends on the prompt."""
        return any(p.uses_text or p.uses_question for p in self.pipeline)

    @property
    def identity(self) -> str:
        """What tells its rows from those of other settings, in any engine."""
        return format_pipeline(self.pipeline)

    def kept(self, lengths: Sequence[int]) -> list[int]:
        """Tokens left of spans of so many: of these numbers alone, before anything is encoded."""
        return kept_counts(self.pipeline, lengths)

    def packed(self) -> list[float]:
        """As three numbers: the choice, keep, and whether that is a number of tokens."""
        keep = math.nan if self.keep is None else float(self.keep)
        return [float(self.choice), keep, float(isinstance(self.keep, int))]


def unpacked(numbers: Sequence[float]) -> tuple[int, int | float | None]:
    """The choice and keep that ``RequestSettings.packed`` wrote."""
    choice, keep, whole = numbers
    return int(choice), None if math.isnan(keep) else int(keep) if whole else keep


def kept_counts(pipeline: Pipeline, lengths: Sequence[int]) -> list[int]:
    """Tokens that `pipeline` leaves of spans of `lengths`."""
    left = list(lengths)
    for stop in (stop for p in pipeline for stop in p.stops(DEPTH)):
        assert stop.keep is not None
        left = [min(now, resolve_keep(stop.keep, full)) for now, full in zip(left, lengths, strict=True)]
    return left
