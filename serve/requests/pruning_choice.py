"""Which method at which keep a request may ask for: what the server allows, and what a request's ``vtc`` field says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vtc.eval.vlm.pruning_settings import needs_keep, takes_keep
from vtc.pipeline_text import Pipeline, format_pipeline, parse, split_pipeline
from vtc.pruners.base import check_keep

from .fields import object_of, shown, text_of
from .refusal import Refusal

UNPRUNED = "unpruned"
ANY = "(...)"  # behind a method's name: with parameters of the request's choosing
Calls = list[tuple[str, dict[str, Any]]]
LONGEST = 300  # characters of a method's text


@dataclass(frozen=True)
class Choice:
    """A setting that a request runs under.

    Attributes
    ----------
    spec : str
        The whole pipeline as ``vtc.parse`` reads it, ``"unpruned"`` for the stock model.
    pruner : str or None
        The method without its keep.
    keep : int, float or None
        What is kept, where one number says it.
    """

    spec: str = UNPRUNED
    pruner: str | None = None
    keep: int | float | None = None

    @classmethod
    def of(cls, pipeline: Pipeline) -> Choice:
        """The setting of some methods."""
        spec = format_pipeline(pipeline)
        keep = pipeline[0].keep if len(pipeline) == 1 else None
        return cls(spec, without_keep(pipeline), keep)


def without_keep(pipeline: Pipeline) -> str:
    """A pipeline's text; of a single method without its keep."""
    if len(pipeline) > 1:
        return format_pipeline(pipeline)
    given = {name: value for name, value in pipeline[0].params().items() if name != "keep"}
    inner = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"{pipeline[0].name}({inner})" if inner else pipeline[0].name


