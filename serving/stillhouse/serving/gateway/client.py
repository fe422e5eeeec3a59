"""The way back to a client: headers late, writes that do not wait for ever."""

import asyncio

from aiohttp import web

WRITE_S = 60.0
_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class _Stream(web.StreamResponse):
    """A stream whose first part follows its headers at once: they go out together."""

    _send_headers_immediately = False


class ClientGoneError(Exception):
    """The client left, or takes nothing."""


class Outlet:
    """The reply to one request.

    Args:
        request: the request.
        write_s: how long a client may take nothing.
    """

    def __init__(self, request: web.Request, write_s: float = WRITE_S) -> None:
        self._request, self._write_s = request, write_s
        self._response: web.StreamResponse | None = None
        self.headers: dict[str, str] = {}

    @property
    def begun(self) -> bool:
        """Whether the client has seen a part of a stream."""
        return self._response is not None

    def whole(self, status: int, data: bytes) -> web.Response:
        """A reply in one piece."""
        return web.Response(status=status, body=data, headers=self.headers | {"Content-Type": "application/json"})

    async def write(self, data: bytes) -> None:
        """Send a part of a stream.

        Raises:
            ClientGoneError: it cannot be sent.
        """
        await self._send(data, last=False)

    async def end(self, data: bytes) -> web.StreamResponse:
        """Send the last part of a stream.

        Raises:
            ClientGoneError: it cannot be sent.
        """
        return await self._send(data, last=True)

    async def _send(self, data: bytes, *, last: bool) -> web.StreamResponse:
        try:
            async with asyncio.timeout(self._write_s):
                if self._response is None:
                    response = _Stream(headers=self.headers | _STREAM)
                    await response.prepare(self._request)
                    self._response = response
                await (self._response.write_eof(data) if last else self._response.write(data))
        except TimeoutError as error:
            raise ClientGoneError(f"the client took nothing for {self._write_s:g} s") from error
        except ConnectionError as error:
            raise ClientGoneError("the client left") from error
        return self._response

    def abandon(self) -> web.StreamResponse:
        """Give the connection up; gives what the server needs as a reply."""
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._response or web.Response(status=499)
