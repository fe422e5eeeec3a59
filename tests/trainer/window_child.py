"""A trainer that stops at a clock reading, to be killed there: `python -m tests.trainer.window_child STATE READING`."""

import sys
from pathlib import Path

from stillhouse.trainer import windows
from tests.trainer.window_factory import SETTINGS, Desk


def main() -> None:
    desk, stop = Desk(Path(sys.argv[1])), int(sys.argv[2])

    def clock() -> int:
        if desk.clock() == stop:
            print("there", flush=True)
            sys.stdin.read()  # until it is killed
        return desk.now

    job = desk.job()
    job.clock = clock
    job.run(None if windows.open_window(desk.store, SETTINGS.lineage) else windows.plan(desk.store, SETTINGS))


if __name__ == "__main__":
    main()
