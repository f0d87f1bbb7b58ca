"""What is not done, in OpenAI's error form."""

from __future__ import annotations

from rlhf_kit.errors import UserError
from rlhf_kit.generation.engine import Busy, Closed

INVALID = "invalid_request_error"


class Refused(Exception):
    """`param`: the field of the request that it lies at."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    @property
    def body(self) -> dict:
        kind = {429: "rate_limit_error"}.get(self.status, INVALID if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": "1"} if self.status in (429, 503) else {}


def refusal_of(error: Exception) -> Refused:
    """What a client is told of a fault: of one in the server itself, no more than that there was one."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(f"{error}.", None, 429, "rate_limit_exceeded")
    if isinstance(error, Closed):
        return Refused(f"{error}.", None, 503, "unavailable")
    if isinstance(error, UserError):
        is_long = "the context of" in str(error)
        return Refused(str(error), None, 400, "context_length_exceeded" if is_long else None)
    return Refused("The server failed to answer; its log says why.", None, 500, "internal_error")
