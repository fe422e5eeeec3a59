"""Parts of a stack that do nothing but be there."""

import sys
from collections.abc import Mapping

from stillhouse.console.stack.parts import Part, Ready

LISTENER = """
import json, signal, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(json.dumps({"url": f"http://127.0.0.1:{server.getsockname()[1]}", "heard": sys.argv[2:]}), flush=True)
signal.sigwait([signal.SIGTERM])
"""
FAILS = "import sys; print('the disk is full, make room', file=sys.stderr); sys.exit(1)"


def listener(name: str, after: tuple[str, ...] = ()) -> Part:
    """A part that takes its port and says what it was told of the parts before it."""

    def command(ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        return (sys.executable, "-c", LISTENER, str(port), *(str(ready[other]["url"]) for other in after))

    return Part(name, command, after)


def failing(name: str) -> Part:
    """A part that ends before it is ready."""
    return Part(name, lambda ready, port: (sys.executable, "-c", FAILS))


def sometimes(name: str, flag: str) -> Part:
    """A part that starts only while the file `flag` does not exist."""
    script = f"import pathlib, sys\nif pathlib.Path({flag!r}).exists(): sys.exit('flag is up')\n{LISTENER}"
    return Part(name, lambda ready, port: (sys.executable, "-c", script, str(port)))
