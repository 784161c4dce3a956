"""The text of a prompt behind its pictures, as words: for methods that hand the question to a text encoder."""

from __future__ import annotations

from .forward_state import Run


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
