"Hard cases: gradients, parameters and moves that no one plans for"
import ctypes, gc, math, random, sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from fastai.basics import Adam, Callback
from fastai.callback.all import TerminateOnNaNCallback

from adamod_fastai.all import AdaMod, ClippedFraction, DeepMemory, DiffGrad, DiffMod, MemoryLength
from learners import cancer_learner, quiet, same, state_of, steps, values
from reference import Rule
from test_training_loop import mixed

def reference(opt_func, start, **kwargs):
    return Rule(opt_func.func.__name__, np.full(3, start), version=0 if opt_func.func.__name__ == 'DiffMod' else None, **kwargs)

def step(opt, p, grad):
    p.grad = torch.as_tensor(grad, dtype=p.dtype, device=p.device).expand_as(p).clone()
    opt.step()

def finite(opt): return all(v.isfinite().all() for s in state_of(opt) for v in s.values() if torch.is_tensor(v))

# --- gradients

class Poison(Callback):
    "Put `value` into one element of one gradient at the steps `at`"
    order = 5     # before `MixedPrecision` looks at the gradients
    def __init__(self, value, at): self.value,self.at = value,at
    def before_step(self):
        self.before = values(self.model),state_of(self.opt)
        if self.train_iter in self.at: next(self.model.parameters()).grad[0,0] = self.value
    def after_step(self):
        if self.train_iter in self.at: self.learn.unharmed = same(self.before, (values(self.model), state_of(self.opt)))

@pytest.mark.feature('gradients of NaN or infinity, with the scaler')
@pytest.mark.parametrize('value', [math.nan,math.inf,-math.inf])
@pytest.mark.slow
def test_the_scaler_skips_what_is_not_finite(opt_func, value):
    learn = quiet(cancer_learner(opt_func, cbs=[mixed(torch.float16, init_scale=1024.), Poison(value, [20,40]), MemoryLength()]))
    learn.fit_one_cycle(3, 0.03)
    assert learn.unharmed and steps(learn) == {73} and finite(learn.opt) and learn.validate()[1] > 0.9

@pytest.mark.feature('NaN without the scaler: TerminateOnNaNCallback')
def test_terminate_on_nan(opt_func):
    learn = quiet(cancer_learner(opt_func, cbs=[TerminateOnNaNCallback(), MemoryLength(), ClippedFraction(every=1)]))
    learn.fit(1, 0.01, cbs=Poison(math.nan, [10]))
    assert learn.train_iter == 12 and steps(learn) == {12}      # the batch after it has the loss that is seen
    assert all(p.isnan().any() for p in learn.model.parameters())      # and by then it is everywhere: load a checkpoint

@pytest.mark.feature('a thousand gradients of zero, then a real one')
@pytest.mark.slow
def test_zeros_and_then_a_gradient(opt_func):
    p,ref = torch.full((3,), 0.5, dtype=torch.float64),reference(opt_func, 0.5)
    opt = opt_func([p], lr=1e-3)
    for i in range(1100):
        before,g = p.clone(),0. if i < 1000 else 0.1
        step(opt, p, g)
        ref.step(np.full(3, g), 1e-3)
        if i < 1000: torch.testing.assert_close(p, before*(1-1e-5), rtol=1e-12, atol=0)
        else: assert (p-before).abs().max() < 5e-3     # a few times `lr`, as with Adam
    np.testing.assert_allclose(p, ref.p, rtol=1e-6)
    np.testing.assert_allclose(opt.state[p]['lr_avg'], ref.s, rtol=1e-6)
    assert ref.s[0] > 0.5*1e-3/1e-5     # the rate of an element without gradients: lr/eps

