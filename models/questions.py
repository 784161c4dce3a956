"""The text of a prompt behind its pictures, as words: for methods that hand the question to a text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Run

SET_IT = "set model.vtc.tokenizer = processor, or pass vtc.compress(..., tokenizer=processor)"


class Words:
    """The tokenizer of a wrapped model: the one given, or the one that lies beside the model's files.

    Parameters
    ----------
    model : nn.Module
        Its ``name_or_path`` says where to look.
    given : tokenizer or processor, optional
        What the user set.
    """

    def __init__(self, model: Any, given: Any = None):
        self.model = model
        self.tokenizer = given

    @property
    def tokenizer(self) -> Any:
        """What the user set, or what was found; None before anybody asked."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, given: Any) -> None:
        found = getattr(given, "tokenizer", given)  # a processor has one
        if found is not None and not callable(getattr(found, "decode", None)):
            raise TypeError(f"tokenizer must be a tokenizer or a processor with one, got {type(given).__name__}")
        self._tokenizer = found

    def find(self) -> Any:
        """The tokenizer; the first time it is looked for on this machine, never on the network.

        Raises
        ------
        ValueError
            If none was set and none is found.
        """
        if self._tokenizer is None:
            place = getattr(self.model, "name_or_path", "") or getattr(self.model.config, "_name_or_path", "")
            if not place:
                raise ValueError(f"this method reads the question's words and needs the model's tokenizer: {SET_IT}")
            from transformers import AutoTokenizer

            try:
                self.tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"this method reads the question's words, and no tokenizer was found for {place!r} on this "
                    f"machine: {SET_IT}"
                ) from error
        return self._tokenizer


def questions(run: Run) -> list[str]:
    """The text of each sample behind its last visual token, without special tokens.

    Notes
    -----
    Reads token ids off the device. Words of a chat template that are no special tokens (``ASSISTANT:``) stay; a
    sample without pictures gives its whole text; candidates of assisted decoding are left out.

    Raises
    ------
    ValueError
        If the model was called with embeddings instead of token ids, or no tokenizer is there, or the method did not
        say ``uses_question``.
    """
    if run.words is None:
        raise ValueError("questions() is for methods that declare uses_question = True, so nothing was kept for it")
    if run.token_ids is None:
        raise ValueError(
            "this method reads the question's words, but the model was called without input_ids (inputs_embeds only): "
            "pass input_ids, or take a method that needs no words"
        )
    if run.questions is None:
        tokenizer = run.words.find()
        ends = [0] * len(run.token_ids)
        columns = run.batch.columns.cpu()
        for i, span in enumerate(run.batch.spans):
            ends[span.sample] = max(ends[span.sample], int(columns[i, run.batch.lengths[i] - 1]) + 1)
        ids, valid = run.token_ids.cpu(), run.valid.cpu()
        stop = ids.shape[1] if run.prompt is None else max(0, run.prompt - run.past)
        real = [ids[b, end:stop][valid[b, end:stop]] for b, end in enumerate(ends)]
        run.questions = [tokenizer.decode(r, skip_special_tokens=True).strip() for r in real]
    return run.questions
