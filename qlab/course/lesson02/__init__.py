"""Lesson 2: clipping."""
