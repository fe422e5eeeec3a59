"""docs/sdk.md: each block runs, in order, against a broker."""

import re
from pathlib import Path
from typing import Any

from stillhouse.schemas.events import AgentEvent, ClientReport
from tests.support.agents import arrived, make_topics
from tests.support.brokers import RunningBroker, start_embedded

PAGE = Path(__file__).parents[2] / "docs" / "sdk.md"


def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    broker: RunningBroker = start_embedded(tmp_path / "log")
    try:
        settings = make_topics(broker.bootstrap)
        names: dict[str, Any] = {"SERVERS": broker.bootstrap, "SPOOL": tmp_path / "spool"}
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
        events: list[AgentEvent] = arrived(settings)
    finally:
        broker.stop()
    assert len(blocks) >= 6
    assert len(events) == 8 and not any(isinstance(event.body, ClientReport) for event in events)
