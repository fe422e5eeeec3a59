"""Who may call: keys per tenant, of which only hashes are kept.

`python -m stillhouse.serving.gateway.keys --state DIR add TENANT` prints a new key, once.
"""

import argparse
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import structlog

from stillhouse.schemas.errors import PermanentError, StillhouseError
from stillhouse.sdk.config import Config
from stillhouse.serving.gateway.failures import ApiError

log = structlog.get_logger()
FILE = "keys.json"
NOBODY = "default"
"""The tenant of every caller while there are no keys."""
_LOOK_EVERY_S = 1.0


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key: whose it is, and its SHA-256 (a key has 256 random bits: nothing slower is needed)."""

    tenant: str
    sha256: str
    created: int = 0


class KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content."""

    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> KeyFile | None:
    """The keys in a file; None without one.

    Raises:
        PermanentError: it cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeyFile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise PermanentError(f"the keys cannot be read: {error}", where=str(path)) from error


def add_key(path: Path, tenant: str) -> str:
    """Make a key for a tenant; it is given here and nowhere else.

    Raises:
        PermanentError: the file cannot be read.
    """
    text = "sh-" + secrets.token_urlsafe(32)
    before = read_keys(path) or KeyFile()
    _write(path, KeyFile(keys=(*before.keys, Key(tenant=tenant, sha256=_hash(text), created=int(time.time())))))
    return text


def remove_keys(path: Path, tenant: str) -> int:
    """Take a tenant's keys away; gives how many there were.

    Raises:
        PermanentError: the file cannot be read.
    """
    before = read_keys(path) or KeyFile()
    kept = tuple(key for key in before.keys if key.tenant != tenant)
    _write(path, KeyFile(keys=kept))
    return len(before.keys) - len(kept)


def _write(path: Path, content: KeyFile) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".keys-")  # readable by its owner alone
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content), indent=2))
    Path(name).replace(path)


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """The keys as the file has them, a second ago at most.

    Args:
        path: the file; without one, every caller is `NOBODY`.
        clock: seconds.

    Raises:
        PermanentError: the file cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._looked = clock()
        self._stamp = self._stat()
        self._tenants = self._load()

    @property
    def closed(self) -> bool:
        """Whether a key is needed."""
        return self._tenants is not None

    def tenant(self, authorization: str | None) -> str:
        """Whose key an `Authorization` header has.

        Raises:
            ApiError: it has none of ours.
        """
        self._look()
        if self._tenants is None:
            return NOBODY
        scheme, _, key = (authorization or "").partition(" ")
        found = self._tenants.get(_hash(key.strip())) if scheme.lower() == "bearer" else None
        if found is None:
            what = "Incorrect API key provided" if authorization else "You didn't provide an API key"
            raise ApiError(401, what, code="invalid_api_key", fix="Send a key of this gateway as: Authorization: Bearer KEY")
        return found

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        if (stamp := self._stat()) != self._stamp:
            self._stamp = stamp
            try:
                self._tenants = self._load()
            except PermanentError as error:  # the keys of before stay valid: a slip of the editor must not turn everybody away
                log.error("keys_unreadable", error=str(error))

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _load(self) -> dict[str, str] | None:
        content = read_keys(self._path)
        return None if content is None else {key.sha256: key.tenant for key in content.keys}


def main(argv: Sequence[str] | None = None) -> int:
    """Add or remove a tenant's keys."""
    parser = argparse.ArgumentParser(prog="python -m stillhouse.serving.gateway.keys", description="Keys of the gateway's callers.")
    parser.add_argument("--state", type=Path)
    parser.add_argument("action", choices=("add", "remove"))
    parser.add_argument("tenant")
    chosen = parser.parse_args(argv)
    try:
        path = Config.load(state=chosen.state).state_dir("secrets") / FILE
        print(add_key(path, chosen.tenant) if chosen.action == "add" else f"{remove_keys(path, chosen.tenant)} removed")
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
