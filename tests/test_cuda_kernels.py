"The kernels of the fused step for a GPU, which Triton's interpreter runs without one"
import subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

KNOWN = '2.14'  # what is pretended there are private names of torch

@pytest.mark.slow
@pytest.mark.skipif(not torch.__version__.startswith(KNOWN), reason=f'a GPU is pretended for torch {KNOWN} only')
@pytest.mark.skipif(not find_spec('triton'), reason='there is no triton')
def test_on_a_pretended_gpu():
    file = Path(__file__).parent/'pretended_gpu.py'
    res = subprocess.run([sys.executable,'-m','pytest','-q','-p','no:cacheprovider',str(file)], capture_output=True, text=True)
    assert res.returncode==0, res.stdout[-6000:]
