"""`/metrics`, `/healthz` and `/readyz` of the daemon, from a thread: a look at the store does not keep them waiting."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.trainer.daemon.board import Board

_METRICS = "text/plain; version=0.0.4; charset=utf-8"


class HealthServer:
    """Serves what a board shows.

    Args:
        board: of the daemon.
        host: to listen on.
        port: 0 for any.

    Raises:
        PermanentError: the port is in use.
    """

    def __init__(self, board: Board, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(board))
        except OSError as error:
            fix = "Take another --metrics-port, or 0 for any."
            raise PermanentError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", fix=fix) from error
        self.address = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(board: Board) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = board.status
            if self.path == "/metrics":
                self._send(200, _METRICS, board.text())
            elif self.path == "/healthz":
                self._json(200, {"ok": True})
            elif self.path == "/readyz":
                details = {"ok": board.looked, "waits": status.waits, "runs": status.runs}
                self._json(200 if board.looked else 503, details)
            else:
                self._json(404, {"ok": False, "error": "one of /metrics, /healthz, /readyz"})

        def log_message(self, format: str, *args: Any) -> None:  # the name is the base class's
            """Nobody wants a line for every scrape."""

        def _json(self, code: int, body: dict[str, Any]) -> None:
            self._send(code, "application/json", json.dumps(body).encode())

        def _send(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
