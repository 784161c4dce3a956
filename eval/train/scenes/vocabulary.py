"""The closed word-level vocabulary of the bundled model.

A word carries the marker of the space before it ("▁red"), as in the usual sub-word tokenizers, so
that decoding restores the text exactly: the number 47 is the two tokens "▁4" and "7".
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .palette import ALL_COLORS, ALL_SHAPES, EXTREMES, LETTERS, QUADRANTS

SPECIAL_TOKENS = ("<pad>", "<s>", "<unk>", "</s>", "<image>", "USER:", "ASSISTANT:")
PAD_ID, BOS_ID, UNKNOWN_ID, EOS_ID, IMAGE_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL_TOKENS))
DIGITS = tuple("0123456789")
SIDES = ("left", "right", "top", "bottom")

_QUESTION_LINES = (
    "yes no what color shape shapes is are the there where how many",
    "in image any number on or a an does do not present contain",
    "contains this it of which show shows has have photo and with",
)
_PUNCTUATION = tuple("?,.!:")


def words() -> list[str]:
    """Return every word of the vocabulary that may follow a space."""
    listed = [
        *ALL_COLORS,
        *ALL_SHAPES,
        *LETTERS,
        *QUADRANTS,
        *SIDES,
        *EXTREMES,
        *DIGITS,
        *(word for line in _QUESTION_LINES for word in line.split()),
    ]
    return list(dict.fromkeys(listed))


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer.

    Returns
    -------
    tokenizers.Tokenizer
        Prepends ``<s>``; unknown words become ``<unk>``.
    """
    entries = [*SPECIAL_TOKENS, *(f"▁{word}" for word in words()), *DIGITS, *_PUNCTUATION]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex("▁?[0-9]"), "isolated"),
            pre_tokenizers.Split(Regex("[?,.!:]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS_ID)]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
