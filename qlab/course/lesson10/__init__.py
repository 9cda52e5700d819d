"""Lesson 10: language models."""
