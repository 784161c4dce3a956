"""Questions with their answers as a model is trained on them: by its own chat template, loss on the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.prompts import one_turn

IGNORED = -100


class Questions(Dataset):  # type: ignore[type-arg]
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
    """Makes a batch of questions: padded on the left, so that every row ends with its answer.

    ``labels [B, L]`` are the answer's tokens up to the first that ends it, ``IGNORED`` everywhere else.
    """

    def __init__(self, processor: Any, tasks: TaskSet):
        self.processor, self.tasks = processor, tasks
        self.tokenizer = processor.tokenizer
        ends = self.tokenizer.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends])} - {None}

    def __call__(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The inputs of one batch."""
        chats = [self.chat(q) for q in questions]
        given = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
        batch = dict(
            self.processor.apply_chat_template(
                chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=given
            )
        )
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, question in enumerate(questions):
            answer = self.answer_ids(question)
            found = batch["input_ids"][row, -len(answer) :].tolist()
            if found != answer:
                raise ValueError(
                    f"the chat template of this model writes the answer {question.answer!r} otherwise in a batch than "
                    "by itself, so vtc can't tell which tokens to train on"
                )
            end = next((i + 1 for i, token in enumerate(answer) if token in self.ends), len(answer))
            start = labels.shape[1] - len(answer)
            labels[row, start : start + end] = torch.tensor(answer[:end])
        return {**batch, "labels": labels}

    def chat(self, question: Question) -> list[dict[str, Any]]:
        """Pictures, question and answer as messages."""
        pictures = [{"type": "image", "image": picture} for picture in self.tasks.visuals(question)]
        return self._with_answer(one_turn(self.processor, question.question, pictures), question)

    @staticmethod
    def _with_answer(turn: list[dict[str, Any]], question: Question) -> list[dict[str, Any]]:
        return [*turn, {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}]

    def answer_ids(self, question: Question) -> list[int]:
        """Tokens behind the prompt that the model is asked with.

        Raises
        ------
        ValueError
            If the template writes a prompt that does not begin the whole chat.
        """
        turn = one_turn(self.processor, question.question, [{"type": "image"} for _ in question.media])
        write = self.processor.apply_chat_template
        prompt, whole = write(turn, add_generation_prompt=True), write(self._with_answer(turn, question))
        if not whole.startswith(prompt):
            raise ValueError(
                "the chat template of this model writes an answered question otherwise than one that is to be "
                "answered, so vtc can't tell the answer's tokens"
            )
        return list(self.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"])
