"The machine on which the pages are tested: what is done on it twice is the same, and elsewhere it is nearly so"
import subprocess, sys

import pytest
import torch

from other_machine import machine_env, shift

def shifted(grad, machine):
    grad = grad.clone()
    shift(grad, machine)
    return grad

def test_a_gradient_is_the_same_on_one_machine_and_a_millionth_off_on_another():
    grad = torch.randn(10_000)
    one,two = shifted(grad, 1),shifted(grad, 2)
    assert torch.equal(one, shifted(grad, 1))
    for a,b in ((one,grad),(two,grad),(one,two)):
        off = (a.double()/b.double()-1).abs()
        assert 3e-7 < off.mean() < 1e-6 and off.max() < 2.3e-6     # a bit more than two millionths, for it is rounded

def test_no_gradient_stays_none(): assert not shifted(torch.zeros(9), 1).any()

@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16])
def test_a_narrow_gradient_is_off_by_its_last_bit(dtype):
    grad = torch.randn(10_000).to(dtype)
    off = (shifted(grad, 1).double()/grad.double()-1).abs()
    assert 0.1 < (off > 0).double().mean() < 0.9 and off.max() < 2*torch.finfo(dtype).eps

IN_A_PROCESS = """
from fastai.basics import *
from adamod_fastai.compare.tasks import digits_learner
def sizes():
    set_seed(1)
    learn = digits_learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01)
    return [p.double().abs().sum().item() for p in learn.model.parameters()]
first = sizes()
assert sizes() == first
print(first)
"""

def test_a_process_trains_as_on_the_machine_that_it_is_told(monkeypatch):
    monkeypatch.delenv('OTHER_MACHINE', raising=False)
    def sizes(number):
        res = subprocess.run([sys.executable,'-W','ignore','-c',IN_A_PROCESS], env=machine_env(number), capture_output=True, text=True)
        assert res.returncode == 0, res.stderr[-2000:]
        return torch.tensor(eval(res.stdout), dtype=torch.float64)
    here,there = sizes(0),sizes(1)
    assert (here != there).all()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=0)
