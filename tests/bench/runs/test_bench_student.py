"""A student and its teacher draw, each verified, and the student in less time."""

from dataclasses import replace

import pytest
import torch

from bench.runs import student
from bench.runs.student import PROVIDERS

[SHIPPED] = student.cases("cpu")
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_student_and_teacher_are_verified_and_timed():
    lines = replace(SHIPPED, images=1).run(torch.device("cpu"))
    timed = [line for line in lines if line.timing is not None]
    assert [line.provider for line in timed] == [provider.name for provider in PROVIDERS]
    fast, slow = (line.timing.milliseconds for line in timed)
    assert fast < slow
