"""Slow loris: clients that keep a connection open and do not get on. They are closed, and others are answered."""

import contextlib
import re
import socket
import time

import pytest

pytest.importorskip("fastapi")

from tests.live_server import until
from tests.running_server import raw_request, received, running

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = HEAD + b"\r\n"


@pytest.fixture(scope="module")
def server():
    with running(rows=4, head_timeout=1.0, max_waiting=100) as server:
        yield server


@pytest.fixture
def opened(server):
    """Opens a connection over which some bytes are sent."""
    with contextlib.ExitStack() as stack:
        yield lambda content: stack.enter_context(server.send(content))


def closed(server, why):
    """How many connections were closed for a reason."""
    return float(re.search(rf'closed_total{{why="{why}"}} (\S+)', server.client.get("/metrics").text)[1])


def is_closed(connection):
    """Whether the other side has closed a connection, over which nothing more comes."""
    connection.settimeout(0.01)
    try:
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_half_a_head_is_given_up(server, opened):
    before = closed(server, "head")
    parts = (b"", b"G", HEAD, raw_request({})[:60])
    waiting = [opened(part) for part in parts for _ in range(20)]
    began = time.monotonic()
    drip = waiting[-1]
    with contextlib.suppress(OSError):  # the server has closed it
        while time.monotonic() < began + 30:  # a byte now and then is no progress
            drip.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() < began + 30
    assert server.chat().status_code == 200
    until(lambda: all(map(is_closed, waiting)), 30)
    assert closed(server, "head") == before + len(waiting)


def test_a_connection_that_has_served_is_closed_as_soon(server, opened):
    """Half a head of a second request, and bytes of a body that nobody reads."""
    idle, second, unread = opened(WHOLE), opened(WHOLE + HEAD), opened(b"POST /no HTTP/1.1\r\nHost: localhost\r\n")
    unread.sendall(b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    for connection, status in ((idle, b" 200 "), (second, b" 200 "), (unread, b" 404 ")):
        assert status in received(connection, b"}")
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() < began + 30:
            for connection in (second, unread):
                connection.sendall(b"x")
            time.sleep(0.1)
    until(lambda: is_closed(second) and is_closed(unread), 30)
    assert time.monotonic() < began + 30
    idle.settimeout(30)
    idle.sendall(WHOLE)  # between two requests a client may take its time
    assert b" 200 " in received(idle, b"}")


def test_the_longest_wait_makes_room(server, opened):
    """Of more connections than may wait, new ones are kept; so those of clients that ask are."""
    before, waiting = closed(server, "crowd"), [opened(WHOLE) for _ in range(100)]
    assert all(b" 200 " in received(connection, b"}") for connection in waiting)
    time.sleep(1.1)  # at once, nobody is closed
    late = [opened(WHOLE) for _ in range(5)]
    assert server.client.get("/health/live").status_code == 200
    until(lambda: sum(map(is_closed, waiting)) >= 5, 10)
    assert not any(map(is_closed, [*waiting[10:], *late])) and closed(server, "crowd") >= before + 5


def test_what_nobody_reads_is_given_up():
    with running(rows=1, timeout=1.0) as server:
        connection = socket.socket()
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.settimeout(10)
            with contextlib.suppress(OSError):  # as many as the server takes
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
            until(lambda: closed(server, "reader") == 1, 30)
        assert server.client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "content", [b"\x16\x03\x01\x02\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /a b HTTP/1.1\r\n\r\n"]
)
def test_no_http(opened, content):
    answer = received(opened(content), b"}}")
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"code": "invalid_http"' in answer