@pytest.mark.feature('rows with gradients of zero: skip_zeros')
@pytest.mark.parametrize('skip_zeros', [False,True])
@pytest.mark.slow
def test_rows_that_are_seldom_seen(opt_func, skip_zeros):
    "Every element has a gradient in its own share of the batches: a memory that skips the others is that of these alone"
    n,rng = 200,np.random.default_rng(0)
    seen = rng.random((n,3)) < [0.02,0.3,1.1]
    grads = seen*rng.normal(size=(n,3))
    p,ref = torch.zeros(3, dtype=torch.float64),reference(opt_func, 0., beta3=0.9)
    opt = opt_func([p], lr=1e-3, len_memory=10, skip_zeros=skip_zeros)
    for g,s in zip(grads, seen):
        before = ref.s
        p.grad = torch.tensor(g)
        step(opt, p, p.grad)
        ref.step(g, 1e-3)
        if skip_zeros: ref.s = np.where(s, ref.s, before)
        np.testing.assert_allclose(opt.state[p]['lr_avg'], ref.s, rtol=1e-9)
    rare = ref.s[0]/ref.s[2]
    assert rare < 2 if skip_zeros else rare > 5     # its memory is full of lr/eps

@pytest.mark.parametrize('rule', [AdaMod,DiffMod,DeepMemory], ids=lambda o: o.__name__)
def test_skip_zeros_has_no_average_where_every_gradient_is_zero(rule):
    lr_avgs = []
    for skip_zeros in False,True:
        p = torch.ones(3)
        opt = rule([p], lr=0.1, len_memory=3, skip_zeros=skip_zeros)
        for _ in range(3): step(opt, p, torch.tensor([0.,1.,-1.]))
        lr_avgs.append(opt.state[p]['lr_avg'])
    assert (lr_avgs[0] > 0).all() and lr_avgs[1][0] == 0
    torch.testing.assert_close(lr_avgs[1][1:], lr_avgs[0][1:], rtol=1e-6, atol=0)

@pytest.mark.feature('gradients of 1e-30')
def test_tiny_gradients(opt_func):
    p,ref = torch.zeros(3),reference(opt_func, 0., beta3=0.9)
    opt = opt_func([p], lr=0.1, len_memory=10)
    for _ in range(50):
        step(opt, p, 1e-30)
        ref.step(np.full(3, 1e-30), 0.1)
    np.testing.assert_allclose(p, ref.p, rtol=1e-4)
    assert finite(opt) and (p < 0).all()

@pytest.mark.feature('gradients of 1e30')
def test_huge_gradients(opt_func):
    "Its square is infinite in float32: the element stands still from then on, as with Adam, and only that one; float64 holds it"
    grad = torch.tensor([0.1,1e30,0.1])
    p,without,adams,wide = torch.ones(3),torch.ones(3),torch.ones(3),torch.ones(3, dtype=torch.float64)
    ref = reference(opt_func, 1., beta3=0.9)
    short = partial(opt_func, len_memory=10)
    opts = [f([o], lr=0.1, wd=0.) for f,o in ((short,p), (short,without), (Adam,adams), (short,wide))]
    for i in range(30):
        step(opts[0], p, grad if i == 5 else 0.1)
        step(opts[1], without, 0.1)
        step(opts[2], adams, grad if i == 5 else 0.1)
        step(opts[3], wide, grad if i == 5 else 0.1)
        ref.step((grad if i == 5 else torch.full((3,), 0.1)).double().numpy(), 0.1, wd=0.)
        if i == 4: stopped,adams_stopped = p[1].clone(),adams[1].clone()
    assert p.isfinite().all() and torch.equal(p[[0,2]], without[[0,2]])
    assert p[1] == stopped and adams[1] == adams_stopped
    np.testing.assert_allclose(wide, ref.p, rtol=1e-6)

# --- parameters

@pytest.mark.feature('empty parameters')
def test_empty_parameters(opt_func):
    class Net(nn.Sequential):
        def __init__(self, *ls):
            super().__init__(*ls)
            self.none = nn.Parameter(torch.zeros(0,4))
        def forward(self, x): return super().forward(x)+self.none.sum()
    learn = quiet(cancer_learner(opt_func, cbs=[MemoryLength(), ClippedFraction(every=1)], splitter=lambda m: list(m.parameters())))
    learn.model = Net(*learn.model)
    learn.fit_one_cycle(3, 0.03)
    assert steps(learn) == {75} and finite(learn.opt) and learn.opt.state[learn.model.none]['lr_avg'].shape == (0,4)
    assert learn.validate()[1] > 0.9

