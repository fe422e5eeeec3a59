"""What every command needs: settings, state folder, broker and store of the stack that runs (or of the configuration)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from stillhouse.console.stack import record as records
from stillhouse.schemas.errors import UnreachableError
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store, StoreSettings

StateOption = Annotated[
    Path | None, typer.Option("--state", help="State folder [default: $STILLHOUSE_STATE or ./.stillhouse]", show_default=False)
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file [default: ./stillhouse.toml, if there is one]", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True)
class Context:
    """Settings of one command, with the state folder they belong to."""

    config: Config

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.config.state

    @property
    def kafka(self) -> KafkaSettings:
        """The broker: the running stack's, else the configured one.

        Raises:
            UnreachableError: no stack runs in this state folder, and no Kafka is configured.
        """
        settings = self.config.section("kafka", KafkaSettings)
        record = records.read(self.state)
        if record and record.supervisor.alive:
            return msgspec.structs.replace(settings, bootstrap_servers=record.bootstrap_servers)
        if not self.has_broker:
            fix = "Start a stack with: stillhouse up --detach, or set [kafka] bootstrap_servers."
            raise UnreachableError("no broker is known", where=str(self.state), fix=fix)
        return settings

    @property
    def external(self) -> str | None:
        """The Kafka that the configuration names; None where the embedded broker is meant.

        What happens to listen at the embedded broker's address is not asked: it may be the stack of another state folder.
        """
        return self.config.section("kafka", KafkaSettings).bootstrap_servers if self.config.is_set("kafka.bootstrap_servers") else None

    @property
    def has_broker(self) -> bool:
        """Whether a stack runs in this state folder, or a Kafka is configured."""
        record = records.read(self.state)
        return bool(record and record.supervisor.alive) or self.external is not None

    def store(self) -> Store:
        """The trajectories, windows and students: `[store] uri`, else `lance/` of the state folder.

        Raises:
            MissingExtraError: lancedb is not installed.
        """
        settings = self.config.section("store", StoreSettings)
        self.config.state_dir("lance")  # claims the state folder's format, wherever the store itself is
        return Store.open(settings.location(self.state))


def load(state: Path | None, config: Path | None = None, overrides: Mapping[str, object] | None = None) -> Context:
    """Read the settings for one command."""
    return Context(Config.load(config, env=dict(os.environ), state=state, overrides=overrides))
