"""What one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a request; every one is an option of ``vtc serve``.

    Attributes
    ----------
    body_mb : int
        Of the whole request, pictures included.
    picture_megapixels : int
        Of one picture; larger ones are refused before they are decoded.
    pictures : int
        In one request, earlier turns included.
    text_chars : int
        All texts of a request together.
    prompt_tokens : int
        Of a prompt with all its visual tokens; the model's own context may be shorter.
    max_tokens : int
        Longest answer.
    seconds : float
        From the request's arrival to the end of its answer.
    queue : int
        Requests that wait while one is answered.
    remote_pictures : bool
        Whether pictures may be given by their address on the web.
    """

    body_mb: int = 20
    picture_megapixels: int = 32
    pictures: int = 8
    text_chars: int = 100_000
    prompt_tokens: int = 16384
    max_tokens: int = 1024
    seconds: float = 120.0
    queue: int = 16
    remote_pictures: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "queue" else 1
            if field.name != "remote_pictures" and not value >= least:
                raise ValueError(f"--{field.name.replace('_', '-')} {value} is out of range: at least {least}")

    @property
    def body_bytes(self) -> int:
        """Bytes of a request."""
        return self.body_mb << 20

    @property
    def pixels(self) -> int:
        """Pixels of a picture."""
        return self.picture_megapixels * 1_000_000
