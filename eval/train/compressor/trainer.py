"""transformers' Trainer for a method's network: two learning rates, counts by step, checkpoints that go on exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from vtc.eval.train.compressor.live_network import Subject

from .answered_questions import prompt_width
from .options import CompressorOptions

WARMUP = 0.03
LEARNT = "learnt.safetensors"  # in a checkpoint: all that learns, which an adapter's folder lacks a part of


def arguments_of(options: CompressorOptions, folder: Path) -> TrainingArguments:
    """What the Trainer is told."""
    less_memory: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(WARMUP * options.steps)),
        weight_decay=0.0,
        bf16=options.bf16,
        seed=options.seed,
        data_seed=options.seed,
        save_steps=options.save_every,
        save_total_limit=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        use_cpu=options.device == "cpu" or not torch.cuda.is_available(),
        ddp_find_unused_parameters=True,  # a count may leave a part of a network out
        **(less_memory if options.checkpointing else {}),
    )


class Watch(TrainerCallback):
    """Tells of every step, and keeps what learns beside every checkpoint."""

    def __init__(self, model: nn.Module, told: Callable[[int, float | None], object], stop_after: int | None):
        self.model, self.told, self.stop_after = model, told, stop_after

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """See transformers."""
        if logs and "loss" in logs:
            self.told(state.global_step, float(logs["loss"]))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See transformers."""
        if state.is_world_process_zero:
            place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            learnt = {n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
            save_file(learnt, place / LEARNT)
        if self.stop_after is not None and state.global_step >= self.stop_after:
            raise KeyboardInterrupt


class CompressorTrainer(Trainer):
    """Trains a ``Subject``: the tokens of every step are those that ``Subject.count_at`` draws for it."""

    def __init__(self, subject: Subject, options: CompressorOptions, **given: Any):
        self.subject, self.options = subject, options
        super().__init__(model=subject.model, **given)
        self.model_accepts_loss_kwargs = False  # the loss is the mean over a batch's answers

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """AdamW; what is new and the language model have rates of their own."""
        if self.optimizer is None:
            fresh, language = self.subject.fresh, self.subject.language
            groups = [{"params": fresh, "lr": self.options.rate}, {"params": language, "lr": self.options.lm_rate}]
            self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> torch.Tensor:
        """One batch."""
        self.subject.keep(self.subject.count_at(self.state.global_step))
        self.subject.teach(inputs["labels"])
        with self.subject.asked(prompt_width(inputs["labels"])):
            loss: torch.Tensor = super().training_step(model, inputs, *given, **named)
        return loss

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        """See transformers."""
        return self.subject.loss(super().compute_loss(*given, **named))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = load_file(Path(resume_from_checkpoint) / LEARNT)
        with torch.no_grad():
            for name, weight in self.subject.model.named_parameters():
                if name in stored:
                    weight.copy_(stored[name])


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole."""
    if not folder.is_dir():
        return None
    found: str | None = get_last_checkpoint(str(folder))
    if found is not None and not (Path(found) / LEARNT).is_file():
        whole = [
            p for p in folder.glob("checkpoint-*") if (p / LEARNT).is_file() and (p / "trainer_state.json").is_file()
        ]
        found = str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None
    return found
