"""`python -m framework.bench.serve NAME ADDRESS RECIPE [key=value ...]`: a contestant in a process of its own.

It does what comes over a socket, one command at a time, and sleeps between them. Started as one process it starts the
ranks of its layout; rank 0 has the socket and tells the others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing.connection import Client, Connection
from typing import Any

from framework.bench.contestant import OURS, SERVE
from framework.errors import UserError


def main(name: str, address: str, recipe: str, *overrides: str) -> int:
    """Be a contestant until the other end closes; returns the exit code."""
    from framework.recipe import load_recipe
    from framework.training.preconditions import mesh_sizes
    from parallel import Place, find_place, launch

    loaded = load_recipe(recipe, overrides)
    world = mesh_sizes(loaded.recipe.parallel).world if name == OURS else 1
    place = find_place()
    if place is None and world > 1:
        return launch([*SERVE, *sys.argv[1:]], world)
    place = place or Place()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    connection = Client(address, "AF_UNIX") if place.rank == 0 else None
    try:
        _be_a_rank(name, loaded, place, connection)
    except UserError as error:
        return _tell(connection, {"mistake": str(error)}, 2)
    except Exception as error:
        if connection is None:
            raise
        return _tell(connection, {"failure": f"{type(error).__name__}: {error}"}, 1)
    return 0


def _be_a_rank(name: str, loaded: Any, place: Any, connection: Connection | None) -> None:
    from framework.bench.ours import Ours
    from framework.bench.peers import PEERS
    from parallel import choose_device, join

    device = choose_device(place)
    with join(place, device):
        obey(Ours(loaded, device) if name == OURS else PEERS[name](loaded, device), connection)


def obey(contestant: object, connection: Connection | None) -> None:
    """Do what comes, on every rank, until nothing comes any more; connection: rank 0's. Collective."""
    from framework.training.peers import Peers

    commands = _Commands(connection, Peers())
    while (command := commands.receive()) is not None:
        doer = commands if command["do"] == "waited" else contestant
        commands.answer(getattr(doer, command["do"])(**command["with"]))


class _Commands:
    """What rank 0 is told, on every rank; and what waiting for it cost."""

    def __init__(self, connection: Connection | None, peers: Any) -> None:
        self.connection, self.peers = connection, peers
        self.seconds = self.cpu_seconds = 0.0

    def receive(self) -> dict[str, Any] | None:
        """The next command; None when there is none to come."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        command = self.peers.broadcast(self._read() if self.peers.leads else None)
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - cpu_begin
        return command

    def answer(self, answer: Any) -> None:
        """To the last command."""
        if self.connection is not None:
            self.connection.send_bytes(json.dumps({"answer": answer}).encode())

    def waited(self) -> dict[str, float]:
        """Seconds that this rank has waited for commands, and the processor's time in them."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.connection.recv_bytes())
        except EOFError:
            return None


def _tell(connection: Connection | None, message: dict[str, str], code: int) -> int:
    if connection is not None:
        connection.send_bytes(json.dumps(message).encode())
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
