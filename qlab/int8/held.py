"""Torch's global settings, each held at one value while a thread needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

_NOTHING = object()


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
        self._value = self._before = _NOTHING
        self._threads = self._waiting = 0  # how many hold it at _value, how many wait for another one
        self._mine = _Mine()

    def is_at(self, value: object) -> bool:
        """Whether this thread holds the setting at ``value``."""
        return self._mine.value == value

    def at(self, value: object) -> AbstractContextManager:
        """Hold the setting at ``value``. A thread that holds it at another one gives that up for so long."""
        return _At(self, value)

    def _enter(self, value: object) -> None:
        with self._lock:
            if not self._waiting and (not self._threads or self._value == value):
                return self._take(value)
            self._waiting += 1
        with self._door, self._lock:  # one after the other, so that nobody waits for ever
            try:
                while self._threads and self._value != value:
                    self._left.wait()
                self._take(value)
            finally:
                self._waiting -= 1

    def _take(self, value: object) -> None:
        if not self._threads:
            self._value, self._before = value, self._get()
            if self._before != value:
                self._set(value)
        self._threads += 1
        self._mine.value = value

    def _leave(self) -> None:
        with self._lock:
            self._mine.value = _NOTHING
            self._threads -= 1
            if not self._threads:
                if self._before != self._value:
                    self._set(self._before)
                self._left.notify_all()


class _Mine(threading.local):
    """The value at which a thread holds the setting."""

    value: object = _NOTHING


class _At:
    """A context as a class: a generator takes twice as long, which a network of small kernels would show."""

    __slots__ = ("_outer", "_setting", "_value")

    def __init__(self, setting: Held, value: object) -> None:
        self._setting, self._value = setting, value

    def __enter__(self) -> None:
        self._outer = self._setting._mine.value
        if self._outer != self._value:
            if self._outer is not _NOTHING:
                self._setting._leave()
            self._setting._enter(self._value)

    def __exit__(self, *error: object) -> None:
        if self._outer != self._value:
            self._setting._leave()
            if self._outer is not _NOTHING:
                self._setting._enter(self._outer)
