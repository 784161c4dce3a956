"""The tokenizer of a wrapped model, for methods that read the question's words."""

from __future__ import annotations

from typing import Any

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
