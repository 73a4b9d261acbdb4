"On a GPU that is not there: tensors without data, on which a wait for the device or one that lies elsewhere is an error"
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adamod_fastai.callback import ClippedFraction, RateHistogram
from adamod_fastai.base import ModOptimizer
from adamod_fastai.optimizer import AdaMod, DeepMemory, DiffGrad, DiffMod

@pytest.fixture(autouse=True)
def copies():
    "Skip where torch cannot copy such a tensor: 2.6 asks the driver for it"
    with FakeTensorMode(): a = torch.zeros(2, device='cuda')
    try: a.copy_(a+1)
    except RuntimeError as e: pytest.skip(str(e).splitlines()[0])

class Stays(TorchDispatchMode):
    "No result but on the device, and no copy from it or to it"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        res = func(*args, **(kwargs or {}))
        for o in res if isinstance(res, (list,tuple)) else [res]:
            if isinstance(o, torch.Tensor): assert o.device.type == 'cuda' or not o.dim(), f'{func} makes a tensor on {o.device}'
        return res

@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=False), Stays(): yield

def params(dtype=torch.float32):
    ps = [nn.Parameter(torch.empty(o, device='cuda', dtype=dtype)) for o in ((8,4),(4,),())]
    for p in ps: p.grad = torch.empty_like(p)
    return ps

def stepped(opt_func, dtype=torch.float32, n=3, **kwargs):
    opt = opt_func(params(dtype), lr=0.01, **kwargs)
    for _ in range(n):
        opt.step()
        opt.zero_grad()
    return opt

OPTS = AdaMod,DiffMod,DiffGrad,DeepMemory
OPTIONS = [(f,{}) for f in OPTS] + [(f,dict(decouple_wd=False)) for f in OPTS] + [
    (AdaMod,dict(paper=False, skip_zeros=True)), (DeepMemory,dict(follow_lr=True)),
    *((DiffGrad,dict(version=i)) for i in (1,2)), (DiffMod,dict(follow_lr=True, skip_zeros=True))]
IDS = ['-'.join([f.__name__, *(f'{k}={v}' for k,v in kw.items())]) for f,kw in OPTIONS]

@pytest.mark.parametrize('dtype', [torch.float32,torch.bfloat16])
@pytest.mark.parametrize('opt_func,kwargs', OPTIONS, ids=IDS)
def test_steps(opt_func, kwargs, dtype, fake):
    opt = stepped(opt_func, dtype, **kwargs)
    for p,_,state,_ in opt.all_params():
        for v in state.values(): assert not isinstance(v, torch.Tensor) or (v.device==p.device and v.shape==p.shape)

def measure(cb, opt):
    "What `cb` does after a step of a fit"
    cb.learn = SimpleNamespace(opt=opt, model=torch.nn.Module(), cbs=[], n_iter=3000, n_epoch=1, train_iter=0)
    cb._training = True
    cb.after_step()
    return cb

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod])
def test_clipped_fraction(opt_func, fake):
    cb = measure(ClippedFraction(), stepped(opt_func))
    assert cb._pending[0][1].device.type == 'cuda' and cb.steps == [0]

@pytest.mark.parametrize('opt_func', OPTS)
def test_rate_histogram(opt_func, fake):
    cb = measure(RateHistogram(), stepped(opt_func))
    assert cb._hists[0].device.type == 'cuda' and cb._hists[0].shape == (120,)

def waits(p, **kwargs): p.data.mul_(p.grad.data.norm().item())
def branches(p, **kwargs):
    if p.grad.data.sum() > 0: p.data.zero_()
def elsewhere(p, **kwargs): p.data.add_(torch.ones(p.shape, device='cpu'))

WAITS = 'item|data.dependent|local_scalar|nonzero'

@pytest.mark.parametrize('f,error,match', [(waits,RuntimeError,WAITS), (branches,RuntimeError,WAITS),
                                           (elsewhere,AssertionError,'makes a tensor on cpu')])
def test_would_be_found(f, error, match, fake):
    with pytest.raises(error, match=match): stepped(lambda *args, **kwargs: ModOptimizer(*args, cbs=f, **kwargs))
