"""Playing a recorded run again on a fresh desk: does it still succeed after curation has taken steps out of it?"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from stillhouse.examples.order_desk.environment import Desk
from stillhouse.examples.order_desk.tasks import DeskTask
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.messages import Message
from stillhouse.schemas.trajectory import Trajectory


class DeskReplay:
    """The `replay` of curation's prune stage for runs of these tasks.

    Args:
        tasks: the tasks that were given to agents. A run of any other task cannot be replayed, and is not judged.
    """

    def __init__(self, tasks: Iterable[DeskTask]) -> None:
        self._tasks = {task.id: task for task in tasks}

    @classmethod
    def of_file(cls, path: str) -> "DeskReplay":
        """The replay for the tasks that `save_tasks` wrote: what `[window] environment` names, with the file as `environment_data`.

        Raises:
            PermanentError: there is no such file, or a line of it is no task.
        """
        try:
            return cls(msgspec.json.Decoder(DeskTask).decode_lines(Path(path).read_bytes()))
        except OSError as error:
            fix = "Give the file that the fleet wrote with --tasks-file."
            raise PermanentError(f"no file of tasks: {error.strerror}", where=f"[window] environment_data = {path}", fix=fix) from error
        except msgspec.MsgspecError as error:
            raise PermanentError(f"not a task of the order desk: {error}", where=path) from error

    def __call__(self, trajectory: Trajectory, actions: Sequence[Message]) -> bool | None:
        """Whether the actions solve the trajectory's task; None when the task is not known here."""
        task = self._tasks.get(trajectory.task.id or "")
        if task is None:
            return None
        desk = Desk(task)
        for action in actions:
            for call in action.tool_calls:
                desk.call(call.name, call.arguments if call.raw_arguments is None else None)
        return desk.verify(replied=bool(actions) and bool(actions[-1].text) and not actions[-1].tool_calls).success


def save_tasks(path: Path, tasks: Iterable[DeskTask]) -> None:
    """Add tasks to a file, a line each. What a task wants is in it: the file is for verifying, not for a policy to read."""
    with path.open("ab") as file:
        file.writelines(msgspec.json.encode(task) + b"\n" for task in tasks)
