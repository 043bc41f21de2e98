"""An artifact of random weights with a byte-level tokenizer and a chat template that has tools, and its server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact
from tests.serving.serving_tools import MODEL, Server

HERMES = (
    "{% if tools %}tools: {% for tool in tools %}{{ tool.function.name }} {% endfor %}in <tool_call></tool_call>\n"
    "{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}\n{% endfor %}"
)


def with_template(exported: Callable[..., tuple[Path, Artifact]], folder: Path, template: str | None = HERMES) -> Path:
    _, artifact = exported(cache="static")
    directory = Path(shutil.copytree(artifact.directory, folder / "artifact"))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


@contextmanager
def running(directory: Path, *options: Any) -> Iterator[Server]:
    words = ["serve", str(directory), "--port", "0", "--served-model-name", MODEL, "--rows", "4", *map(str, options)]
    server = Server(["-m", "lucid_deploy.cli", *words])
    try:
        yield server
    finally:
        assert server.stop() == 0
        assert not any("Traceback" in line for line in server.errors), "".join(server.errors)
