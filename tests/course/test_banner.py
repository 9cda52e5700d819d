"""A lesson's first cell says which images it runs on."""

from __future__ import annotations

from dataclasses import replace

from qlab.course import banner
from qlab.data import shapes10


def test_the_banner_says_which_images_a_lesson_runs_on():
    ten = shapes10("validation").sample(10)
    said = banner(ten).data
    assert said.startswith("**Images: shapes10** (10 in the validation split; 10 classes: circle, ")
    assert "qlab.data.cifar10()" in said
    assert "qlab.data.cifar10()" not in banner(replace(ten, source="CIFAR-10, JPEG copy")).data
