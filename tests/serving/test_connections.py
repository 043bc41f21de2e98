"""The table of connections."""

from __future__ import annotations

from typing import Any

from lucid_deploy.serving.connections import ConnectionTable


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
