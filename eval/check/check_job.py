"""Runs the check of a model: builds the small one, and all contracts under all settings and attentions."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from vtc.api import compress
from vtc.eval.check.prompts.build_prompts import Prompts, kind_of
from vtc.eval.check.tiny_model.build import build, uncompiled_flex, with_attention
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.check.tiny_model.shrink import DEPTH, TOWER_DEPTH, completed, shrink
from vtc.eval.check.tiny_model.token_ids import tokens_of
from vtc.models.layout.families import family_of
from vtc.models.layout.model_parts import locate
from vtc.models.stock.transformers_api import holds_columns, new_cache
from vtc.models.try_without_weights import model_without_weights
from vtc.pipeline_text import parse

from .contracts import CONTRACTS, FLEX_TOKENS, NEEDS, OF_FLEX, NothingToSee, Wrong, close
from .masked_reference import Uncheckable
from .model_under_test import Setting, Subject
from .names import ATTENTIONS, STAGES
from .results import EXACT, FAILED, NOT_RUN, REFUSED, WRONG, Outcome, Result

LOOK = 24  # layers among which the pipeline's are looked for
OWN = "as asked"
REFUSALS = (NotImplementedError, ValueError, TypeError)


@dataclass
class CheckOptions:
    """What ``vtc check`` was asked for.

    Attributes
    ----------
    model : str
        As for ``config_of``.
    attentions, stages : sequence of str
        Of ``ATTENTIONS`` and ``STAGES``.
    pruner, keep
        A setting of the user's instead of the stages.
    tokens : int
        Generated on the main prompt.
    parts : dict, optional
        Module paths of a family that vtc does not know.
    """

    model: str
    attentions: Sequence[str] = tuple(ATTENTIONS)
    stages: Sequence[str] = tuple(STAGES)
    pruner: str | None = None
    keep: int | float | None = None
    tokens: int = 20
    parts: dict[str, str] | None = None

    def settings(self, config: Any) -> list[Setting]:
        """What is asked of vtc in turn, about a model of this configuration."""
        if self.pruner is not None:
            return [Setting(OWN, parse(self.pruner, keep=self.keep), self.parts)]
        layers = behind_attention(config) if "pipeline" in self.stages else ()
        return [Setting(stage, parse(STAGES[stage].format(*layers)), self.parts) for stage in self.stages]


def behind_attention(config: Any) -> tuple[int, int]:
    """Two layers of the small model right behind which attention can be read: 1 and 3 where all layers attend."""
    try:
        small, _ = shrink(config, kind_of(config).geometry, LOOK)
        kept = new_cache(small.get_text_config()).layers
    except Exception:  # ``small_model`` says why there is none
        return 1, 3
    found = [i + 1 for i, layer in enumerate(kept) if holds_columns(layer)]
    return (1, 3) if {1, 3} <= {*found} or not found else (found[0], found[min(1, len(found) - 1)])


def run_check(
    options: CheckOptions, progress: Callable[[int, int, str], None] = lambda done, total, what: None
) -> Result:
    """Check a model.

    Parameters
    ----------
    options : CheckOptions
        What to check.
    progress : callable
        Is told how many outcomes are there, of how many, and what comes next.

    Raises
    ------
    ValueError, OSError
        If there is no such model, or no small one can be built of it.
    """
    start = time.perf_counter()
    config = config_of(options.model)
    family = family_of(config)
    result = Result(options.model, config.model_type, family.name if family else "unknown", "", _versions())
    with _quiet(), torch.no_grad():
        whole = completed(config, kind_of(config).defaults)
        settings = options.settings(whole)
        why = "" if family is not None or options.parts else _refused_at_full_size(whole)
        if why:
            result.outcomes.append(Outcome("wrapping", "all", "all", REFUSED, why))
        else:
            _check(options, settings, whole, result, progress)
    result.seconds = round(time.perf_counter() - start, 2)
    return result


def _check(options: CheckOptions, settings: list[Setting], config: Any, result: Result, progress: Any) -> None:
    model, prompts, result.about = small_model(config, options.parts, depths(settings, config))
    shapes = prompts.shapes()
    usable = [n for n in CONTRACTS if NEEDS.get(n, "ragged") in shapes]
    plan = {a: [n for n in usable if a != "flex" or n in OF_FLEX] for a in options.attentions}
    total = len(settings) * sum(map(len, plan.values()))
    for attention, names in plan.items():
        with uncompiled_flex() if attention == "flex" else nullcontext():
            subject = _subject(attention, model, prompts, options)
            for setting in settings:
                refused = subject if isinstance(subject, str) else _refusal(subject, setting)
                for name in names:
                    progress(len(result.outcomes), total, f"{attention}, {setting.stage}: {name}")
                    if isinstance(subject, str):
                        outcome = Outcome(name, setting.stage, attention, NOT_RUN, subject)
                    elif refused:
                        outcome = Outcome(name, setting.stage, attention, REFUSED, refused)
                    else:
                        outcome = _outcome(name, subject, setting)
                    result.outcomes.append(outcome)
    progress(total, total, "")


def depths(settings: list[Setting], config: Any) -> tuple[int, int]:
    """Layers that decoder and tower need, so that each setting finds those before which it prunes."""
    whole = config.get_text_config().num_hidden_layers
    stops = [stop for setting in settings for p in setting.pipeline for stop in p.stops(whole)]
    layers = {at: [stop.layer or 0 for stop in stops if stop.stage == at] for at in ("decoder", "vision")}
    text, tower = max([0, *layers["decoder"]]), max([0, *map(abs, layers["vision"])])
    return max(DEPTH, text + 3), max(TOWER_DEPTH, tower + 3)


def small_model(
    config: Any, parts: dict[str, str] | None = None, depth: tuple[int, int] = (DEPTH, TOWER_DEPTH)
) -> tuple[Any, Prompts, str]:
    """A small eager model of a configuration, prompts for it, and words about it.

    Raises
    ------
    ValueError
        If no small model can be built and run, which is no word about vtc.
    """
    kind = kind_of(config)
    try:
        config = completed(config, kind.defaults)
        small, layers = shrink(config, kind.geometry, *depth)
        model = build(small)
        prompts = Prompts(locate(model, parts).core, kind, tokens_of(small))
        model(**prompts["ragged"].inputs)
    except Exception as error:
        if os.environ.get("VTC_TRACEBACK"):
            raise
        raise ValueError(
            f"vtc check can't make a small model of this {config.model_type!r} configuration, which says nothing about "
            f"the model itself: {type(error).__name__}: {error}"
        ) from error
    text = small.get_text_config()
    kinds = getattr(text, "layer_types", None) or []
    listed = ", ".join(f"{kinds.count(k)} {k.replace('_', ' ')}" for k in dict.fromkeys(kinds))
    depth = config.get_text_config().num_hidden_layers
    about = f"{len(layers)} of {depth} {text.model_type} layers{f' ({listed})' if listed else ''}"
    return model, prompts, f"random weights, {about}, width {text.hidden_size}"


def _subject(attention: str, model: Any, prompts: Prompts, options: CheckOptions) -> Subject | str:
    """The model under an attention implementation, or why there is none."""
    if attention == "flash":
        return "flash attention needs a GPU and half precision, in which nothing is exact: vtc check does not run it"
    try:
        other = with_attention(model, ATTENTIONS[attention])
        parts, truth = locate(other, options.parts), locate(model, options.parts)
        tokens = FLEX_TOKENS if attention == "flex" else options.tokens
        subject = Subject(attention, parts, truth, prompts, tokens)
        plain, inputs = subject.plain("ragged"), prompts["ragged"].inputs
        width = inputs["input_ids"].shape[1]
        eager = model(**inputs, position_ids=plain.positions[..., :width], use_cache=False).logits
    except Exception as error:
        return f"the untouched model does not run under {attention} attention here: {_short(error)}"
    try:
        close(plain.logits, eager, "prefill", inputs["attention_mask"].bool())
    except Wrong as error:
        return f"transformers' own {attention} and eager attention do not agree on the untouched model: {error}"
    return subject


def _refusal(subject: Subject, setting: Setting) -> str:
    """Why vtc does not wrap the model with this setting; empty if it does."""
    try:
        with setting.compressed(subject.model):
            return ""
    except REFUSALS as error:
        return str(error)


def _outcome(name: str, subject: Subject, setting: Setting) -> Outcome:
    stage, attention = setting.stage, subject.attention
    try:
        return Outcome(name, stage, attention, EXACT, difference=CONTRACTS[name](subject, setting))
    except Wrong as error:
        return Outcome(name, stage, attention, WRONG, str(error), error.difference)
    except (NothingToSee, Uncheckable) as error:
        return Outcome(name, stage, attention, NOT_RUN, str(error))
    except Exception as error:
        if isinstance(error, REFUSALS) and _raised_by_vtc(error.__traceback__):
            return Outcome(name, stage, attention, REFUSED, str(error))
        if os.environ.get("VTC_TRACEBACK"):
            raise
        return Outcome(name, stage, attention, FAILED, _short(error))


def _raised_by_vtc(trace: TracebackType | None) -> bool:
    """Whether vtc itself, and not what it calls, raised an error."""
    module = ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module.startswith("vtc.") and not module.startswith("vtc.eval.")


def _refused_at_full_size(config: Any) -> str:
    """What vtc says to a model that it can't carry, at full size but without weights; empty where it can."""
    try:
        model = model_without_weights(config)
    except NotImplementedError as error:
        raise ValueError(str(error)) from None
    except Exception:  # a default configuration that no model can be built of; the small one's says more
        return ""
    try:
        compress(model, STAGES["input"])
    except REFUSALS as error:
        return str(error)
    return ""


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _versions() -> dict[str, str]:
    from vtc.eval.vlm.loading import software

    found = software()
    return {name: found[name] for name in ("vtc", "torch", "transformers")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks on small random models."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
