"""Questions with their answers as a model is trained on them: by its own chat template, loss on the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from vtc.eval.tasks.media.frames import Frames
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.prompts import TOKEN_INPUTS, message_inputs, one_turn, pad_id, takes_video

IGNORED = -100


class Questions(Dataset):
    """The questions of a set, one a sample."""

    def __init__(self, tasks: TaskSet):
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks.questions)

    def __getitem__(self, index: int) -> Question:
        return self.tasks.questions[index]


class Collator:
    """Makes a batch of questions: prompts padded on the left as they are answered, behind them the answers.

    So all prompts end at one column, and a method that reads the question reads no answer (``prompt_width``).
    ``labels [B, L]`` are the answers' tokens, each up to the first that ends it, ``IGNORED`` everywhere else.
    """

    def __init__(self, processor: Any, tasks: TaskSet):
        self.processor, self.tasks = processor, tasks
        self.tokenizer = processor.tokenizer
        ends = self.tokenizer.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends])} - {None}

    def __call__(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The inputs of one batch."""
        chats = [self.chat(q) for q in questions]
        batch = message_inputs(self.processor, chats, padding=True, padding_side="left", **self._times(questions))
        answers = [self.answer_ids(q) for q in questions]
        longest = max(map(len, answers))
        ids = torch.tensor([[*answer, *[pad_id(self.processor)] * (longest - len(answer))] for answer in answers])
        real = torch.tensor([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers])
        labels = torch.full_like(batch["input_ids"], IGNORED)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        given = {name: torch.zeros_like(ids) for name in TOKEN_INPUTS if name in batch}
        for name, behind in {**given, "input_ids": ids, "attention_mask": real}.items():
            before = mask if name == "attention_mask" else batch[name]
            batch[name] = torch.cat([before, behind.to(before)], dim=1)
        return {**batch, "labels": torch.cat([labels, ids.masked_fill(real == 0, IGNORED)], dim=1)}

    def chat(self, question: Question) -> list[dict[str, Any]]:
        """Pictures, or a video, and question as messages; models without videos are shown the frames."""
        visuals = self.tasks.visuals(question)
        if self._as_video(question):
            return one_turn(self.processor, question.question, [{"type": "video", "video": _frames(visuals).array}])
        return one_turn(self.processor, question.question, [{"type": "image", "image": p} for p in visuals])

    def _as_video(self, question: Question) -> bool:
        return question.kind != "image" and takes_video(self.processor)

    def _times(self, questions: Sequence[Question]) -> dict[str, Any]:
        """When the frames of the videos are shown, for the processor."""
        shown = [_frames(self.tasks.visuals(q)) for q in questions if self._as_video(q)]
        return {"video_metadata": [f.metadata for f in shown], "do_sample_frames": False} if shown else {}

    def answer_ids(self, question: Question) -> list[int]:
        """Tokens behind the prompt that the model is asked with, up to the first that ends the answer.

        Raises
        ------
        ValueError
            If the template writes a prompt that does not begin the whole chat.
        """
        turn = one_turn(self.processor, question.question, [{"type": "image"} for _ in question.media])
        write = self.processor.apply_chat_template
        answered = [*turn, {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}]
        prompt, whole = write(turn, add_generation_prompt=True), write(answered)
        if not whole.startswith(prompt):
            raise ValueError(
                "the chat template of this model writes an answered question otherwise than one that is to be "
                "answered, so vtc can't tell the answer's tokens"
            )
        found = list(self.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"])
        end = next((i + 1 for i, token in enumerate(found) if token in self.ends), len(found))
        return found[:end]


def _frames(visuals: Any) -> Frames:
    return visuals if isinstance(visuals, Frames) else Frames.of(visuals)


def prompt_width(labels: torch.Tensor) -> int:
    """The column at which the answers of a batch begin."""
    return int((labels != IGNORED).any(0).nonzero()[0])
