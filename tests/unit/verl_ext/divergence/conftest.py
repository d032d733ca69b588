"""The two ways to a divergence: log-probabilities written down, and a GPU's kernels in Triton's interpreter."""

import pytest
import torch

from verl_ext.divergence import linear
from verl_ext.divergence.head import working_dtype


@pytest.fixture
def kernels(monkeypatch):
    """The kernels do the work wherever they could on a GPU."""

    def could(student):
        return working_dtype(student.hidden, student.weight) == torch.float32 and student.soft_cap is None

    monkeypatch.setattr(linear, "uses_kernels", could)


@pytest.fixture(params=["written down", "kernels"])
def way(request):
    """Both, one after the other."""
    if request.param == "kernels":
        request.getfixturevalue("kernels")
