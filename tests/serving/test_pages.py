"""Pages for browsers: they load nothing from elsewhere, and the docs list every path and field."""

from __future__ import annotations

import asyncio
import html
import re
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.serving.app import PAGE_HEADERS, document
from lucid_deploy.serving.front import PAGES
from lucid_deploy.serving.security import read_api_keys
from tests.serving.stand_ins import ScriptedBackend, client, service


def get(folder: Path, path: str, **settings: Any) -> Any:
    async def run() -> Any:
        async with client(service(folder, ScriptedBackend(), **settings)) as http:
            return await http.get(path)

    return asyncio.run(run())


@pytest.mark.parametrize("path", PAGES)
def test_pages_load_nothing_from_elsewhere(path: str, tmp_path: Path) -> None:
    answer = get(tmp_path, path)
    assert answer.status_code == 200
    assert {name: answer.headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
    policy = answer.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in str(policy)
    text = answer.text.replace("http://www.w3.org/2000/svg", "")  # the name of a format
    assert not re.search(r"https?:|//[a-z]|@import", text.replace("// ", ""))
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=|<style", text), "the policy would stop it"


def test_pages_can_be_turned_off(tmp_path: Path) -> None:
    for path in PAGES:
        assert get(tmp_path, path, pages=False).status_code == 404


def test_pages_need_no_key_but_paths_about_the_server_do(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("k\n")
    file.chmod(0o600)
    keys = read_api_keys(str(file))
    for path in PAGES:
        assert get(tmp_path, path, keys=keys).status_code == 200
        assert get(tmp_path, path, keys=keys, pages=False).status_code == 401
    assert get(tmp_path, "/openapi.json", keys=keys).status_code == 401
    assert get(tmp_path, "/version", keys=keys).status_code == 401


def test_the_docs_have_every_path_and_every_field(tmp_path: Path) -> None:
    text = html.unescape(get(tmp_path, "/docs").text)
    described = document()
    for path, methods in described["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in text
    for name, schema in described["components"]["schemas"].items():
        if name != "Error" and schema.get("properties"):
            section = text.partition(f'<h2 id="{name}">')[2].partition("<h2")[0]
            assert re.findall(r"<td><code>(\w+)</code>", section) == list(schema["properties"])
    assert "list of InputMessage or InputCall or InputResult" in text and "0 is greedy; 1 if not given." in text
