"""Lesson 8: PTQ or QAT."""
