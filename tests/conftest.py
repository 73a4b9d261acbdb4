import matplotlib
import pytest
import torch

matplotlib.use('Agg')
torch.set_num_threads(1)  # the tensors here are small, and one thread is deterministic

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(42)
