"""The table of connections."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from lucid_deploy.serving.connections import ConnectionTable
from tests.patience import PATIENCE


class OpenConnection:
    """Stands for a connection and its transport."""

    def __init__(self) -> None:
        self.transport = self
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def test_the_connection_that_waits_longest_makes_room() -> None:
    table = ConnectionTable(most=3, idle_seconds=1.0)
    connections: list[Any] = [OpenConnection() for _ in range(3)]
    assert all(map(table.add, connections))
    table.set_waiting(connections[0], False)  # its request is being answered
    new: Any = OpenConnection()
    assert table.add(new)
    assert [each.aborted for each in connections] == [False, True, False]
    for busy in (connections[2], new):
        table.set_waiting(busy, False)
    assert not table.add(OpenConnection())  # type: ignore[arg-type]
    table.set_waiting(connections[2], True)
    assert table.add(OpenConnection())  # type: ignore[arg-type]
    assert connections[2].aborted and len(table.open) == 3
    table.remove(connections[0])
    table.set_waiting(connections[0], True)  # it is closed: of no account
    assert len(table.open) == 2 and connections[0] not in table.waiting


def test_more_connections_than_the_system_allows_are_refused(artifacts: dict[str, Path]) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400));"
    code += "from lucid_deploy.cli import main; main()"
    words = ["serve", str(artifacts["growing"]), "--port", "0", "--max-connections", "1000"]
    command = [sys.executable, "-c", code, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 2
    assert "1000 connections need 1264 open files and the limit is 400" in result.stderr
