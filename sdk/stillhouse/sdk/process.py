"""The command line that every process of the stack has in common."""

import argparse
from pathlib import Path


def process_parser(module: str, description: str, *, metrics: bool = True) -> argparse.ArgumentParser:
    """State folder, settings file, broker, and where its metrics are.

    Args:
        module: as `python -m` takes it.
        description: what the process does, in a sentence.
        metrics: whether it has any.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--state", type=Path, help="the state folder (default: STILLHOUSE_STATE, else ./.stillhouse)")
    parser.add_argument("--config", type=Path, help="stillhouse.toml")
    parser.add_argument("--bootstrap-servers", help="Kafka's addresses, over [kafka] bootstrap_servers")
    if not metrics:
        return parser
    parser.add_argument("--metrics-port", type=int, default=0, help="of /metrics, /healthz and /readyz; 0 for any")
    parser.add_argument("--metrics-host", default="127.0.0.1")
    return parser
