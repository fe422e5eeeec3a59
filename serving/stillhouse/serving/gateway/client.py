"""The way back to a client: headers late, writes that do not wait for ever."""

import asyncio

from aiohttp import web

WRITE_S = 60.0
_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


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
        try:
            async with asyncio.timeout(self._write_s):
                if self._response is None:
                    response = web.StreamResponse(headers=self.headers | _STREAM)
                    await response.prepare(self._request)
                    self._response = response
                await self._response.write(data)
        except TimeoutError as error:
            raise ClientGoneError(f"the client took nothing for {self._write_s:g} s") from error
        except ConnectionError as error:
            raise ClientGoneError("the client left") from error

    async def end(self) -> web.StreamResponse:
        """End the stream.

        Raises:
            ClientGoneError: the client left before.
        """
        assert self._response is not None
        try:
            async with asyncio.timeout(self._write_s):
                await self._response.write_eof()
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
