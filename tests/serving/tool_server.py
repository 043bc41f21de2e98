"""An artifact of random weights with a byte-level tokenizer and a chat template that has tools, and its server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from lucid_deploy.artifact import Artifact
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, Server

HERMES = (
    "{% if tools %}tools: {% for tool in tools %}{{ tool.function.name }} {% endfor %}in <tool_call></tool_call>\n"
    "{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}\n{% endfor %}"
)


@pytest.fixture(scope="session")
def tool_server(
    with_byte_level_tokenizer: Callable[..., tuple[Path, Artifact]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    _, artifact = with_byte_level_tokenizer(cache="static")
    directory = Path(shutil.copytree(artifact.directory, tmp_path_factory.mktemp("served") / "artifact"))
    (directory / "chat_template.jinja").write_text(HERMES)
    words = ["serve", str(directory), "--port", "0", "--served-model-name", MODEL, "--rows", "4"]
    server = Server(["-m", "lucid_deploy.cli", *words, "--prefix-cache-tokens", "500"])
    yield server
    assert server.stop() == 0
    assert not any("Traceback" in line for line in server.errors), "".join(server.errors)


@pytest.fixture(scope="session")
def client(tool_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as made:
        yield made
