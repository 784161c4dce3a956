"""The messages of a chat: roles, texts and pictures, as the processor's chat template takes them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .fields import object_of, shown, text_of
from .limits import Limits
from .pictures import address_of, bytes_of, check_picture, decode, is_remote
from .refusal import Refusal
from .remote_pictures import Fetcher

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
KEYS = ("role", "content", "name", "refusal", "annotations", "audio", "tool_calls", "function_call")
PICTURE_WORDS = re.compile(r"image|video|vision|img|pic", re.IGNORECASE)


@dataclass
class Picture:
    """A picture of a request: its address, and its bytes once they are here."""

    name: str
    url: str = field(repr=False)
    data: bytes = field(default=b"", repr=False)


@dataclass
class Chat:
    """Messages, each a role and its parts: texts and pictures in order."""

    messages: list[tuple[str, list[str | Picture]]]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [part for _, parts in self.messages for part in parts if isinstance(part, Picture)]

    @property
    def texts(self) -> list[str]:
        """All texts, in order."""
        return [part for _, parts in self.messages for part in parts if isinstance(part, str)]

    def bring(self, limits: Limits) -> None:
        """Have the bytes of all pictures here and their headers looked at; blocks while addresses are fetched.

        Raises
        ------
        Refusal
            For what can't be fetched, is no picture, or is too large.
        """
        left, deadline = limits.body_bytes, None
        for picture in self.pictures:
            if is_remote(picture.url):
                fetcher = Fetcher(most_bytes=left)
                deadline = deadline or time.monotonic() + fetcher.seconds  # of all of them together
                picture.data = fetcher.fetch(picture.url, picture.name, deadline)
                left -= len(picture.data)
            else:
                picture.data = bytes_of(picture.url, picture.name)
            picture.url = ""
            check_picture(picture.data, picture.name, limits)

    def for_template(self, limits: Limits) -> list[dict[str, Any]]:
        """Messages as a processor's chat template takes them, pictures decoded."""

        def part_of(part: str | Picture) -> dict[str, Any]:
            if isinstance(part, str):
                return {"type": "text", "text": part}
            picture: Image.Image = decode(part.data, part.name, limits)
            return {"type": "image", "image": picture}

        return [{"role": role, "content": [part_of(p) for p in parts]} for role, parts in self.messages]


def read_messages(given: Any, limits: Limits, placeholders: Sequence[str] = ()) -> Chat:
    """The ``messages`` of a request.

    Parameters
    ----------
    placeholders : sequence of str
        Texts that stand for pictures in this model's prompts; in a message's text they are refused.

    Raises
    ------
    Refusal
        Naming the message and what is wrong with it.
    """
    if not isinstance(given, list) or not given:
        raise Refusal("messages must be a list of at least one message", param="messages")
    messages = [_message(message, f"messages[{i}]", limits) for i, message in enumerate(given)]
    chat = Chat(messages)
    if messages[-1][0] != "user":
        raise Refusal("the last message must be the user's: there is nothing to answer", param="messages")
    if len(chat.pictures) > limits.pictures:
        raise Refusal(
            f"messages hold {len(chat.pictures)} pictures, at most {limits.pictures} are read",
            param="messages",
            code="too_many_images",
        )
    length = sum(map(len, chat.texts))
    if length > limits.text_chars:
        raise Refusal(
            f"messages hold {length:,} characters, at most {limits.text_chars:,} are read",
            param="messages",
            code="text_too_long",
        )
    for text in chat.texts:
        found = next((word for word in placeholders if word in text), None)
        if found is not None:
            raise Refusal(
                f"a text holds {found}, which stands for a picture in this model's prompts: leave it out, and give "
                "pictures as image_url parts",
                param="messages",
            )
    return chat


def _message(given: Any, name: str, limits: Limits) -> tuple[str, list[str | Picture]]:
    message = object_of(given, name)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refusal(f"{name}.role must be one of {', '.join(ROLES)}, got {shown(role)}", param=f"{name}.role")
    for key in message:
        if key not in KEYS or (key not in ("role", "content", "name") and message[key]):
            raise Refusal(f"{name} has a field {shown(key)}, which is not supported here", param=name)
    content = message.get("content")
    if isinstance(content, str):
        return ROLES[role], [text_of(content, f"{name}.content")]
    if not isinstance(content, list) or not content:
        raise Refusal(f"{name}.content must be a string or a list of parts", param=f"{name}.content")
    parts = [_part(part, f"{name}.content[{i}]", limits) for i, part in enumerate(content)]
    if role != "user":
        if any(isinstance(part, Picture) for part in parts):
            raise Refusal(f"{name}: only the user's messages may hold pictures", param=f"{name}.content")
        return ROLES[role], ["".join(part for part in parts if isinstance(part, str))]
    return ROLES[role], parts


def _part(given: Any, name: str, limits: Limits) -> str | Picture:
    part: Mapping[str, Any] = object_of(given, name)
    kind = part.get("type")
    if kind not in ("text", "image_url"):
        raise Refusal(f"{name}.type must be text or image_url, got {shown(kind)}", param=f"{name}.type")
    odd = [key for key in part if key not in ("type", kind)]
    if odd:
        raise Refusal(f"{name} has a field {shown(odd[0])}, which is not supported here", param=name)
    if kind == "text":
        return text_of(part.get("text"), f"{name}.text")
    url = address_of(part, name)
    if is_remote(url) and not limits.remote_pictures:
        raise Refusal(
            f"{name} is an address on the web, and this server fetches none: send the picture itself as a data URL",
            param=name,
            code="remote_images_off",
        )
    return Picture(name, url)


def placeholders_of(processor: Any) -> list[str]:
    """What stands for pictures in a model's prompts, as text: its processor's and its tokenizer's special tokens."""
    tokenizer = getattr(processor, "tokenizer", processor)
    own = [getattr(processor, name, None) for name in ("image_token", "video_token", "boi_token", "eoi_token")]
    special = [str(token) for token in getattr(tokenizer, "all_special_tokens", ())]
    added = [str(token) for token in getattr(tokenizer, "get_added_vocab", dict)()]
    found = [word for word in own if isinstance(word, str)]
    found += [word for word in (*special, *added) if PICTURE_WORDS.search(word) and word[:1] in "<[" and len(word) > 2]
    return list(dict.fromkeys(word for word in found if word))
