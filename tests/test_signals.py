"""A stop request: when a signal ends the work, and requests inside requests."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from vitcod_cli.errors import Interrupted
from vitcod_cli.signals import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(autouse=True)
def without_nohup() -> Iterator[None]:
    """The tests may be run under nohup, which has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGINT, 130, "Ctrl-C"),
        (signal.SIGTERM, 143, "SIGTERM"),
        (signal.SIGUSR1, 143, "SIGUSR1"),
        (signal.SIGHUP, 143, "SIGHUP"),
    ],
)
def test_at_once_ends_the_work_here_and_now(number: signal.Signals, code: int, name: str) -> None:
    before = handlers()
    with pytest.raises(Interrupted) as stopped, StopRequest(at_once=True) as stop:
        send(number)
    assert (stopped.value.code, stop.name, stop.raised) == (code, name, True)
    assert handlers() == before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert not stop.terminated
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_inner_request_decides_and_the_outer_hears_of_it() -> None:
    before = handlers()
    with StopRequest(at_once=True) as outer:
        ours = handlers()
        with StopRequest() as inner:
            send(signal.SIGTERM)
            assert inner.terminated
        assert handlers() == ours
        assert outer.terminated
        assert not outer.raised
        with StopRequest() as later:
            assert later.terminated, "what came between two of them is not forgotten"
            with pytest.raises(Interrupted):
                later.stop()
            with pytest.raises(Interrupted), later.at_once():
                pytest.fail("not reached")
        assert later.raised
        assert not outer.raised, "one of the two tells of it"
    assert handlers() == before


def test_a_signal_of_the_outer_request_reaches_the_inner() -> None:
    with StopRequest() as outer:
        send(signal.SIGINT)
        with StopRequest() as inner:
            assert inner.interrupted
        assert outer.interrupted
    with StopRequest() as fresh:
        assert not fresh.interrupted, "the next run has nothing to do with it"


def test_an_at_once_block_inside_another_leaves_it_at_once() -> None:
    def work() -> None:
        with StopRequest(at_once=True) as stop:
            with stop.at_once():
                pass
            send(signal.SIGTERM)

    with pytest.raises(Interrupted):
        work()


def test_deferred_waits_for_the_next_good_moment() -> None:
    reached = []

    def work() -> None:
        with StopRequest(at_once=True) as stop:
            with stop.deferred():
                send(signal.SIGTERM)
                reached.append("the end of a step")
            reached.append("outside")
            stop.stop()
            reached.append("too far")

    with pytest.raises(Interrupted):
        work()
    assert reached == ["the end of a step", "outside"]


@pytest.mark.parametrize(
    ("interrupted", "terminated", "code"), [(True, False, 130), (False, True, 143), (True, True, 130)]
)
def test_processes_that_agree_end_alike(interrupted: bool, terminated: bool, code: int) -> None:
    for own in (None, signal.SIGINT, signal.SIGTERM):
        with StopRequest() as stop:
            if own is not None:
                send(own)
            both = {
                "interrupted": interrupted or own == signal.SIGINT,
                "terminated": terminated or own == signal.SIGTERM,
            }
            stop.learn(**both)
            with pytest.raises(Interrupted) as stopped:
                stop.stop()
            assert stopped.value.code == (130 if both["interrupted"] else code)


def test_nothing_is_learnt_where_nobody_was_signalled() -> None:
    stop = StopRequest()
    stop.learn(interrupted=False, terminated=False)
    stop.stop()


def test_another_thread_leaves_the_handlers_alone() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with StopRequest(at_once=True), StopRequest():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_forked_child_leaves_signals_to_its_parent() -> None:
    """A worker that has just been forked has the handlers of the main process."""
    read, write = os.pipe()
    with StopRequest(at_once=True):
        child = os.fork()
        if child == 0:
            try:
                send(signal.SIGTERM)
                os.write(write, b"lives")
            finally:
                os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert os.read(read, 100) == b"lives"
    os.close(read)