@dataclass(frozen=True)
class Allowed:
    """What requests may choose.

    Attributes
    ----------
    default : Choice
        What they get that say nothing.
    settings : sequence of str
        Methods as they may be asked for, their keep aside (``without_keep``).
    free : frozenset of str
        Names of methods whose parameters a request may set, those that are numbers or switches.
    unpruned : bool
        Whether the stock model may be asked for.
    low, high : int or float, optional
        The range of keep, tokens per image or a fraction of them; open where left out.
    """

    default: Choice = field(default_factory=Choice)
    settings: Sequence[str] = ()
    free: frozenset[str] = frozenset()
    unpruned: bool = True
    low: int | float | None = None
    high: int | float | None = None

    @classmethod
    def read(
        cls,
        pruner: str | None,
        keep: int | float | None,
        allow: Sequence[str],
        low: int | float | None = None,
        high: int | float | None = None,
    ) -> Allowed:
        """What a server's options say.

        Parameters
        ----------
        pruner, keep
            The method of requests that name none; None is the stock model.
        allow : sequence of str
            Methods, ``"dart(...)"`` with any parameters, ``"unpruned"``.
        low, high
            The range of keep.

        Raises
        ------
        TypeError, ValueError
            For what is no method, and a default that is out of range.
        """
        default = Choice() if pruner is None else Choice.of(parse(pruner, keep=keep))
        settings = [] if default.pruner is None else [default.pruner]
        free = []
        for text in allow:
            if text.endswith(ANY):
                free.append(parse(text.removesuffix(ANY))[0].name)
            elif text != UNPRUNED:
                settings.append(without_keep(parse(text)))
        bounds = [
            None if bound is None else check_keep(bound, name)
            for bound, name in ((low, "--min-keep"), (high, "--max-keep"))
        ]
        if None not in bounds and (type(low) is not type(high) or low > high):  # type: ignore[operator]
            raise ValueError(f"--min-keep {low} and --max-keep {high} must be both tokens or both fractions, in order")
        shown_settings = tuple(dict.fromkeys([*settings, *(name for name in free if name not in settings)]))
        found = cls(default, shown_settings, frozenset(free), UNPRUNED in allow or pruner is None, *bounds)
        if pruner is not None:
            try:
                found._check_keeps(parse(default.spec))
            except Refusal as error:
                raise ValueError(f"--keep {keep}: {error.message}") from None
        return found

    def choose(self, given: Any) -> Choice:
        """The setting that a request's ``vtc`` field asks for.

        Raises
        ------
        Refusal
            If it is not allowed, or says nothing that can be done.
        """
        if given is None:
            return self.default
        asked = object_of(given, "vtc")
        odd = [key for key in asked if key not in ("pruner", "keep")]
        if odd:
            raise Refusal(f"vtc has no field {shown(odd[0])}: pruner and keep are known", param="vtc")
        keep = asked.get("keep")
        if "pruner" in asked and asked["pruner"] in (None, UNPRUNED):
            if keep is not None:
                raise Refusal("vtc.keep needs a method: with pruner null everything is kept", param="vtc.keep")
            if not self.unpruned:
                raise Refusal(f"the unpruned model is not offered here. {self.offered()}", param="vtc.pruner")
            return Choice()
        if keep is not None:
            try:
                keep = check_keep(keep, "vtc.keep")
            except (TypeError, ValueError) as error:
                raise Refusal(str(error), param="vtc.keep") from None
        if "pruner" not in asked:
            return self._with_keep(keep)
        return self._named(text_of(asked["pruner"], "vtc.pruner"), keep)

    def offered(self) -> str:
        """One sentence: the methods that may be asked for, and the range."""
        names = [f"{name}{ANY}" if name in self.free else name for name in self.settings]
        names += ["null (unpruned)"] if self.unpruned else []
        return f"Offered are: {', '.join(names)}{self.range_words()}."

    def range_words(self) -> str:
        """The range of keep, as an addition to a sentence; empty where there is none."""
        low = "" if self.low is None else f" from {self.low}"
        high = "" if self.high is None else f" up to {self.high}"
        return f"; keep{low}{high}" if low or high else ""

    def _with_keep(self, keep: int | float | None) -> Choice:
        """The default method at another keep."""
        if keep is None:
            return self.default
        if self.default.pruner is None:
            raise Refusal(f"vtc.keep needs vtc.pruner: this server has no method set. {self.offered()}", param="vtc")
        pipeline = parse(self.default.pruner)
        if not can_be_told(self.default.pruner):
            raise Refusal(f"vtc.keep does not apply: {self.default.pruner} says itself what it keeps", param="vtc.keep")
        return self._checked(parse(pipeline, keep=keep))

    def _named(self, text: str, keep: int | float | None) -> Choice:
        """A method by its text."""
        if len(text) > LONGEST:
            raise Refusal(f"vtc.pruner has {len(text)} characters, at most {LONGEST} are read", param="vtc.pruner")
        # looked at before anything is built: a method may open the file that a parameter names
        if not self._may_build(text):
            raise Refusal(f"vtc.pruner {shown(text)} is not offered here. {self.offered()}", param="vtc.pruner")
        try:
            pipeline = parse(text, keep=keep)
        except (TypeError, ValueError, OverflowError):
            raise Refusal(f"vtc.pruner {shown(text)} can't be read. {self.offered()}", param="vtc.pruner") from None
        if without_keep(pipeline) not in self.settings and not all(p.name in self.free for p in pipeline):
            raise Refusal(f"vtc.pruner {shown(text)} is not offered here. {self.offered()}", param="vtc.pruner")
        default = self.default.keep
        if len(pipeline) == 1 and needs_keep(pipeline[0]):
            if default is None:
                raise Refusal(f"vtc.pruner {shown(text)} needs vtc.keep, such as 64 or 0.25", param="vtc.keep")
            pipeline = parse(pipeline, keep=default)
        if any(map(needs_keep, pipeline)):
            raise Refusal(f"each method of vtc.pruner {shown(text)} must say its keep", param="vtc.pruner")
        return self._checked(pipeline)

    def _may_build(self, text: str) -> bool:
        """Whether a text's methods are offered, and no text among their parameters is the request's own."""
        try:
            calls = split_pipeline(text)
            offered = [split_pipeline(setting) for setting in self.settings]
        except ValueError:
            return False
        if any(_without_keeps(calls) == _without_keeps(known) for known in offered):
            return True
        names = {name for known in offered for name, _ in known}
        return {name for name, _ in calls} <= names and not any(map(_holds_text, calls))

    def _checked(self, pipeline: Pipeline) -> Choice:
        self._check_keeps(pipeline)
        return Choice.of(pipeline)

    def _check_keeps(self, pipeline: Pipeline) -> None:
        for pruner in pipeline:
            if pruner.keep is not None:
                self._check_bound(pruner.keep, self.low, "least")
                self._check_bound(pruner.keep, self.high, "most")

    def _check_bound(self, keep: int | float, bound: int | float | None, which: str) -> None:
        if bound is None:
            return
        unit = "tokens per image" if isinstance(bound, int) else "a fraction"
        if type(keep) is not type(bound):
            raise Refusal(f"keep must be {unit} on this server, at {which} {bound}; got {keep}", param="vtc.keep")
        if (keep < bound) if which == "least" else (keep > bound):
            raise Refusal(f"keep={keep} is out of this server's range: at {which} {bound}", param="vtc.keep")


def can_be_told(text: str) -> bool:
    """Whether a method's text leaves it open what is kept."""
    pipeline = parse(text)
    return len(pipeline) == 1 and takes_keep(pipeline[0])


def _without_keeps(calls: Calls) -> Calls:
    """A single method without its keep; a pipeline as it is."""
    if len(calls) > 1:
        return calls
    return [(name, {key: value for key, value in given.items() if key != "keep"}) for name, given in calls]


def _holds_text(call: tuple[str, Any]) -> bool:
    """Whether a parameter is a text or holds one: it might be the name of a file, which no client may choose."""

    def holds(value: Any) -> bool:
        if isinstance(value, (list, tuple, set)):
            return any(map(holds, value))
        return isinstance(value, (str, bytes))

    return any(map(holds, call[1].values()))
