"""Lesson 1: numbers with few bits."""
