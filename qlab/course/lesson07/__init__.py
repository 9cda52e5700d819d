"""Lesson 7: quantization-aware training."""
