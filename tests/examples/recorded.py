"""Played runs as the trajectories that ingest would have stored of them."""

from stillhouse.examples.order_desk.environment import ENVIRONMENT
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT, TOOLS
from stillhouse.schemas.events import Outcome, Policy, PolicyRole, Task
from stillhouse.schemas.openai import from_openai
from stillhouse.schemas.trajectory import Status, Step, Trajectory
from tests.examples.playing import Played

TEACHER = Policy(role=PolicyRole.TEACHER, model="order-desk-expert")


def recorded(played: Played) -> Trajectory:
    """One run, step by step."""
    task, messages = played.task, from_openai(played.messages[1:])
    steps: list[Step] = []
    for message in messages[1:]:
        if message.role == "assistant":
            state = () if steps else messages[:1]
            index = len(steps)
            steps.append(Step(index=index, action=message, policy=TEACHER, event_id=f"{task.id}-{index}", occurred_at=index, state=state))
        else:
            steps[-1] = Step(**{**{f: getattr(steps[-1], f) for f in Step.__struct_fields__}, "observation": (message,)})
    return Trajectory(
        key=f"default/{task.id}",
        tenant="default",
        trajectory_id=task.id,
        revision=len(steps) + 2,
        content=task.id,
        status=Status.ENDED,
        task=Task(id=task.id, family=task.family, instruction=task.instruction),
        system_prompt=SYSTEM_PROMPT,
        tools=TOOLS,
        environment=ENVIRONMENT,
        policies=(TEACHER,),
        steps=tuple(steps),
        outcome=Outcome.SUCCESS if played.verdict.success else Outcome.FAILURE,
    )
