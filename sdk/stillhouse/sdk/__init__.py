"""The client SDK for agents: events out, never in the way."""

from stillhouse.schemas.events import AgentEvent, FeedbackSource, Outcome, Policy, PolicyRole, Task, Usage
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.sdk.client import Client
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.limits import Limits
from stillhouse.sdk.normalise import ToolResult
from stillhouse.sdk.redaction import Redacted, RedactionError, Redactor, Rule
from stillhouse.sdk.runner import RunnerTask
from stillhouse.sdk.stats import ClientStats, CloseReport, Refusal
from stillhouse.sdk.trajectory import Trajectory

__all__ = [
    "AgentEvent",
    "Client",
    "ClientStats",
    "CloseReport",
    "FeedbackSource",
    "KafkaSettings",
    "Limits",
    "Message",
    "Outcome",
    "Policy",
    "PolicyRole",
    "Redacted",
    "RedactionError",
    "Redactor",
    "Refusal",
    "Rule",
    "RunnerTask",
    "Task",
    "ToolCall",
    "ToolResult",
    "Trajectory",
    "Usage",
]
