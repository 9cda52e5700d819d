"""Lesson 4: granularity."""