@pytest.mark.feature('a parameter shared by two groups')
def test_a_shared_parameter_takes_one_step(opt_func):
    res = []
    for shared in False,True:
        ps = [torch.ones(2),torch.ones(2)]
        opt = opt_func([ps,ps[::-1] if shared else [torch.ones(2)]], lr=[0.1], len_memory=3)
        opt.set_hyper('lr', [0.1,0.5])
        for _ in range(3):
            for p in ps: p.grad = torch.ones(2)
            opt.step()
        res.append(ps)
        assert opt.state[ps[0]]['step'] == 3
    assert same(*res)

@pytest.mark.feature('frozen and unfrozen repeatedly')
def test_frozen_and_thawed(opt_func):
    learn = quiet(cancer_learner(partial(opt_func, len_memory=5), wd=1.))
    learn.unfreeze()
    frozen = list(learn.model[0].parameters())
    for _ in range(3):
        for freeze in learn.freeze,learn.unfreeze:
            freeze()
            before = [p.detach().clone() for p in frozen]
            learn.fit(1, 0.01)
            assert all(map(torch.equal, before, frozen)) == (freeze == learn.freeze)
            assert {learn.opt.state[p].get('step') for p in frozen} == {None if freeze == learn.freeze else 25}
    assert learn.validate()[1] > 0.9

@pytest.mark.slow
@pytest.mark.feature('10,000 parameters')
def test_many_parameters(opt_func):
    many,one = [torch.ones(3) for _ in range(10_000)],torch.ones(30_000)
    opts = [opt_func(o, lr=0.1, len_memory=3) for o in (many,[one])]
    for i in range(2):
        one.grad = torch.randn(30_000)
        for p,g in zip(many, one.grad.clone().split(3)): p.grad = g
        for o in opts: o.step()
    torch.testing.assert_close(torch.cat(many), one, rtol=1e-6, atol=1e-6)

@pytest.mark.slow
@pytest.mark.feature('one parameter of 100 million elements')
def test_a_large_parameter(opt_func):
    n = 100_000_000
    large,small = torch.ones(n),torch.ones(1000)
    opts = [opt_func([o], lr=0.1, len_memory=3) for o in (large,small)]
    small.grad = torch.randn(1000)
    large.grad = small.grad.repeat(n//1000)
    for _ in range(2):
        for o in opts: o.step()
    rows = large.view(-1,1000)[::997]
    torch.testing.assert_close(rows, small.expand_as(rows), rtol=1e-6, atol=1e-6)

# --- moves

def train(m, opt, n, seed, dtype=None, device='cpu'):
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(16, 6, generator=g).to(device, dtype or torch.float32)
        (m(x).sum(1)-x.square().sum(1)).square().mean().backward()
        opt.step()
        opt.zero_grad()

def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6,8), nn.Tanh(), nn.Linear(8,2))

@pytest.mark.slow
@pytest.mark.feature('model moved to another dtype')
@pytest.mark.parametrize('to', [torch.bfloat16,torch.float16,torch.float64])
@pytest.mark.parametrize('stepped', [0,10])
def test_moved_between_dtypes(opt_func, to, stepped):
    stayed,moved = small_net(),small_net()
    opts = [opt_func(o.parameters(), lr=0.01, len_memory=5) for o in (stayed,moved)]
    for m,o in zip((stayed,moved), opts): train(m, o, stepped, 0)
    moved.to(to)
    for m,o,dtype in zip((stayed,moved), opts, (None,to)): train(m, o, 10, 1, dtype)
    for p,s in zip(moved.parameters(), state_of(opts[1])):
        assert p.dtype == to and s['step'] == stepped+10
        assert {s[k].dtype for k in ('sqr_avg','lr_avg')} == {torch.promote_types(to, torch.float32)}
    moved.float()
    tol = 1e-4 if to is torch.float64 else 0.05
    for m,o in zip((stayed,moved), opts): train(m, o, 5, 2)
    torch.testing.assert_close(values(moved), values(stayed), rtol=0, atol=tol)

