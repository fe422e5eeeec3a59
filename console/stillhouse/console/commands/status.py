"""`stillhouse status`."""

from rich.markup import escape

from stillhouse.console import context, output
from stillhouse.console.status import gather


def command(state: context.StateOption = None, config: context.ConfigOption = None, json: context.JsonOption = False) -> None:
    """Where the loop is, and why it waits."""
    found = gather(context.load(state, config))
    if json:
        output.print_json(found)
        return
    output.out.print(f"[bold]{escape(found['waits'])}[/]\n", soft_wrap=True)
    parts = [[name, p["pid"], "up" if p["alive"] else "down", p["restarts"]] for name, p in found["stack"].items()]
    if parts:
        output.out.print(output.table(parts, ["process", "pid", "state", "restarts"]))
        output.out.print()
    shown = ("state", "bootstrap_servers", "ingest", "routes", "trajectories", "windows", "students")
    output.show_object({name: found[name] for name in shown}, as_json=False)
