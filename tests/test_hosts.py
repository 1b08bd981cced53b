"""Processes that meet: shares, who is missing, who died. With jax.distributed: test_generate_many."""

import socket
import threading
import time

import pytest

from sdjax import hosts


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("count", [0, 1, 7, 12])
@pytest.mark.parametrize("processes", [1, 2, 5])
def test_shares_are_all_there_is_once(count, processes):
    shares = [hosts.share(count, i, processes) for i in range(processes)]
    assert [number for own in shares for number in own] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_who_never_joins_is_named_with_the_address():
    port = free_port()
    with pytest.raises(TimeoutError, match=f"process 1, 2 of 3 did not come to 127.0.0.1:{port} within 0.2 s"):
        hosts.join(f"127.0.0.1:{port}", 3, 0, timeout=0.2)
    with pytest.raises(TimeoutError, match=f"127.0.0.1:{port}: not joined within 0.2 s .* is process 0 running there?"):
        hosts.join(f"127.0.0.1:{port}", 2, 1, timeout=0.2)


def test_strangers_are_not_let_in():
    port, errors = free_port(), []

    def wait() -> None:
        try:
            hosts.join(f"127.0.0.1:{port}", 2, 0, timeout=2.0)
        except TimeoutError as error:
            errors.append(str(error))

    door = threading.Thread(target=wait)
    door.start()
    for said in (b"GET / HTTP/1.1\n", b"sdjax 1 of 2\n", b"sdjax 2 2\n", b"\xff\n"):
        speak(port, said)
    door.join()
    assert len(errors) == 1 and "process 1 of 2 did not come" in errors[0]


def speak(port: int, said: bytes) -> None:
    for _ in range(100):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                line.sendall(said)
                assert line.recv(10) == b""
            return
        except ConnectionRefusedError:
            time.sleep(0.02)


def three() -> list[hosts.Hosts]:
    pairs = [socket.socketpair() for _ in range(2)]
    first = hosts.Hosts(0, 3, {i + 1: pair[0] for i, pair in enumerate(pairs)})
    return [first, *(hosts.Hosts(i + 1, 3, {0: pair[1]}) for i, pair in enumerate(pairs))]


def finish(met: list[hosts.Hosts]) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    threads = [threading.Thread(target=lambda one=one: found.update({one.index: one.finish()})) for one in met]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return found


def test_all_are_done():
    assert finish(three()) == {0: (), 1: (), 2: ()}
    assert hosts.join(None).finish() == () and list(hosts.join(None).share(3)) == [0, 1, 2]


@pytest.mark.parametrize("dead,told", [(1, {0: (1,), 2: (1,)}), (0, {1: (0,), 2: (0,)})])
def test_everybody_hears_of_a_death(dead, told):
    met = three()
    for line in met[dead].lines.values():
        line.close()  # as the system does it for a process that was killed
    assert finish([one for one in met if one.index != dead]) == told


@pytest.mark.parametrize(
    "given,message",
    [
        (("localhost", 2, 0), "coordinator must be host:port"),
        ((None, 2, 0), "coordinator must be host:port"),
        (("localhost:99999", 2, 0), "coordinator must be host:port"),
        (("localhost:1234", 2, 2), "process_index must be from 0 to 1"),
        (("localhost:1234", 0, 0), "processes must be at least 1"),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(ValueError, match=message):
        hosts.join(*given)
