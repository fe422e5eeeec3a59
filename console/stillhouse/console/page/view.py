"""The status page as HTML: server-made, no script, reloads itself."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5"><meta name="viewport" content="width=device-width">
<title>Stillhouse</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 58rem; padding: 0 1rem; color: #222 }
 h1 { font-size: 1.4rem } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
 .waits { background: #fdf3e1; border-left: 4px solid #c77c00; padding: .7rem 1rem }
 table { border-collapse: collapse } td, th { text-align: left; padding: .2rem 1.4rem .2rem 0; border-bottom: 1px solid #eee }
 td.n { text-align: right; font-variant-numeric: tabular-nums } .down { color: #b00020; font-weight: 600 } .dim { color: #777 }
</style></head><body>
<h1>Stillhouse</h1>
<p class="waits">{{ found.waits }}</p>
<h2>Processes</h2>
{% if found.stack %}<table><tr><th>process<th>pid<th>state<th>restarts</tr>
{% for name, p in found.stack.items() %}<tr><td>{{ name }}<td class="n">{{ p.pid }}
<td {% if not p.alive %}class="down"{% endif %}>{{ "up" if p.alive else "down" }}<td class="n">{{ p.restarts }}</tr>
{% endfor %}</table>{% else %}<p class="dim">none</p>{% endif %}
{% macro counts(title, values) %}<h2>{{ title }}</h2>
{% if values %}<table>{% for name, n in values.items() %}<tr><td>{{ name }}<td class="n">{{ n }}</tr>{% endfor %}</table>
{% else %}<p class="dim">none yet</p>{% endif %}{% endmacro %}
{{ counts("Ingest", found.ingest) }}
{{ counts("Trajectories by outcome (" ~ found.trajectories.total ~ ")", found.trajectories.outcome) }}
{{ counts("Trajectories by family", found.trajectories.families) }}
{{ counts("Windows by state", found.windows) }}
<h2>Students</h2>
{% if found.students %}<ul>{% for name in found.students %}<li>{{ name }}</li>{% endfor %}</ul>
{% else %}<p class="dim">none yet</p>{% endif %}
<p class="dim">{{ found.state }} &middot; broker {{ found.bootstrap_servers or "-" }}
&middot; the same as <a href="status.json">JSON</a></p>
</body></html>
"""

_page = Environment(autoescape=True).from_string(TEMPLATE)


def render(found: Mapping[str, Any]) -> str:
    """The page for what `status.gather` found."""
    return _page.render(found=found)
