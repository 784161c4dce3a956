"""Questions with their answers as a model is trained on them: by its own chat template, loss on the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.prompts import TOKEN_INPUTS, message_inputs, one_turn, pad_id

IGNORED = -100


class Questions(Dataset):
    """The questions of a set, one a sample."""

    def __init__(self, tasks: TaskSet):
        videos = sum(q.kind != "image" for q in tasks.questions)
        if videos:
            raise NotImplementedError(f"vtc train shows pictures; {videos} of these questions are about videos")
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
        batch = message_inputs(self.processor, chats, padding=True, padding_side="left")
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
        """Pictures and question as messages."""
        pictures = [{"type": "image", "image": picture} for picture in self.tasks.visuals(question)]
        return one_turn(self.processor, question.question, pictures)

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


def prompt_width(labels: torch.Tensor) -> int:
    """The column at which the answers of a batch begin."""
    return int((labels != IGNORED).any(0).nonzero()[0])
