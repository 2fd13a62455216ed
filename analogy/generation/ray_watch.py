"""Notice that a cluster's head or raylet is lost, before Ray ends the process."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import TypeAlias

import ray

#: Seconds between two checks of the cluster, and seconds for which its raylet and its head may give
#: no answer. Ray's native code ends the whole process, with exit code 1, about 10 s after a raylet
#: is lost and 60 s after a head is lost. A lost head may come back within that time.
LOOK = 1.0
RAYLET_MAY_BE_SILENT, HEAD_MAY_BE_SILENT = 2.0, 20.0

#: Seconds after which this process disconnects from a lost cluster, whatever it is doing.
BUSY = 3.0

#: Where Ray writes the logs of its processes, and the end of every message about a lost run.
LOGS = "/tmp/ray/session_latest/logs"
KEPT = "What was done is kept; the same command goes on from there"


Address: TypeAlias = tuple[str, int]


class Watch:
    """Watches from a thread whether the cluster that this process is connected to still answers.

    ``gone``: the server that does not answer; None as long as all do. Ray's native code ends a
    process that has lost its raylet or the head, without any exception, unless the process
    disconnects from Ray before. A server that did not answer at the beginning (behind a firewall)
    is not watched. Nothing is watched with a Ray client, which has neither.
    """

    def __init__(self, *, head_may_be_silent: float = HEAD_MAY_BE_SILENT) -> None:
        self.gone: str | None = None
        self._ended = Event()
        self._letting_go = Lock()
        allowed = {"raylet": RAYLET_MAY_BE_SILENT, "head": head_may_be_silent}
        self._servers = {
            (name, address): allowed[name]
            for name, address in _servers().items()
            if _answers(address)
        }
        if self._servers:
            Thread(target=self._look, name="watch over Ray", daemon=True).start()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def let_go(self) -> None:
        """Disconnect from a cluster that is gone."""
        self.end()
        with self._letting_go, suppress(Exception):  # its errors would add nothing
            ray.shutdown()

    def _look(self) -> None:
        answered = dict.fromkeys(self._servers, time.monotonic())
        while not self._ended.wait(LOOK):
            for server, allowed in self._servers.items():
                (name, address), now = server, time.monotonic()
                if _answers(address):
                    answered[server] = now
                elif now - answered[server] >= allowed:
                    self.gone = f"the {name} at {address[0]}:{address[1]}"
                    if not self._ended.wait(BUSY):
                        self.let_go()
                    return


def _servers() -> dict[str, Address]:
    """Where this process's raylet and the cluster's head listen; empty with a Ray client."""
    if ray.util.client.ray.is_connected():
        return {}
    context = ray.get_runtime_context()
    found = {}
    host, _, port = str(context.gcs_address).rpartition(":")
    if port.isdigit():
        found["head"] = host.strip("[]"), int(port)
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            found["raylet"] = node["NodeManagerAddress"], int(node["NodeManagerPort"])
    return found


def _answers(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=5.0).close()
    except OSError:
        return False
    return True
