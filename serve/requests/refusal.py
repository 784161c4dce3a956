"""A request that is not answered: why, in words, in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


class Refusal(Exception):
    """What the client is told; never an exception's text, a path or a trace.

    Parameters
    ----------
    message : str
        What is wrong, what is allowed and what to do.
    status : int
        Of HTTP; 400 is the client's to correct.
    param : str, optional
        The field that is meant.
    code : str, optional
        A word for programs.
    headers : mapping, optional
        Further headers of the answer.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = KINDS.get(self.status, "invalid_request_error")
        message = f"{self.message} (request {request_id})" if self.status >= 500 else self.message
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}
