"""The doorkeeper as a process: ``python -m bitward_agent.gate.kernel.keeper GROUP CHANNEL``, started by the holder with these descriptors.

Over the channel, one packet each, go the request to it, and from it what is told, its heartbeat, and that it is ready. Packets that the
holder does not take in time are dropped and counted: printing must never make anybody wait for a file.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from bitward_agent.gate.facts import Policy
from bitward_agent.gate.kernel.doorkeeper import TURN_SECONDS, Doorkeeper
from bitward_agent.gate.kernel.facts import Fail, GateEvent, WatchRequest
from bitward_agent.gate.kernel.fanotify import Group

PACKET_LIMIT = 65_536
DESCRIPTORS = 65_536
_TEXT_LIMIT = 4000


def packet(event: GateEvent) -> bytes:
    """An event as it is sent; what is too long is cut."""
    values = {name: value[:_TEXT_LIMIT] if isinstance(value, str) else value for name, value in asdict(event).items()}
    return json.dumps(values).encode()


def read_request(data: bytes) -> WatchRequest:
    """The request as the holder sent it."""
    words: dict[str, Any] = json.loads(data)
    words["folders"] = tuple(words["folders"])
    words["policy"], words["fail"] = Policy(words["policy"]), Fail(words["fail"])
    return WatchRequest(**words)


class Channel:
    """The way to the holder. Sending never blocks."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self.is_open = True
        self._dropped = 0
        self._beaten = 0.0

    def tell(self, event: GateEvent) -> None:
        """Tell something."""
        if self._dropped:
            self._send(GateEvent("dropped", message=f"{self._dropped} messages were dropped"), counts=False)
        self._send(event)

    def beat(self) -> None:
        """Say about once a second that all is well."""
        if time.monotonic() - self._beaten > TURN_SECONDS / 2:
            self._beaten = time.monotonic()
            self._send(GateEvent("beat"), counts=False)

    def _send(self, event: GateEvent, *, counts: bool = True) -> None:
        try:
            self.socket.send(packet(event), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._dropped += counts
        except OSError:
            self.is_open = False
        else:
            if event.event == "dropped":
                self._dropped = 0

    def is_closed(self) -> bool:
        """Whether the holder is gone; call it when there is something to read."""
        try:
            return not self.socket.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _raised_limit() -> int:
    """As many descriptors as may be had: each open that waits takes one, and each lease."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if most == resource.RLIM_INFINITY else min(DESCRIPTORS, most)
    if limit != wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        except (OSError, ValueError):  # a sandbox may forbid it
            return min(limit, DESCRIPTORS)
    return wanted


def main(group_fd: int, channel_fd: int) -> int:
    """Answer the kernel until the holder says that it is over. When the holder dies: closed goes on alone, open lets go."""
    channel = Channel(channel_fd)
    request = read_request(channel.socket.recv(PACKET_LIMIT))
    descriptors = _raised_limit()
    request = replace(request, waiting_limit=min(request.waiting_limit, descriptors // 4))
    keeper = Doorkeeper(Group(group_fd), request, channel.tell, (os.getppid(),), descriptors // 4)
    keeper.mark(channel.beat)
    for told in keeper.troubles:
        channel.tell(GateEvent("trouble", message=told))
    channel.tell(GateEvent("ready"))
    while not keeper.ends:
        others = (channel.socket.fileno(),) if channel.is_open else ()
        if keeper.turn(TURN_SECONDS, *others) and channel.is_closed():
            channel.is_open = False
            if request.fail is Fail.OPEN:
                break
        if channel.is_open:
            channel.beat()
    keeper.stop()
    return 0


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2])))
