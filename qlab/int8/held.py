"""Torch's global settings, each held at one value while a thread needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NOTHING = object()


class Held:
    """A global setting of torch that several threads need, perhaps at different values.

    Threads that need the same value hold it together; those that need another one wait for their turn. When nobody
    holds it any more, it is what it was before.

    >>> now = {"engine": "old"}
    >>> setting = Held(lambda: now["engine"], lambda value: now.update(engine=value))
    >>> with setting.at("new"):
    ...     now
    {'engine': 'new'}
    >>> now
    {'engine': 'old'}
    """

    def __init__(self, get: Callable[[], object], set: Callable[[object], None]) -> None:
        self._get, self._set = get, set
        self._door, self._lock = threading.Lock(), threading.Lock()
        self._left = threading.Condition(self._lock)
        self._value = self._before = NOTHING
        self._threads = self._waiting = 0  # how many hold it at _value, how many wait for another one
        self._mine = _Mine()

    def is_at(self, value: object) -> bool:
        """Whether this thread holds the setting at ``value``."""
        return self._mine.value == value

    @contextmanager
    def at(self, value: object) -> Iterator[None]:
        """Hold the setting at ``value``. A thread that holds it at another one gives that up for so long."""
        outer = self.hold(value)
        try:
            yield
        finally:
            self.hold(outer)

    def hold(self, value: object) -> object:
        """Hold the setting at ``value`` from now on (at none: NOTHING); what this thread held it at before.

        :meth:`at` without the context, which takes as long as a small kernel.
        """
        mine = self._mine
        outer = mine.value
        if outer == value:
            return outer
        with self._lock:
            if outer is not NOTHING:
                self._leave()
                mine.value = NOTHING
            if value is NOTHING:
                return outer
            if not self._waiting and (self._value == value or not self._threads):
                self._take(value)
                mine.value = value
                return outer
            self._waiting += 1
        with self._door, self._lock:  # one after the other, so that nobody waits for ever
            try:
                while self._threads and self._value != value:
                    self._left.wait()
                self._take(value)
                mine.value = value
            finally:
                self._waiting -= 1
        return outer

    def _take(self, value: object) -> None:
        if not self._threads:
            self._before = self._get()
            if self._before != value:
                self._set(value)
            self._value = value
        self._threads += 1

    def _leave(self) -> None:
        self._threads -= 1
        if not self._threads:
            if self._before != self._value:
                self._set(self._before)
            if self._waiting:
                self._left.notify_all()


class _Mine(threading.local):
    """The value at which a thread holds the setting."""

    value: object = NOTHING