@pytest.mark.feature('model moved to another device')
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA')
@pytest.mark.parametrize('stepped', [0,10])
def test_moved_between_devices(opt_func, stepped):
    stayed,moved = small_net(),small_net()
    opts = [opt_func(o.parameters(), lr=0.01, len_memory=5) for o in (stayed,moved)]
    for m,o in zip((stayed,moved), opts): train(m, o, stepped, 0)
    for device in 'cuda','cpu':
        moved.to(device)
        for m,o,d in zip((stayed,moved), opts, ('cpu',device)): train(m, o, 5, 1, device=d)
    torch.testing.assert_close(values(moved), values(stayed), rtol=0, atol=1e-4)

@pytest.mark.parametrize('rule', [AdaMod,DiffMod], ids=lambda o: o.__name__)
def test_state_follows_its_parameter(rule):
    "To the device `meta`, which every machine has: there are no values there, only places"
    here,there = small_net(),small_net().to('meta')
    opts = [rule(o.parameters(), lr=0.01) for o in (here,there)]
    train(here, opts[0], 3, 0)
    opts[1].load_state_dict(opts[0].state_dict())
    for p in there.parameters(): p.grad = torch.zeros_like(p)
    opts[1].step()
    assert {v.device.type for s in opts[1].state.values() for v in s.values() if torch.is_tensor(v)} == {'meta'}
    assert {s['step'] for s in opts[1].state.values()} == {4}

# --- a long run

class _MallInfo(ctypes.Structure):
    _fields_ = [(o, ctypes.c_size_t) for o in 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'.split()]

def c_heap():
    "Bytes that C and C++ hold, 0 where glibc does not say"
    f = getattr(ctypes.CDLL(None), 'mallinfo2', None) if sys.platform == 'linux' else None
    if not f: return 0
    f.restype = _MallInfo
    o = f()
    return o.uordblks+o.hblkhd

def grows(opt_func, leak=lambda: None, n=500):
    """Do 2,000 steps, with a `leak` at each, hold more and more? In every quarter of them, an object in two steps or ten bytes in one:
    what is kept to be used again does not come in every quarter"""
    m = nn.Linear(6,2)
    opt = opt_func(m.parameters(), lr=0.01, len_memory=50)
    step = opt.step
    def leaking(): step(); leak()
    opt.step = leaking
    def count():
        gc.collect()
        return sys.getallocatedblocks(),c_heap()
    train(m, opt, n, 0)
    counts = [count()]
    for i in range(4):
        train(m, opt, n, i)
        counts.append(count())
    objects,size = np.diff(counts, axis=0).min(0)
    return objects >= n/2 or size >= 10*n

@pytest.mark.slow
@pytest.mark.feature('no memory leak over 2,000 steps')
def test_memory_does_not_grow(opt_func): assert not grows(opt_func)

LEAKS = {'200 bytes': lambda: bytes(200), 'a large object': lambda: bytes(2000), 'a tensor': lambda: torch.zeros(50),
         'a number': lambda: random.random()}

@pytest.mark.slow
@pytest.mark.parametrize('what', LEAKS)
def test_a_leak_would_be_seen(what):
    kept = []
    assert grows(AdaMod, lambda: kept.append(LEAKS[what]()))

@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DeepMemory,DiffGrad], ids=lambda o: o.__name__)
@pytest.mark.parametrize('eps', [1e-38,0.])
def test_a_gradient_of_zero_with_a_tiny_eps(opt_func, eps, fused):
    "An element without a gradient stands still, the others move"
    p = torch.ones(2)
    opt = opt_func([p], lr=1., eps=eps, wd=0., fused=fused)
    for _ in range(3):
        p.grad = torch.tensor([0.,0.1])
        opt.step()
    assert p[0] == 1 and p[1] < 1 and all(v.isfinite().all() for v in opt.state[p].values() if torch.is_tensor(v))
