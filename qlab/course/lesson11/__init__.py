"""Lesson 11: detection in real time."""
