"""Tools, and a chat template of each known tool format, reduced to the parts about tools."""

from __future__ import annotations

from typing import Any

from tests.serving.tool_server import HERMES

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time-now"}}
LLAMA = (
    '{% if tools %}Respond with {"name": function name, "parameters": dictionary}. '
    "{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}'
    "{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}]{% else %}"
    "{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
)
TEMPLATES = {"hermes": HERMES, "llama3": LLAMA, "mistral": MISTRAL}
