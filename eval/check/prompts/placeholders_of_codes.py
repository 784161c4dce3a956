"""Pictures that become codes of a codebook, and so words of the vocabulary: Emu3, Apertus 1.5."""

from __future__ import annotations

from typing import Any

from vtc.eval.check.tiny_model.token_ids import FIRST_SPECIAL, VOCABULARY, WORDS, Tokens

from .placeholders import Item
from .placeholders_by_size import Packed
from .placeholders_of_sound import Sound

CODES, CHANNELS = 24, 32  # channels are normalized in 32 groups
FIRST_CODE = VOCABULARY - CODES - 20  # behind the special tokens, in front of the marks around pictures


class Codes(Packed):
    """A code for each 2 x 2 pixels, and a placeholder behind each row of them for the end of the row: Emu3."""

    framed = True
    stride = 2
    sizes = ((8, 6), (4, 4), (4, 8), (8, 8))

    def defaults(self, config: dict[str, Any]) -> None:
        """The vocabulary's names, which come from the tokenizer; without them no model can be built."""
        if config.get("vocabulary_map") is None:
            names = vocabulary(config["text_config"]["vocab_size"], config["vq_config"])
            config.update(vocabulary_map=names, image_token_id=names["<image>"])

    def geometry(self, config: dict[str, Any]) -> None:
        """Few codes, two levels of convolutions."""
        config["vq_config"].update(
            base_channels=CHANNELS,
            channel_multiplier=[1, 1],
            attn_resolutions=[1],
            hidden_size=CHANNELS,
            num_res_blocks=1,
            codebook_size=CODES,
        )
        names = {f"<|visual token {i:06d}|>": FIRST_CODE + i for i in range(CODES)}
        config["vocabulary_map"] = {"<image>": FIRST_SPECIAL, "<|extra_200|>": FIRST_SPECIAL + 1, **names}
        config["image_token_id"] = FIRST_SPECIAL

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Its size in words, then the placeholders, those of the rows' ends among them."""
        rows, cols = (side // self.stride for side in item.size)
        return [tokens.open, WORDS[0] + rows, WORDS[0] + cols, *[tokens.image] * left.pop(0), tokens.close]


class CodeRows(Codes):
    """Row ends are tokens between the placeholders; audio has codes of its own behind those of pictures: Apertus."""

    def defaults(self, config: dict[str, Any]) -> None:
        """Nothing: its codes stand in a row in the vocabulary."""

    def geometry(self, config: dict[str, Any]) -> None:
        """Few codes, two levels of convolutions; a small audio tokenizer."""
        config["vision_config"].update(
            base_channels=CHANNELS,
            latent_channels=CHANNELS,
            embed_dim=8,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            resolution=8,
            attn_resolutions=[4],
            codebook_size=CODES,
        )
        config["audio_config"].update(
            num_filters=4,
            num_lstm_layers=1,
            hidden_size=32,
            codebook_dim=32,
            codebook_size=8,
            decoder_hidden_size=32,
            decoder_intermediate_size=32,
            decoder_num_layers=1,
            upsampling_ratios=[4, 2],
        )
        self.sound = Sound(0, (48, 30, 72), "input_values", "padding_mask")  # a code for each eight
        config.update(image_token_offset=FIRST_CODE, audio_token_offset=FIRST_CODE + CODES)

    def item_ids(self, item: Item, left: list[int], tokens: Tokens) -> list[int]:
        """Its size in words, then its rows."""
        rows, cols = (side // self.stride for side in item.size)
        cells = [[tokens.image] * cols for _ in range(rows)]
        if sum(map(len, cells)) != left.pop(0):
            raise ValueError(f"{rows} rows of {cols} codes are not what the model makes of a picture of {item.size}")
        lines = [token for cell in cells for token in (*cell, tokens.line)][:-1]
        return [tokens.open, WORDS[0] + rows, WORDS[0] + cols, *lines, tokens.close]


def vocabulary(size: int, codebook: dict[str, Any]) -> dict[str, int]:
    """Names of the last words of a vocabulary, as many as the codebook has codes, and of the two tokens in front."""
    first = size - codebook["codebook_size"]
    names = {f"<|visual token {i:06d}|>": first + i for i in range(codebook["codebook_size"])}
    return {"<image>": first - 2, "<|extra_200|>": first - 1, **names}
