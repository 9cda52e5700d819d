"""Lesson 6: PTQ from end to end."""
