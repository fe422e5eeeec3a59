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

    def take(self) -> bool:
        """Take or renew it.

        Returns:
            Whether this process holds it now.

        Raises:
            UnreachableError: the store does not answer.
        """
        now = self._now()
        found = self._store.by_key("leases", [self._name]).get(self._name)
        row = {
            "key": self._name,
            "state": self._holder,
            "content": f"{self._holder}@{now}",
            "created_at": now,
            "updated_at": now,
        }
        if found is None:
            return self._store.insert_if_absent("leases", [row]) == 1
        if found["state"] != self._holder and found["updated_at"] + self._microseconds > now:
            return False
        return self._store.compare_and_set("leases", [row | {"base_content": found["content"]}]) == 1
