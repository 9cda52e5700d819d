"""A global setting that several threads need: those of one value together, others in turn, and then it is as before."""

from __future__ import annotations

import threading
import time

import pytest

from qlab.int8.held import NOTHING, Held


class Setting:
    def __init__(self):
        self.value = "before"
        self.held = Held(lambda: self.value, lambda value: setattr(self, "value", value))


def in_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_it_is_what_it_was_afterwards_and_after_an_error():
    setting = Setting()
    with pytest.raises(KeyError), setting.held.at("a"):
        assert setting.value == "a" and setting.held.is_at("a")
        raise KeyError
    assert setting.value == "before" and not setting.held.is_at("a")


def test_a_thread_may_hold_it_at_another_value_for_a_while():
    setting = Setting()
    with setting.held.at("a"):
        with setting.held.at("a"), setting.held.at("b"):
            assert setting.value == "b"
        assert setting.value == "a"
    assert setting.value == "before"


def test_threads_of_one_value_hold_it_together():
    setting, inside = Setting(), threading.Barrier(2, timeout=10)

    def both():
        with setting.held.at("a"):
            inside.wait()  # breaks, if one is let in after the other

    thread = in_thread(both)
    both()
    thread.join(10)
    assert not inside.broken and setting.value == "before"


def test_another_value_waits_for_its_turn_and_is_not_overtaken():
    setting, order = Setting(), []

    def take(value):
        with setting.held.at(value):
            order.append((value, setting.value))

    outer = setting.held.hold("a")
    assert outer is NOTHING
    waiting = in_thread(lambda: take("b"))
    while not setting.held._waiting:
        time.sleep(0.001)
    late = in_thread(lambda: take("a"))  # what is held now, but somebody waits already
    while setting.held._waiting < 2:
        time.sleep(0.001)
    assert order == [] and setting.value == "a"
    setting.held.hold(outer)
    waiting.join(10)
    late.join(10)
    assert order == [("b", "b"), ("a", "a")] and setting.value == "before"


def test_two_threads_that_each_change_within_do_not_wait_for_each_other():
    setting, start = Setting(), threading.Barrier(2, timeout=10)

    def change(first, then):
        with setting.held.at(first):
            if first == "a":
                start.wait()
            with setting.held.at(then):
                assert setting.value == then
            assert setting.value == first

    threads = [in_thread(lambda: change("a", "b")) for _ in range(2)]
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads) and setting.value == "before"
