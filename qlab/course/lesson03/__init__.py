"""Lesson 3: observers and calibration."""
