"""Lesson 99: the challenge."""
