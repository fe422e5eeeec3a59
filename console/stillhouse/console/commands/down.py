"""`stillhouse down`: stop the stack of a state folder."""

import psutil

from stillhouse.console import context, output
from stillhouse.console.stack import record as records
from stillhouse.console.stack.process import end, same_process
from stillhouse.schemas.errors import PermanentError

STOP_SECONDS = 120


def command(state: context.StateOption = None, json: context.JsonOption = False) -> None:
    """Stop the stack in order and wait until it has ended. Nothing to stop is not an error."""
    folder = context.load(state).state
    record = records.read(folder)
    stopped: list[str] = []
    if record:
        supervisor = same_process(record.supervisor.pid, record.supervisor.started)
        processes = [supervisor] if supervisor else _orphans(record)
        stopped = list(record.pids) if processes else []
        with output.progress("stopping"):
            _end(processes)
        records.remove(folder)
    if json:
        output.print_json({"stopped": stopped})
    else:
        output.out.print(f"stopped {', '.join(reversed(stopped))}" if stopped else "nothing runs here")


def _orphans(record: records.StackRecord) -> list[psutil.Process]:
    found = [same_process(p.pid, p.started) for p in reversed(record.pids.values())]
    return [process for process in found if process]


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        if not end(process, STOP_SECONDS):
            raise PermanentError(
                f"process {process.pid} has not ended in {STOP_SECONDS} s", fix=f"Look at its log; kill -9 {process.pid} ends it."
            )
