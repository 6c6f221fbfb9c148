"""The control socket, served for real, and what a hostile client can do to it."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bitward_agent.daemon.control import CONNECTIONS_LIMIT, LINE_BYTES_LIMIT, ControlServer, Document, ask
from bitward_agent.errors import BusyError, InputError, UnreadableError, WriteError


def handle(request: Document) -> Document:
    if request["command"] == "refuse":
        raise InputError("no")
    if request["command"] == "big":
        return {"data": "x" * 10_000_000}
    return {"heard": request}


@contextmanager
def served(folder: Path, mode: int = 0o600) -> Iterator[ControlServer]:
    server = ControlServer(str(folder), handle, mode=mode)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def client_of(server: ControlServer) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(server.path)
        yield client


def reply(client: socket.socket) -> Document:
    data = b""
    while not data.endswith(b"\n"):
        more = client.recv(1 << 16)
        assert more, "the server broke off"
        data += more
    answer = json.loads(data)
    assert isinstance(answer, dict)
    return answer


def test_questions_are_answered_and_the_socket_goes_away(tmp_path: Path) -> None:
    with served(tmp_path / "run") as server:
        assert ask(str(tmp_path / "run"), {"command": "x", "path": "\udcff"}) == {"ok": True, "heard": {"command": "x", "path": "\udcff"}}
        assert len(ask(str(tmp_path / "run"), {"command": "big"})["data"]) == 10_000_000
        with pytest.raises(InputError, match="no"):
            ask(str(tmp_path / "run"), {"command": "refuse"})
        with pytest.raises(BusyError):
            ControlServer(str(tmp_path / "run"), handle)
        path = server.path
    assert not os.path.lexists(path)
    with pytest.raises(UnreadableError, match="no agent runs there"):
        ask(str(tmp_path / "run"), {"command": "x"})


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_who_may_connect_is_the_modes_to_say(tmp_path: Path, mode: int) -> None:
    with served(tmp_path, mode) as server:
        assert stat.S_IMODE(os.stat(server.path).st_mode) == mode


def test_a_socket_that_a_kill_left_is_taken_over_and_other_things_are_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "agent.sock"))
    with served(tmp_path):
        assert ask(str(tmp_path), {"command": "x"})["ok"]
    (tmp_path / "agent.sock").write_text("precious")
    with pytest.raises(WriteError, match="in the way"):
        ControlServer(str(tmp_path), handle)
    assert (tmp_path / "agent.sock").read_text() == "precious"
    (tmp_path / "agent.sock").unlink()
    (tmp_path / "agent.sock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WriteError):
        ControlServer(str(tmp_path), handle)


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"[]", b"{}", b'{"command": 1}', b"\xff\xfe", b"{" * 5000, b"[" * 60_000, b'{"command": "x"', b"GET / HTTP/1.1"],
)
def test_lines_that_make_no_sense_are_refused_and_the_next_is_answered(tmp_path: Path, line: bytes) -> None:
    with served(tmp_path) as server, client_of(server) as client:
        client.sendall(line + b"\n")
        assert reply(client)["ok"] is False
        client.sendall(b'{"command": "x"}\n')
        assert reply(client)["ok"] is True


def test_a_line_without_end_is_cut_off(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        with client_of(server) as client:
            client.sendall(b"x" * (LINE_BYTES_LIMIT + 1))
            assert "at most" in reply(client)["error"]
            assert client.recv(1) == b""
        assert ask(str(tmp_path), {"command": "x"})["ok"]


def test_many_silent_clients_shut_nobody_out(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        silent = []
        for _ in range(CONNECTIONS_LIMIT * 3):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(5)
            client.connect(server.path)
            silent.append(client)
        assert ask(str(tmp_path), {"command": "x"})["ok"]
        for client in silent:
            client.close()


def test_a_client_that_does_not_read_its_answer_holds_up_nobody(tmp_path: Path) -> None:
    with served(tmp_path) as server, client_of(server) as lazy:
        lazy.sendall(b'{"command": "big"}\n' * 50)
        assert ask(str(tmp_path), {"command": "x"})["ok"]


def test_pipelined_and_torn_lines(tmp_path: Path) -> None:
    with served(tmp_path) as server, client_of(server) as client:
        client.sendall(b'{"command": "a"}\n{"command": "b"}\n{"comm')
        with client.makefile("rb") as answers:
            assert json.loads(answers.readline())["heard"]["command"] == "a"
            assert json.loads(answers.readline())["heard"]["command"] == "b"
            client.sendall(b'and": "c"}\n')
            assert json.loads(answers.readline())["heard"]["command"] == "c"


class _Wrong:
    """A program that answers on the socket and is no agent."""

    def __init__(self, folder: Path, answer: bytes) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "agent.sock"))
        self.listener.listen(1)
        self.answer = answer


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"[]\n", b'{"ok": false, "error": 5}\n'])
def test_answers_that_make_no_sense_are_errors(tmp_path: Path, answer: bytes) -> None:
    import threading

    wrong = _Wrong(tmp_path, answer)

    def serve() -> None:
        peer, _ = wrong.listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises((UnreadableError, InputError)):
        ask(str(tmp_path), {"command": "x"})
    thread.join()
    wrong.listener.close()
