"""The control socket: lines of JSON, a request and its answer, over a Unix socket in the runtime folder.

Who may connect is the file mode's to say. Even so nothing that comes in is believed: lines, connections and waiting are bounded.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

from bitward_agent.errors import BusyError, InputError, UnreadableError, WriteError

SOCKET_NAME = "agent.sock"
LINE_BYTES_LIMIT = 64 << 10
ANSWER_BYTES_LIMIT = 64 << 20
CONNECTIONS_LIMIT = 16
IDLE_SECONDS = 30.0
ASK_SECONDS = 10.0

Document = dict[str, Any]
Handler = Callable[[Document], Document]


class _Connection:
    """One client: what it has sent of a line, what is still to be sent to it, and since when it is silent."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.incoming = bytearray()
        self.outgoing = memoryview(b"")
        self.last = time.monotonic()
        self.closing = False


class ControlServer:
    """Serves in a thread of its own. ``handle`` answers one request; it must be quick, and may raise InputError."""

    def __init__(self, runtime_dir: str, handle: Handler, *, mode: int = 0o600) -> None:
        """
        Raises:
            WriteError: the socket cannot be made.
            BusyError: another agent serves there.
        """
        self.path = socket_path(runtime_dir)
        self._handle = handle
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(runtime_dir, self.path, mode)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._connections: dict[int, _Connection] = {}
        self._stopped = False
        self._thread = Thread(target=self._serve, name="bitward-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, and take the socket away."""
        self._stopped = True
        with suppress(OSError):
            os.write(self._wake_write, b"x")
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        with suppress(OSError):
            os.unlink(self.path)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _serve(self) -> None:
        while not self._stopped:
            for key, events in self._selector.select(timeout=5.0 if self._connections else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data is not None:
                    self._tend(key.data, events)
            now = time.monotonic()
            for connection in [one for one in self._connections.values() if now - one.last > IDLE_SECONDS]:
                self._drop(connection)

    def _accept(self) -> None:
        with suppress(OSError):
            peer, _ = self._listener.accept()
            if len(self._connections) >= CONNECTIONS_LIMIT:
                oldest = min(self._connections.values(), key=lambda one: one.last)
                self._drop(oldest)
            peer.setblocking(False)
            connection = _Connection(peer)
            self._connections[peer.fileno()] = connection
            self._selector.register(peer, selectors.EVENT_READ, connection)

    def _tend(self, connection: _Connection, events: int) -> None:
        connection.last = time.monotonic()
        try:
            if events & selectors.EVENT_WRITE:
                self._send(connection)
            elif events & selectors.EVENT_READ:
                data = connection.peer.recv(16384)
                if not data:
                    self._drop(connection)
                    return
                connection.incoming += data
                self._answer(connection)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(connection)

    def _answer(self, connection: _Connection) -> None:
        """One answer at a time: the next line is read when this one is sent."""
        end = connection.incoming.find(b"\n")
        if end < 0 and len(connection.incoming) > LINE_BYTES_LIMIT:
            connection.closing = True
            connection.outgoing = memoryview(_line(_refusal(f"a line has at most {LINE_BYTES_LIMIT} bytes")))
        elif end >= 0:
            line = bytes(connection.incoming[:end])
            del connection.incoming[: end + 1]
            connection.outgoing = memoryview(_line(self._reply(line)))
        else:
            return
        self._selector.modify(connection.peer, selectors.EVENT_WRITE, connection)

    def _reply(self, line: bytes) -> Document:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _refusal("not a line of JSON")
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return _refusal('not an object with a "command"')
        try:
            return {"ok": True, **self._handle(request)}
        except InputError as error:
            return _refusal(str(error))

    def _send(self, connection: _Connection) -> None:
        sent = connection.peer.send(connection.outgoing)
        connection.outgoing = connection.outgoing[sent:]
        if connection.outgoing:
            return
        if connection.closing:
            self._drop(connection)
            return
        self._selector.modify(connection.peer, selectors.EVENT_READ, connection)
        self._answer(connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.peer.fileno(), None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.peer)
        connection.peer.close()


def _refusal(told: str) -> Document:
    return {"ok": False, "error": told}


def _line(document: Document) -> bytes:
    return json.dumps(document).encode() + b"\n"


def socket_path(runtime_dir: str) -> str:
    """Where an agent's control socket is."""
    return os.path.join(runtime_dir, SOCKET_NAME)


def _listen(runtime_dir: str, path: str, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.makedirs(runtime_dir, mode=0o755, exist_ok=True)
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise WriteError(f"{path}: is in the way and no socket: remove it")
            if _is_served(path):
                raise BusyError(f"{path}: another agent serves there")
            os.unlink(path)
        before = os.umask(0o177)  # from its first moment nobody else may connect
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        os.chmod(path, mode)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise WriteError(f"{path}: cannot serve there: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.settimeout(1.0)
        try:
            client.connect(path)
        except TimeoutError:
            return True
        except OSError:
            return False
        return True


def ask(runtime_dir: str, request: Document, *, seconds: float = ASK_SECONDS) -> Document:
    """Ask a running agent.

    Raises:
        UnreadableError: no agent answers there.
        InputError: it refuses; the message is its own.
    """
    path = socket_path(runtime_dir)
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
            client.settimeout(seconds)
            client.connect(path)
            client.sendall(_line(request))
            while not answer.endswith(b"\n"):
                data = client.recv(1 << 16)
                if not data or len(answer) > ANSWER_BYTES_LIMIT:
                    raise UnreadableError(f"{path}: the agent broke off")
                answer += data
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise UnreadableError(f"{path}: the agent is asked by too many at once") from error
        told = "no agent runs there" if isinstance(error, FileNotFoundError | ConnectionRefusedError) else error.strerror or str(error)
        raise UnreadableError(f"{path}: {told}") from error
    try:
        document = json.loads(answer)
    except ValueError as error:
        raise UnreadableError(f"{path}: the answer is no JSON") from error
    if not isinstance(document, dict) or not document.get("ok"):
        raise InputError(str(document.get("error", "the agent refuses")) if isinstance(document, dict) else "the agent refuses")
    return document
