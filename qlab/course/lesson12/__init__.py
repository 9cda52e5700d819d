"""Lesson 12: deployment."""
