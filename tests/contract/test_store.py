"""The store's contract: one winner per key, compare-and-set loses nothing, tables without a declared key are refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.schemas import tables
from stillhouse.schemas.errors import PermanentError, UnreachableError, UsageError
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import store_errors

CLAIM = """
import sys
from stillhouse.sdk.store import Store
store = Store.open(sys.argv[1])
mine = sum(store.insert_if_absent("windows", [{"key": f"w{i}", "scope": "main", "state": "claimed", "content": "1"}]) for i in range(8))
print(mine)
"""

ADD = """
import sys
from stillhouse.sdk.store import Store
store, worker = Store.open(sys.argv[1]), sys.argv[2]
for turn in range(8):
    while True:
        row = store.by_key("leaders", ["one"])["one"]
        row["data"] = [*row["data"], f"{worker}.{turn}"]
        row["base_content"], row["content"] = row["content"], str(len(row["data"]))
        if store.compare_and_set("leaders", [row]):
            break
"""


def _run(script: str, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", script, *args], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "lance")


def test_one_of_several_processes_claims_a_key(store: Store) -> None:
    store.table("windows")
    claimers = [_run(CLAIM, store.uri) for _ in range(3)]
    claimed = [int(process.communicate(timeout=60)[0]) for process in claimers]
    assert sum(claimed) == 8
    assert [row["key"] for row in store.rows("windows")] == [f"w{i}" for i in range(8)]


def test_compare_and_set_by_several_processes_keeps_every_contribution(store: Store) -> None:
    store.insert_if_absent("leaders", [{"key": "one", "data": [], "content": "0"}])
    adders = [_run(ADD, store.uri, worker) for worker in "ab"]
    assert [process.wait(60) for process in adders] == [0, 0]
    for process in adders:
        assert process.stdout is not None
        process.stdout.close()
    assert len(set(store.by_key("leaders", ["one"])["one"]["data"])) == 16


def test_compare_and_set_changes_only_what_is_as_expected(store: Store) -> None:
    store.insert_if_absent("windows", [{"key": k, "state": "claimed", "content": "1"} for k in ("a", "b")])
    row = {"state": "curated", "content": "2", "base_content": "1"}
    assert store.compare_and_set("windows", [row | {"key": "a"}, row | {"key": "b", "base_content": "0"}, row | {"key": "c"}]) == 1
    assert {r["key"]: r["state"] for r in store.rows("windows")} == {"a": "curated", "b": "claimed"}
    by_state = {"key": "b", "state": "curated", "base_state": "claimed"}
    assert store.compare_and_set("windows", [by_state], "base_state") == 1
    assert store.compare_and_set("windows", [by_state], "base_state") == 0


def test_compare_and_set_may_insert(store: Store) -> None:
    row = {"key": "a", "content": "1", "base_content": None}
    assert store.compare_and_set("windows", [row], insert=True) == 1
    assert store.compare_and_set("windows", [row], insert=True) == 0


def test_a_key_twice_in_one_insert_is_one_row(store: Store) -> None:
    assert store.insert_if_absent("windows", [{"key": "a", "state": "x"}, {"key": "a", "state": "y"}]) == 1
    assert store.rows("windows")[0]["state"] == "x"


def test_another_handle_reads_the_newest_version(store: Store) -> None:
    other = Store.open(store.uri, create=False)
    assert other.rows("windows") == []
    store.insert_if_absent("windows", [{"key": "it's", "data": {"n": [1]}}])
    assert other.by_key("windows", ["it's"])["it's"]["data"] == {"n": [1]}
    store.update("windows", "it's", {"data": {"n": 2}, "state": "trained"})
    assert other.rows("windows", "state = 'trained'", columns=["data"]) == [{"data": {"n": 2}}]


def test_rows_are_ordered_and_limited(store: Store) -> None:
    store.insert_if_absent("windows", [{"key": str(i), "updated_at": 9 - i} for i in range(9)])
    assert [row["key"] for row in store.rows("windows", limit=2)] == ["0", "1"]
    assert [row["key"] for row in store.rows("windows", order="updated_at", limit=2)] == ["8", "7"]
    assert [row["key"] for row in store.rows("windows", order="-updated_at", limit=2)] == ["0", "1"]
    with pytest.raises(UsageError, match="has no column nothing"):
        store.rows("windows", columns=["nothing"])


def test_a_table_without_the_declared_key_is_refused(tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa

    lancedb.connect(str(tmp_path)).create_table("windows", schema=pa.schema([pa.field("key", pa.string())]))
    with pytest.raises(PermanentError, match="does not declare its key"):
        Store.open(tmp_path).table("windows")


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa

    key = pa.field("key", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})
    lancedb.connect(str(tmp_path)).create_table("windows", schema=pa.schema([key, pa.field("odd", pa.string())]))
    with pytest.raises(PermanentError, match=r"has other columns.*odd"):
        Store.open(tmp_path).table("windows")


def test_a_row_that_does_not_fit_is_refused(store: Store) -> None:
    with pytest.raises(PermanentError, match="has no column odd"):
        store.insert_if_absent("windows", [{"key": "a", "odd": 1}])
    with pytest.raises(PermanentError, match="refused"):
        store.insert_if_absent("windows", [{"key": "a", "updated_at": "no number"}])


def test_no_store_and_no_table_say_so(tmp_path: Path, store: Store) -> None:
    with pytest.raises(PermanentError, match="there is no store"):
        Store.open(tmp_path / "absent", create=False)
    with pytest.raises(UsageError, match="there is no table"):
        store.table("absent")


FULL_DISK = """
import resource, signal, sys
from stillhouse.schemas.errors import UnreachableError
from stillhouse.sdk.store import Store
store = Store.open(sys.argv[1])
store.table("windows")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
try:
    store.insert_if_absent("windows", [{"key": "a", "data": "x" * 4096}])
except UnreachableError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(store.insert_if_absent("windows", [{"key": "a", "data": "x" * 4096}]), error.retry_after > 0)
"""


def test_a_full_disk_is_retryable_and_the_store_goes_on(tmp_path: Path) -> None:
    process = _run(FULL_DISK, str(tmp_path / "lance"))
    assert process.communicate(timeout=60)[0].strip() == "1 True"


def test_every_table_is_made_as_declared(store: Store) -> None:
    for name, spec in tables.TABLES.items():
        handle = store.table(name)
        assert handle.schema.names == [column.name for column in spec.columns]
        assert [index.columns for index in handle.list_indices()] == [[spec.key]]


def test_unreachable_is_an_error_of_the_retryable_trunk() -> None:
    with pytest.raises(UnreachableError), store_errors("here"):
        raise OSError("No space left on device")
