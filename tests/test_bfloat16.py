"Parameters in bfloat16 are rounded stochastically, so that small steps are not lost"
from functools import partial

import pytest
import torch
from torch import nn
from fastai.optimizer import SGD, Adam, Lookahead, ranger

from adamod_fastai.base import _random_bits, _round_up_or_down
from adamod_fastai.fused import fused
from adamod_fastai.optimizer import AdaMod, DeepMemory, DiffGrad, DiffMod

def stepped(opt_func, n, lr=1e-3, grad=None, start=1., shape=(40,50), dtype=torch.bfloat16, **kwargs):
    "A parameter after `n` steps"
    p = nn.Parameter((torch.zeros(shape)+start).to(dtype))
    opt,gen = opt_func([p], lr=lr, **kwargs),torch.Generator().manual_seed(1)
    for _ in range(n):
        g = torch.randn(shape, generator=gen) if grad is None else grad(gen) if callable(grad) else torch.zeros(shape)+grad
        p.grad = g.to(dtype)
        opt.step()
    return p.detach()

BETWEEN = 1+torch.arange(2000).view(40, 50)%128/128 # all that bfloat16 has from 1 to 2: what starts alike, with one gradient, stays alike

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory])
def test_small_steps_arrive(opt_func):
    "Each is a fiftieth of the spacing of the numbers: on average the parameter goes where it goes in float32"
    run = partial(stepped, opt_func, 200, lr=1e-4, wd=0.)
    kwargs = {} if opt_func is DiffGrad else dict(len_memory=1)
    want,found = run(dtype=torch.float32, **kwargs).mean(),run(**kwargs).float().mean()
    assert (run(bf16_stochastic_round=False, **kwargs)==1).all() # to the nearest
    assert abs(found-want) < 0.2*abs(want-1) + 2e-4

def in_lookahead(params, **kwargs): return Lookahead(AdaMod(params, len_memory=1, **kwargs))

@pytest.mark.parametrize('opt_func', [in_lookahead,partial(in_lookahead, fused=True),fused(ranger)], ids=['AdaMod','fused','ranger'])
def test_small_steps_arrive_in_lookahead(opt_func):
    "Which takes an average of the weights, every six steps"
    grad = 0.5+torch.rand(40, 50, generator=torch.Generator().manual_seed(2)) # few are rounded by the same bits
    want,found = [stepped(opt_func, 600, lr=1e-4, wd=0., grad=grad, dtype=d).float().mean() for d in (torch.float32,torch.bfloat16)]
    assert want < 0.98
    assert abs(found-want) < 0.1*abs(want-1) # with slow weights in bfloat16 three quarters of the way are missing

def test_a_lookahead_saved_with_narrow_slow_weights():
    "By an older version"
    p = nn.Parameter(torch.ones(40, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    a,b = in_lookahead([p], lr=1e-3),in_lookahead([p], lr=1e-3)
    a.step()
    sd = a.state_dict()
    for pg in sd['slow_weights']: pg[0] = pg[0].bfloat16()
    b.load_state_dict(sd)
    assert b.slow_weights[0][0].dtype is torch.float32 and sd['slow_weights'][0][0].dtype is torch.bfloat16

def test_weight_decay_arrives():
    "It is a part of the same rounding: a zero gradient and `wd` only"
    run = partial(stepped, AdaMod, 300, lr=1e-3, grad=0., start=BETWEEN, wd=0.1)
    want,found = [run(dtype=d).float().mean() for d in (torch.float32,torch.bfloat16)]
    assert want < 0.98*BETWEEN.mean()
    torch.testing.assert_close(found, want, atol=0.01, rtol=0)

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,partial(AdaMod, decouple_wd=False)])
def test_fused_is_rounded_as_eager_is(opt_func):
    a,b = [stepped(opt_func, 20, shape=(300,301), fused=f) for f in (False,True)]
    assert (a!=b).float().mean() < 1e-3 # where float32 already differs in its last bit
    torch.testing.assert_close(a.float(), b.float(), atol=0, rtol=1/64)

def test_a_run_can_be_repeated(): assert torch.equal(stepped(AdaMod, 20), stepped(AdaMod, 20))

