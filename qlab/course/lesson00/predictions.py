"""Lesson 0: what a student says before it is shown."""

from __future__ import annotations

PREDICTIONS = ()
