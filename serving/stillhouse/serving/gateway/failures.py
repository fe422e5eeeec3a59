"""What a client is told when a request cannot be served: OpenAI's error object, with a status that its client library understands."""

from typing import Any

import orjson

from stillhouse.schemas.errors import StillhouseError


class ApiError(StillhouseError):
    """An answer that is an error.

    Args:
        status: the HTTP status.
        what: what is wrong, for the caller to read.
        code: one word for programs, and the label of metrics.
        param: the field of the request that is wrong.
        fix: what the caller can do.
    """

    def __init__(self, status: int, what: str, *, code: str, param: str | None = None, fix: str = "") -> None:
        self.status, self.code, self.param = status, code, param
        super().__init__(what, fix=fix)

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": str(self), "type": _kind(self.status), "param": self.param, "code": self.code}}

    def json(self) -> bytes:
        """The error object as bytes."""
        return orjson.dumps(self.body())

    def event(self) -> bytes:
        """The error as the last event of a stream that has begun."""
        return b"data: " + self.json() + b"\n\n"


class UpstreamError(ApiError):
    """The teacher did not answer as it must."""


def _kind(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
