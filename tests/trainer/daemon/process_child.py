"""The daemon's process with the tests' job: `python -m tests.trainer.daemon.process_child STATE`."""

import sys

from stillhouse.trainer.daemon.__main__ import main

STATE = sys.argv[1]
sys.exit(main(["--state", STATE, "--config", f"{STATE}/stillhouse.toml"], [sys.executable, "-m", "tests.trainer.daemon.job_child", STATE]))
