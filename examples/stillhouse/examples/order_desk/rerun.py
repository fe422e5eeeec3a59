"""The desk's runner: tasks that a student failed are done again by the teacher, on a fresh desk of the same task."""

from collections.abc import Mapping

from openai import AsyncOpenAI

from stillhouse.examples.order_desk.agent import ChatSettings, run_episode
from stillhouse.examples.order_desk.environment import ENVIRONMENT
from stillhouse.examples.order_desk.fleet import steps_into
from stillhouse.examples.order_desk.tasks import DeskTask
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT, TOOLS
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome
from stillhouse.sdk.runner import RunnerTask


class Reruns:
    """What `@client.runner` registers for each family of the desk.

    Args:
        tasks: every task that an agent was given, by id; looked into at each run, so it may grow.
        chat: the teacher.
        settings: how to talk to it.
    """

    def __init__(self, tasks: Mapping[str, DeskTask], chat: AsyncOpenAI, settings: ChatSettings) -> None:
        self._tasks, self._chat, self._settings = tasks, chat, settings
        self.done, self.cost_micro_usd = 0, 0

    async def __call__(self, task: RunnerTask) -> None:
        """Do one task again.

        Raises:
            PermanentError: no desk is known for it.
            StillhouseError: the teacher has no answer.
        """
        desk = self._tasks.get(task.source_task_id or "")
        if desk is None:
            raise PermanentError("no such task of the order desk", where=str(task.source_task_id))
        with task.trajectory(model=self._settings.model, tools=TOOLS, system_prompt=SYSTEM_PROMPT, environment=ENVIRONMENT) as run:
            costs: list[int] = []
            result = await run_episode(desk, self._chat, self._settings, steps_into(run, desk, self._settings.model, costs.append))
            run.end(outcome=Outcome.SUCCESS if result.verdict.success else Outcome.FAILURE, verifier=ENVIRONMENT)
        self.done += 1
        self.cost_micro_usd += sum(costs)
