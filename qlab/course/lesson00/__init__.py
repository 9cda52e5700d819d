"""Lesson 0: from float to int8."""
