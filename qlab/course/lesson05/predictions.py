"""Lesson 5: what a student says before it is shown."""

from __future__ import annotations

PREDICTIONS = ()
