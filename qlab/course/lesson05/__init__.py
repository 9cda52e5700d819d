"""Lesson 5: integer arithmetic."""
