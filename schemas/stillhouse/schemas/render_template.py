"""The chat template that every student is trained and served with.

ChatML with generation markers, from one pass over the messages. It is data: transformers and vLLM run it from the model's
folder (`chat_template.jinja`), the Renderer from here. Variables beside the usual ones: `grammar` (`tool_call` when not
given) and `tools_view` (`keep` when not given). The end-of-turn token is inside the generation region, because a student
must learn to stop; the line break after it is not.
"""

import hashlib

TEMPLATE = r"""{%- set view = tools_view if tools_view is defined else 'keep' -%}
{%- set tagged = (grammar if grammar is defined else 'tool_call') == 'tool_call' -%}
{%- set shown = tools if tools and view != 'drop' else [] -%}
{%- macro tool_list() -%}
{{- 'Tools:' -}}
{%- for t in shown -%}
{%- set f = t.function if t.function is defined else t -%}
{%- if view == 'names' -%}
{%- set properties = (f.parameters or {}).get('properties') or {} -%}
{{- ' ' + f.name + '(' + properties.keys()|list|join(', ') + ')' + (',' if not loop.last else '') -}}
{%- else -%}
{{- '\n' + f|tojson -}}
{%- endif -%}
{%- endfor -%}
{%- endmacro -%}
{%- if shown and (not messages or messages[0].role != 'system') -%}
{{- '<|im_start|>system\n' + tool_list() + '<|im_end|>\n' -}}
{%- endif -%}
{%- for m in messages -%}
{%- set said = m.content or '' -%}
{%- if m.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- generation -%}
{{- said -}}
{%- for c in m.tool_calls or [] -%}
{%- set f = c.function if c.function is defined else c -%}
{{- '\n' if said or not loop.first else '' -}}
{{- '<tool_call>\n' if tagged else '' -}}
{{- '{"name": ' + f.name|tojson + ', "arguments": ' + (f.arguments if f.arguments is string else f.arguments|tojson) + '}' -}}
{{- '\n</tool_call>' if tagged else '' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\n' -}}
{%- elif m.role == 'system' and loop.first and shown -%}
{{- '<|im_start|>system\n' + said + ('\n' if said else '') + tool_list() + '<|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
TEMPLATE_SHA256 = hashlib.sha256(TEMPLATE.encode()).hexdigest()
END_OF_TURN, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (PAD, "<|im_start|>", END_OF_TURN)
