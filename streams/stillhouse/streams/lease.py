"""A lease in the store: one process at a time, until it ends or stops renewing."""

from collections.abc import Callable

from stillhouse.sdk.store import Store


class Lease:
    """One named lease. Clocks of different machines should agree to within the lease's time.

    Args:
        store: where it is kept.
        name: what is leased.
        holder: who asks.
        seconds: how long it lasts without renewal.
        now: microseconds since the epoch.
    """

    def __init__(self, store: Store, name: str, holder: str, seconds: float, now: Callable[[], int]) -> None:
        self._store, self._name, self._holder, self._now = store, name, holder, now
        self._microseconds = int(seconds * 1e6)
        self._content = ""

    def take(self) -> bool:
        """Take or renew it.

        Returns:
            Whether this process holds it now.

        Raises:
            UnreachableError: the store does not answer.
        """
        now = self._now()
        found = self._store.by_key("leases", [self._name]).get(self._name)
        content = f"{self._holder}@{now}"
        row = {
            "key": self._name,
            "state": self._holder,
            "content": content,
            "created_at": now,
            "updated_at": now,
        }
        if found is None:
            taken = self._store.insert_if_absent("leases", [row]) == 1
        elif found["state"] != self._holder and not self.free(found["updated_at"]):
            return False
        else:
            taken = self._store.compare_and_set("leases", [row | {"base_content": found["content"]}]) == 1
        if taken:
            self._content = content
        return taken

    def free(self, renewed_at: int) -> bool:
        """Whether a lease that was last renewed then has run out."""
        return renewed_at + self._microseconds <= self._now()

    def release(self) -> None:
        """Give it back, unless it ran out and somebody else has it.

        Raises:
            UnreachableError: the store does not answer; it runs out by itself.
        """
        row = {"key": self._name, "state": "", "content": f"released@{self._now()}", "base_content": self._content}
        self._store.compare_and_set("leases", [row | {"created_at": 0, "updated_at": 0}])
