"""Lesson 9: a few bits."""
