"""The gateway's memory is bounded however short its processes live."""

from pathlib import Path

from stillhouse.serving.gateway.memory import Memory


def test_what_is_too_old_goes_though_no_process_writes_enough_to_sweep(tmp_path: Path) -> None:
    for process in range(10):
        memory = Memory(tmp_path, rows=20)
        for n in range(20):
            memory.remember_chain(f"{process}/{n}".encode(), "run")
        memory.close()
    memory = Memory(tmp_path, rows=20)
    assert memory.trajectory_of(b"9/19") == "run" and memory.trajectory_of(b"9/0") == "run"
    assert memory.trajectory_of(b"8/0") is None and memory.trajectory_of(b"0/0") is None
    memory.close()
