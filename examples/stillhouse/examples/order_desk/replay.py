"""Playing a recorded run again on a fresh desk: does it still succeed after curation has taken steps out of it?"""

from collections.abc import Iterable, Sequence

from stillhouse.examples.order_desk.environment import Desk
from stillhouse.examples.order_desk.tasks import DeskTask
from stillhouse.schemas.messages import Message
from stillhouse.schemas.trajectory import Trajectory


class DeskReplay:
    """The `replay` of curation's prune stage for runs of these tasks.

    Args:
        tasks: the tasks that were given to agents. A run of any other task cannot be replayed, and is not judged.
    """

    def __init__(self, tasks: Iterable[DeskTask]) -> None:
        self._tasks = {task.id: task for task in tasks}

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
