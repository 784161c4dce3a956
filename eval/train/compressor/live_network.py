"""The model in training: the method's network is a part of it for as long as the run lasts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vtc.api import compress
from vtc.eval.vlm.prompts import pad_id
from vtc.models.layout.model_parts import locate, unwrap
from vtc.models.layout.run_projector import projector_of
from vtc.pruners.registry import make_pruner, pruner_class
from vtc.pruners.trained.compressor import UNTRAINED, TrainedCompressor

from .answered_questions import IGNORED, prompt_width
from .first_captioner import first_captioner
from .options import CAPTION, CompressorOptions

NETWORK = "vtc_compressor"
LORA = r"(q|k|v|o|gate|up|down)_proj"
Draw = tuple[tuple[int, float], ...]


def counts_of(options: CompressorOptions) -> Draw:
    """Token counts with the share of steps that each has; empty where the method does not take one."""
    if options.keep is not None:
        return ((options.keep, 1.0),)
    if options.counts is not None:
        return tuple(zip(options.counts, options.shares or [1.0] * len(options.counts), strict=True))
    method = pruner_class(options.method)
    return method.training_counts if issubclass(method, TrainedCompressor) else ()


class Subject:
    """A model under its method, whose live network is ``model.vtc_compressor``.

    Attributes
    ----------
    model : nn.Module
        What is trained.
    pruner : TrainedCompressor
        The method that works on it now.
    """

    def __init__(self, model: nn.Module, options: CompressorOptions, batch: Mapping[str, Any], tokenizer: Any = None):
        self.model, self.counts, self.seed, self.stage = model, counts_of(options), options.seed, options.stage
        self.core = unwrap(model)
        self.fresh: list[nn.Parameter] = []
        self.language: list[nn.Parameter] = []
        made = make_pruner(options.method, keep=self.count_at(0), weights=options.weights or UNTRAINED)
        assert isinstance(made, TrainedCompressor)
        self.pruner = made
        if made.captions and options.weights is None:
            made.start = self._start(batch, tokenizer)
        compress(model, made, tokenizer=tokenizer)
        with torch.no_grad(), self.asked(prompt_width(batch["labels"])):
            model(**{k: v.to(next(model.parameters()).device) for k, v in batch.items() if k != "labels"})
        self._check_counts()
        self.network = made.built
        self.core.add_module(NETWORK, self.network)
        made.use(self.network, made.sizes)

    def _check_counts(self) -> None:
        """Refuse counts at which the network has nothing to do."""
        longest = max((len(span.columns) for span in self.core.vtc.report.spans), default=0)
        most = max((k for k, _ in self.counts), default=0)
        if most >= longest:
            raise ValueError(
                f"--counts or --keep {most}: a picture of the first question has {longest} visual tokens, and the "
                "network is not needed where all are kept; give fewer"
            )

    def count_at(self, step: int) -> int | None:
        """The tokens of one step, the same in every process and after a resumption; None where there is no choice."""
        if not self.counts:
            return None
        rng = random.Random(f"vtc-train/{self.seed}/{step}")
        return rng.choices([k for k, _ in self.counts], [share for _, share in self.counts])[0]

    @contextmanager
    def asked(self, width: int) -> Iterator[None]:
        """Prompts end before column `width`: what stands behind is no part of the question that methods read."""
        local = self.core.vtc.adapter.local
        before, local.prompt = local.prompt, width
        try:
            yield
        finally:
            local.prompt = before

    def _start(self, batch: Mapping[str, Any], processor: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What a new captioner is."""
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        ends, first = int(labels[labels != IGNORED][-1]), prompt_width(batch["labels"])
        return first_captioner(locate(self.core), int(ids[first - 1]), ends, pad_id(processor))

    def teach(self, labels: torch.Tensor) -> None:
        """In the captioner's stage: have it learn the answers of a batch."""
        if self.stage == CAPTION:
            self.network.taught = labels[:, prompt_width(labels) :]

    def loss(self, answers: torch.Tensor) -> torch.Tensor:
        """What is lowered: the captioner's loss in its stage, else that on the `answers`."""
        own: Any = self.network.loss if self.stage == CAPTION else answers
        return own

    def keep(self, count: int | None) -> None:
        """Work with `count` tokens from now on."""
        if count is not None and count != self.pruner.keep:
            self.pruner = self._like(count)
            compress(self.core, self.pruner)

    def _like(self, count: int) -> TrainedCompressor:
        other = replace(self.pruner, keep=count)
        other.about = self.pruner.about
        other.use(self.network, self.pruner.sizes)
        return other

    def free(self, parts: tuple[str, ...]) -> None:
        """Have `parts` learn and nothing else: ``fresh`` (network and projector) and ``language``."""
        found = locate(self.core)
        self.model.requires_grad_(False)
        fresh = self.pruner.learning(self.network, self.stage) if "compressor" in parts else []
        if "projector" in parts:
            fresh += [p for p in projector_of(found).parameters() if p.is_floating_point()]
        language: list[nn.Parameter] = []
        if "lora" in parts:
            language = [p for name, p in self.model.named_parameters() if "lora_" in name]
        elif "lm" in parts:
            own = {id(p) for p in fresh}
            head = self.core.get_output_embeddings() if hasattr(self.core, "get_output_embeddings") else None
            wanted = [*found.lm.parameters(), *(head.parameters() if isinstance(head, nn.Module) else ())]
            language = [p for p in dict.fromkeys(wanted) if p.is_floating_point() and id(p) not in own]
        for weight in (*fresh, *language):
            weight.requires_grad_(True)
        self.fresh, self.language = fresh, language

    def finish(self) -> None:
        """Take the network out of the model: it stays the method's."""
        self.core._modules.pop(NETWORK, None)


@contextmanager
def training(
    model: nn.Module, options: CompressorOptions, batch: Mapping[str, Any], tokenizer: Any = None
) -> Iterator[Subject]:
    """A ``Subject`` for the length of a run."""
    if "lora" in options.parts:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(options.seed)
        prefix = next(name for name, module in model.named_modules() if module is locate(model).lm)
        model = get_peft_model(model, LoraConfig(target_modules=rf"{prefix}\..*\.{LORA}", r=16, lora_alpha=32))
    subject = Subject(model, options, batch, tokenizer)
    try:
        yield subject
    finally:
        subject.finish()