def test_a_part_is_rounded_as_in_the_whole():
    "What a process holds of a sharded parameter"
    p,g = torch.randn(2, 40, 50).bfloat16()
    x = torch.randn(40, 50)
    whole = _round_up_or_down(x, _random_bits(p, g, 7))
    assert torch.equal(whole[10:20], _round_up_or_down(x[10:20], _random_bits(p[10:20], g[10:20], 7)))

@pytest.mark.parametrize('fuse', [lambda o: o, fused], ids=['eager','fused'])
@pytest.mark.parametrize('opt_func', [Adam,SGD], ids=['Adam','SGD'])
def test_the_other_step_functions_of_fastai(opt_func, fuse):
    def grad(gen): return 0.5+torch.rand(40, 50, generator=gen) # another one each time: SGD has no step count
    res = stepped(fuse(opt_func), 200, lr=1e-5, wd=0., grad=grad, start=BETWEEN)
    if fuse is fused: assert res.float().mean() < BETWEEN.mean()-1e-3 # by 2e-3 in float32
    else: assert torch.equal(res, BETWEEN.bfloat16()) # this one is fastai's own

def test_the_bits_are_even_for_the_same_gradient_over_the_steps():
    for g in 0.,0.1,-3.:
        p,g = torch.tensor([[1.],[g]], dtype=torch.bfloat16)
        bits = torch.stack([_random_bits(p, g, i) for i in range(4000)]).float()/2**16
        assert abs(bits.mean()-0.5) < 0.02 and abs(bits.std()-12**-0.5) < 0.02
        a,b = bits[:-1].flatten(),bits[1:].flatten()
        assert abs(torch.corrcoef(torch.stack([a,b]))[0,1]) < 0.06

@pytest.mark.parametrize('over', ['weights','gradients'])
def test_the_bits_are_even_over_the_elements(over):
    vals = torch.randn(100_000).bfloat16().unique()
    p,g = (vals,torch.zeros_like(vals)) if over=='weights' else (torch.ones_like(vals),vals)
    bits = _random_bits(p, g, 3).float()/2**16
    assert abs(bits.mean()-0.5) < 0.02 and abs(bits.std()-12**-0.5) < 0.02

@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
@pytest.mark.parametrize('grad', [1.,-0.01])
def test_one_gradient_for_all_moves_their_mean_as_in_float32(grad, fused):
    "At every step, within four standard errors; weights that start alike stay alike, so each value counts once"
    start = torch.randn(100_000, generator=torch.Generator().manual_seed(3)).bfloat16()
    vals,which = start.unique(return_inverse=True)
    ps = [nn.Parameter(start.to(o, copy=True)) for o in (torch.float32,torch.bfloat16)]
    opts = [AdaMod([p], lr=1e-4, wd=0., len_memory=1, fused=fused) for p in ps]
    for i in range(60):
        for p,opt in zip(ps, opts):
            p.grad = torch.full_like(p, grad)
            opt.step()
        diff = torch.zeros(len(vals), dtype=torch.float64).index_add_(0, which, (ps[1]-ps[0]).detach().double())
        assert abs(diff.sum()) < 4*diff.square().sum().sqrt(), f'step {i+1}'
    assert len(vals) > 1000 and (ps[0]-start).abs().mean() > 5e-3

def test_numbers_that_bfloat16_has_stay():
    x = torch.randn(1000).bfloat16()
    assert torch.equal(_round_up_or_down(x.float(), torch.full((1000,), 0xffff, dtype=torch.int32)), x)

def test_a_bad_value():
    with pytest.raises(ValueError, match="Invalid bf16_stochastic_round: 'no'"): AdaMod([torch.ones(2)], lr=0.1, bf16_stochastic_round='no')

@pytest.mark.parametrize('fused', [False,True])
@pytest.mark.parametrize('opt_func', [DiffMod,DiffGrad])
def test_the_previous_gradient_is_kept_as_it_was(opt_func, fused):
    "In two bytes for each weight, like the gradient itself"
    p = torch.nn.Parameter(torch.ones(300, dtype=torch.bfloat16))
    opt = opt_func([p], lr=1e-3, fused=fused)
    for o in 0.5,-0.25,2.:
        p.grad = torch.full_like(p, o)
        opt.step()
        prev_grad = opt.state[p]['prev_grad']
        assert prev_grad.dtype==torch.bfloat16 and torch.equal(prev_grad, p.grad)
