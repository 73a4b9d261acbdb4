import copy, gc, io, math, os, pickle, shutil, subprocess, sys, time, traceback, warnings
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch import nn
from fastai.basics import load_learner
from fastai.optimizer import (SGD, Adam, Lamb, Lookahead, OptimWrapper, QHAdam, RAdam, RMSProp, adam_step, average_grad, average_sqr_grad,
                              ranger, step_stat, weight_decay)
from fastai.callback.all import combined_cos

from adamod_fastai import fused
from adamod_fastai.fused import FusedOptimizer
from adamod_fastai.fused import buckets, kernel, step
from adamod_fastai.optimizer import AdaMod, DeepMemory, DiffGrad, DiffMod, adaptive_rate, clip_rate, mean_rate
from adamod_fastai.base import ModOptimizer
from learners import ordered_learner, quiet, two_groups
from new_process import python

OPTS = dict(AdaMod=AdaMod, AdaMod_code=partial(AdaMod, paper=False), AdaMod_l2=partial(AdaMod, decouple_wd=False),
            DiffGrad=DiffGrad, DiffMod=DiffMod, DeepMemory=DeepMemory,
            AdaMod_follow=partial(AdaMod, follow_lr=True),
            **{f'DiffMod_v{v}':partial(DiffMod, version=v) for v in (1,2)})
TOL = 1e-5 # absolute and relative, over 40 steps, in every dtype

@pytest.fixture(autouse=True)
def _no_warnings():
    "Nothing below may fall back to the eager step, unless a test says so"
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='fused=True')
        yield

def graphs(): return torch._dynamo.utils.counters['stats']['unique_graphs']

def spread(shape):
    "Random gradients over four decades, other ones for each element at each step: its rate goes up and down through its memory"
    return torch.randn(shape)*10**(4*torch.rand(shape)-3)

class Twins:
    "The same parameters under the eager and the fused optimizer, averaging over few batches, which clips now and then"
    def __init__(self, opt_func, *groups, len_memory=5, **kwargs):
        self.clipped = []
        if getattr(opt_func, 'func', opt_func) is not DiffGrad: kwargs['len_memory'] = len_memory
        self.ps = [[[self.twin(p) for p in g] for g in groups] for _ in range(2)]
        self.opts = [opt_func(ps, lr=1e-2, fused=f, **kwargs) for ps,f in zip(self.ps, (False,True))]

    @staticmethod
    def twin(p):
        "A copy of `p` that is laid out like it"
        res = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype) if 0 not in p.stride() else torch.empty_like(p)
        return nn.Parameter(res.copy_(p))

    @property
    def pairs(self): return list(zip(*[[p for g in ps for p in g] for ps in self.ps]))

    def step(self, skip=(), **hypers):
        for i,(p,q) in enumerate(self.pairs):
            g = None if i in skip else spread(p.shape).to(p.dtype)
            for o in p,q: o.grad = None if g is None else torch.empty_like(o).copy_(g)
        for opt in self.opts:
            opt.set_hypers(**hypers)
            opt.step()
        todo = [(adaptive_rate(p, **s, **h)['rate'],s['lr_avg']) for p,_,s,h in self.opts[0].all_params(with_grad=True) if 'lr_avg' in s]
        self.clipped += [(lr_avg < rate).float().mean() for rate,lr_avg in todo if rate.numel()]

    def check(self):
        if self.clipped: assert 0.05 < (o := torch.stack(self.clipped).mean()) < 0.95, f'{o:.3f}: both sides of the clip are to be seen'
        for i,(p,q) in enumerate(self.pairs):
            torch.testing.assert_close(q, p, atol=TOL, rtol=TOL, msg=lambda m: f'parameter {i}: {m}')
            if p.grad is not None: torch.testing.assert_close(q.grad, p.grad, atol=TOL, rtol=TOL)     # `l2_reg` changes it
            check_state(i, *(o.state[p] for o,p in zip(self.opts, (p,q))))

def check_state(i, eager, fused):
    assert set(fused) == set(eager)
    for k,v in eager.items():
        assert type(fused[k]) is type(v), f'{k} of parameter {i}'
        torch.testing.assert_close(fused[k], v, atol=TOL, rtol=TOL, msg=lambda m: f'{k} of parameter {i}: {m}')

def few(*shapes, dtype=torch.float32): return [torch.randn(s).to(dtype) for s in shapes or ((300,300),(20,30),(7,))]

LAYOUTS = dict(large=lambda: torch.randn(300, 300), large_and_odd=lambda: torch.randn(301, 301),
               matrix=lambda: torch.randn(20, 30), scalar=lambda: torch.randn(()),
               one=lambda: torch.randn(1), one_of_many_dims=lambda: torch.randn(1, 1, 1), empty=lambda: torch.randn(0, 3),
               transposed=lambda: torch.randn(30, 20).t(), large_transposed=lambda: torch.randn(400, 300).t(),
               channels_last=lambda: torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last),
               large_channels_last=lambda: torch.randn(100, 100, 3, 3).contiguous(memory_format=torch.channels_last))

def one_cycle(pct): return dict(lr=combined_cos(0.25, 4e-4, 1e-2, 1e-7)(pct), mom=combined_cos(0.25, 0.95, 0.85, 0.95)(pct))

# --- the same result

@pytest.mark.parametrize('len_memory', [2,20])
@pytest.mark.parametrize('opt_func', OPTS.values(), ids=OPTS)
def test_same_as_eager(opt_func, len_memory):
    twins = Twins(opt_func, few(), len_memory=len_memory)
    for i in range(40): twins.step(**one_cycle(i/40))
    twins.check()

@pytest.mark.parametrize('layout', LAYOUTS)
def test_same_for_each_layout_alone(layout):
    twins = Twins(AdaMod, [LAYOUTS[layout]()])
    for _ in range(40): twins.step()
    twins.check()

def test_same_for_all_layouts_together():
    twins = Twins(AdaMod, [o() for o in LAYOUTS.values()])
    for _ in range(40): twins.step()
    twins.check()

old_torch = pytest.mark.skipif(tuple(map(int, torch.__version__.split('.')[:2])) < (2,7), reason='torch 2.6 cannot compile it')

@pytest.mark.parametrize('opt_func', (AdaMod,DiffMod))
@pytest.mark.parametrize('dtype', (torch.float64,*(pytest.param(o, marks=old_torch) for o in (torch.bfloat16,torch.float16))))
@pytest.mark.slow
def test_same_in_other_dtypes(dtype, opt_func):
    twins = Twins(opt_func, few((20,30),(7,), dtype=dtype))
    for _ in range(40): twins.step()
    twins.check()

def test_float64_is_computed_in_float64():
    twins = Twins(AdaMod, few((20,30), dtype=torch.float64))
    for _ in range(40): twins.step()
    for p,q in twins.pairs: torch.testing.assert_close(q, p, atol=1e-13, rtol=0)

def test_several_dtypes_in_one_model():
    twins = Twins(AdaMod, few((20,30),(7,)) + few((20,30),(7,), dtype=torch.float64))
    for _ in range(40): twins.step()
    twins.check()

@old_torch
@pytest.mark.slow
@pytest.mark.parametrize('opt_func', (AdaMod,DiffMod))
def test_dtypes_side_by_side_in_a_group(opt_func):
    "To the bit what each dtype alone gives, and what the eager step gives but for a last bit that rounds the other way now and then"
    start = {dtype: few((300,300),(20,30),(7,), dtype=dtype) for dtype in (torch.float32,torch.float16,torch.bfloat16)}
    grads = [{dtype: [spread(p.shape).to(dtype) for p in ps] for dtype,ps in start.items()} for _ in range(20)]
    def stepped(fused, *dtypes):
        ps = {dtype: [nn.Parameter(p.clone()) for p in start[dtype]] for dtype in dtypes}
        opt = opt_func([p for o in ps.values() for p in o], lr=1e-2, len_memory=5, bf16_stochastic_round=False, fused=fused)
        for step in grads:
            for dtype in dtypes:
                for p,g in zip(ps[dtype], step[dtype]): p.grad = g.clone()
            opt.step()
        return ps
    together,eager = stepped(True, *start),stepped(False, *start)
    for dtype in start:
        for p,q,alone in zip(eager[dtype], together[dtype], stepped(True, dtype)[dtype]):
            assert torch.equal(q, alone), f'{dtype} {tuple(p.shape)}'
            if dtype is torch.float32: torch.testing.assert_close(q, p, atol=TOL, rtol=TOL)
            else: assert (q!=p).float().mean() < 1e-3, f'{dtype} {tuple(p.shape)}'

@pytest.mark.parametrize('hyper,vals', [('beta3',(0.9,0.999)), ('beta3',(0.,0.9)), ('wd',(0.,0.3)),
                                        ('eps',(1e-8,1e-2)), ('sqr_mom',(0.9,0.999)), ('lr',(0,1e-2))])
def test_same_while_a_hyper_is_scheduled(hyper, vals):
    twins,(a,b) = Twins(AdaMod, few()),vals
    for i in range(40): twins.step(**{hyper: a+(b-a)*max(0, i-5)/34})
    twins.check()

def test_same_where_the_memory_follows_rates_of_zero():
    twins = Twins(partial(AdaMod, follow_lr=True), few())
    for i in range(40): twins.step(lr=0. if i in (0,1,9,20,21) else 1e-2*(1+i%5))
    twins.check()

def test_groups_with_their_own_hypers():
    twins = Twins(AdaMod, few(), few((20,30),(5,)), few((9,)))
    for _ in range(40): twins.step(lr=[1e-3,1e-2,3e-2], wd=[0.,0.1,0.2], mom=[0.8,0.9,0.95])
    twins.check()

def test_parameters_without_weight_decay():
    twins = Twins(AdaMod, few(), wd=0.5)
    for opt,ps in zip(twins.opts, twins.ps): opt.state[ps[0][1]] = dict(do_wd=False)
    for _ in range(40): twins.step()
    twins.check()

def test_a_parameter_that_loses_its_weight_decay():
    twins = Twins(AdaMod, few(), wd=0.5)
    for opt,ps in zip(twins.opts, twins.ps):
        for p in ps[0]: opt.state[p] = dict(do_wd=True)
    for i in range(40):
        if i==20:
            for opt,ps in zip(twins.opts, twins.ps): opt.state[ps[0][1]]['do_wd'] = False
        twins.step()
    twins.check()

def test_gradients_that_come_and_go():
    twins = Twins(DiffMod, few((300,300),(20,30),(7,),(4,4),()))
    for i in range(40): twins.step(skip=[o for o in range(5) if (i//(o+1))%3==1])
    assert len({twins.opts[1].state[p]['step'] for _,p in twins.pairs}) > 2
    twins.check()

def test_another_set_of_gradients_at_each_step():
    twins = Twins(AdaMod, few(*[(70,70),(20,30)]*6, (80,80)))
    for i in range(30): twins.step(skip=[o for o in range(13) if (o*7+i*5)%4])
    twins.check()

def test_another_set_of_gradients_at_each_step_plans_nothing(monkeypatch):
    "The step is eager, and no state is moved, until the same ones have a gradient twice in a row"
    planned,Plan = [],step._Plan
    monkeypatch.setattr(step, '_Plan', lambda *args: planned.append(1) or Plan(*args))
    twins = Twins(AdaMod, few(*[(70,70),(20,30)]*6))
    for i in range(8): twins.step(skip=[o for o in range(12) if (o+i)%4])
    assert len(planned)==1 # the first one
    for i in range(3): twins.step()
    assert len(planned)>1
    twins.check()

def test_one_that_missed_a_step_is_in_a_bucket_of_its_own():
    twins = Twins(AdaMod, few(*[(20,30)]*4))
    for i in range(6): twins.step(skip=(1,) if i==2 else ())
    assert [[len(part.params) for part in o.parts] for o in twins.opts[1]._plan.subgroups] == [[3],[1]]
    twins.check()

@pytest.mark.parametrize('k', ['grad_avg','sqr_avg','lr_avg'])
def test_state_that_is_replaced_between_steps(k):
    twins = Twins(AdaMod, few((300,300),(20,30),(7,)))
    for i in range(12):
        if i==6:
            for opt,ps in zip(twins.opts, twins.ps):
                for p in ps[0][:2]: opt.state[p][k] = torch.zeros_like(p)
        twins.step()
    twins.check()

def test_state_that_is_exchanged_between_steps():
    "Of two parameters of one shape, large and small ones"
    twins = Twins(AdaMod, few((300,300),(300,300),(20,30),(20,30)))
    for i in range(12):
        if i==6:
            for opt,ps in zip(twins.opts, twins.ps):
                for s,t in (map(opt.state.get, o) for o in (ps[0][:2],ps[0][2:])): s['lr_avg'],t['lr_avg'] = t['lr_avg'],s['lr_avg']
        twins.step()
    twins.check()

def test_unfreezing_later():
    twins = Twins(AdaMod, few(), few())
    for i in range(40): twins.step(skip=(0,1,2) if i<13 else ())
    twins.check()

def test_a_cleared_state_starts_anew():
    twins = Twins(AdaMod, few())
    for i in range(40):
        if i==20:
            for o in twins.opts: o.clear_state()
        twins.step()
    assert twins.opts[1].state[twins.pairs[0][1]]['step']==20
    twins.check()

def test_changing_the_version():
    twins = Twins(DiffMod, few())
    for i in range(40): twins.step(version=i//14)
    twins.check()

@pytest.mark.parametrize('decouple_wd', [True,False])
def test_gradients_laid_out_differently(decouple_wd):
    twins = Twins(partial(AdaMod, decouple_wd=decouple_wd), few((300,300),(20,30)))
    for _ in range(10):
        for p,q in twins.pairs:
            g = spread(p.shape[::-1]).t()
            p.grad,q.grad = g,torch.empty_like(g).copy_(g)
        for opt in twins.opts: opt.step()
    twins.check()

def test_a_dimension_of_one_element_may_have_any_stride():
    "As the weights of a convolution of 1×1 have in channels last, and their gradients otherwise"
    twins = Twins(AdaMod, [torch.randn(512, 1, 1, 256).permute(0, 3, 1, 2)])
    for _ in range(5):
        for p,q in twins.pairs:
            p.grad = torch.randn(512, 256, 1, 1)
            q.grad = p.grad.clone()
        assert twins.pairs[0][0].stride() != p.grad.stride()
        for opt in twins.opts: opt.step()
        q = twins.pairs[0][1]
        if opt.state[q]['step'] > 2: assert allocated(opt.step) < 10_000 # nothing is copied to be laid out differently
        else: opt.step()
        twins.opts[0].step()
    twins.check()

@pytest.mark.parametrize('which', [slice(None),slice(0, 1),slice(2, 3)], ids=['all','large','small'])
def test_parameters_whose_data_is_replaced(which):
    twins = Twins(AdaMod, few())
    for i in range(10):
        if i==5:
            for p,q in twins.pairs[which]: p.data,q.data = p.data.clone(),q.data.clone()
        twins.step()
    twins.check()

def test_data_that_is_transposed():
    "Another view of the same memory"
    twins = Twins(AdaMod, few((300,300),(30,30)))
    for i in range(10):
        if i in (4,7):
            for p,q in twins.pairs: p.data,q.data = p.data.t(),q.data.t()
        twins.step()
    twins.check()

def test_data_that_shrinks_is_an_error_as_it_is_eagerly():
    for opt,ps in zip((o := Twins(AdaMod, few((300,300)))).opts, o.ps):
        for _ in range(3):
            for p in ps[0]: p.grad = torch.randn_like(p)
            opt.step()
        ps[0][0].grad = None
        ps[0][0].data = ps[0][0].data[:1]
        ps[0][0].grad = torch.randn(1, 300)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with pytest.raises(RuntimeError, match='shape'): opt.step()

@pytest.mark.parametrize('change', [lambda o, cbs: setattr(o, 'cbs', cbs),
                                    lambda o, cbs: [o.cbs.__setitem__(i, cb) for i,cb in enumerate(cbs)]],
                         ids=['replaced','changed'])
def test_other_step_functions_for_the_same_state(change):
    twins = Twins(AdaMod, few())
    for i in range(10):
        if i==5:
            for o in twins.opts: change(o, [mean_rate if cb is clip_rate else cb for cb in o.cbs])
        twins.step()
    twins.check()

# --- it compiles what is done to tensors, once

def test_compiles_once_for_each_way_to_step():
    twins = Twins(partial(AdaMod, eps=2e-5, paper=False), few((300,300),(40,),(7,)), few((30,30)))
    for opt,ps in zip(twins.opts, twins.ps): opt.state[ps[0][1]] = dict(do_wd=False)
    step._kernels.clear()
    before = graphs()
    for i in range(20):
        skip = (0,) if i<3 else (1,3) if i%4==0 else ()
        twins.step(skip, lr=[1e-2/(i+1),i*1e-3], mom=0.95-i/100, wd=[i%2*0.1,0], beta3=0.9+i/1000, eps=10**-(i+1))
        for p,q in twins.pairs: p.grad = q.grad = None
    assert graphs()-before == 2 # with weight decay and without: `if wd!=0` goes one way at each step
    twins.check()

def test_another_optimizer_compiles_nothing():
    for kwargs in dict(lr=1e-2),dict(lr=3e-2, wd=0.3, mom=0.8):
        before = graphs()
        for ps in few(),few((11,13),(500,500)):
            opt = AdaMod([nn.Parameter(p) for p in ps], fused=True, **kwargs)
            for _ in range(3):
                for p in opt.param_lists[0]: p.grad = torch.randn_like(p)
                opt.step()
    assert graphs() == before

# --- state and checkpoints

def stepped(n=3, fused=True, opt_func=AdaMod, shapes=((300,300),*[(20,30)]*20,(7,))):
    torch.manual_seed(1)
    opt = opt_func([nn.Parameter(torch.randn(s)) for s in shapes], lr=1e-2, fused=fused)
    return more(opt, n)

def more(opt, n=3):
    torch.manual_seed(2)
    for _ in range(n):
        for p in opt.param_lists[0]: p.grad = torch.randn_like(p)
        opt.step()
    return opt

def saved(o):
    f = io.BytesIO()
    torch.save(o, f)
    return f.getvalue()

@pytest.mark.parametrize('frm,to', [(False,True),(True,False),(True,True)], ids=['eager_to_fused','fused_to_eager','fused_to_fused'])
def test_a_checkpoint_loads_into_the_other(frm, to):
    a = stepped(fused=frm)
    b = AdaMod([nn.Parameter(p.detach().clone()) for p in a.param_lists[0]], lr=1., fused=to)
    b.load_state_dict(torch.load(io.BytesIO(saved(a.state_dict())), weights_only=False))
    more(a), more(b)
    for p,q in zip(a.param_lists[0], b.param_lists[0]): torch.testing.assert_close(p, q, atol=TOL, rtol=0)
    assert b.state_dict()['state'][0]['step'] == 6

def test_state_is_shaped_like_the_parameters():
    opt = stepped()
    for p,s in zip(opt.param_lists[0], opt.state_dict()['state']):
        assert {k:v.shape for k,v in s.items() if torch.is_tensor(v)} == dict.fromkeys(('grad_avg','sqr_avg','lr_avg'), p.shape)
        assert type(s['step']) is int

@pytest.mark.parametrize('what', [lambda o: saved(o.state_dict()), pickle.dumps, saved], ids=['checkpoint','pickle','torch_save'])
def test_nothing_is_saved_twice(what): assert len(what(stepped())) < 1.02*len(what(stepped(fused=False))) + 2000

@pytest.mark.parametrize('clone', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=['deepcopy','pickle'])
def test_a_copy_is_independent(clone):
    a = stepped()
    b = clone(a)
    kept = [p.detach().clone() for p in b.param_lists[0]]
    more(a)
    for p,q in zip(b.param_lists[0], kept): assert torch.equal(p, q)
    more(b)
    for p,q in zip(a.param_lists[0], b.param_lists[0]): assert torch.equal(p, q)

def test_lookahead():
    res = []
    for f in False,True:
        torch.manual_seed(3)
        opt = Lookahead(AdaMod([nn.Parameter(p) for p in few()], lr=1e-2, fused=f), k=3)
        res.append(more(opt, 10))
    for p,q in zip(*[o.param_lists[0] for o in res]): torch.testing.assert_close(p, q, atol=TOL, rtol=0)

# --- in a Learner

def learner(fused, **kwargs): return quiet(ordered_learner(partial(AdaMod, len_memory=10, fused=fused), splitter=two_groups, **kwargs))

def test_training_is_the_same():
    learns = [learner(o) for o in (False,True)]
    for o in learns:
        o.freeze()
        o.fit_one_cycle(1)
        o.unfreeze()
        o.fit_one_cycle(1, slice(1e-3, 1e-2))
    for p,q in zip(*[o.model.parameters() for o in learns]): torch.testing.assert_close(p, q, atol=TOL, rtol=0)

@pytest.mark.parametrize('frm,to', [(False,True),(True,False)], ids=['eager_to_fused','fused_to_eager'])
def test_learner_save_and_load(frm, to, tmp_path):
    a,b = [learner(o, path=tmp_path) for o in (frm,to)]
    a.fit(1)
    a.save('both')
    b.create_opt()
    b.load('both')
    for o in a,b: o.fit(1, reset_opt=False)
    for p,q in zip(a.model.parameters(), b.model.parameters()): torch.testing.assert_close(p, q, atol=TOL, rtol=0)
    assert b.opt.state[next(b.model.parameters())]['step']==48

def test_the_learner_that_saved_it_loads_it(tmp_path):
    "After a schedule, and trains on as the eager one does"
    learns = [learner(o, path=tmp_path) for o in (False,True)]
    for o in learns:
        o.fit_one_cycle(1)
        o.save('q')
        o.fit_one_cycle(1)
        o.load('q')
        o.fit_one_cycle(1)
        assert o.opt.state[next(o.model.parameters())]['step']==48
    for p,q in zip(*[o.model.parameters() for o in learns]): torch.testing.assert_close(p, q, atol=TOL, rtol=0)

def test_learner_export(tmp_path):
    a = learner(True, path=tmp_path)
    a.fit(1)
    a.export('a.pkl')
    b = load_learner(tmp_path/'a.pkl')
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)

# --- other step functions

def same_steps(cbs, n=40, **hypers):
    torch.manual_seed(6)
    start,res = few((300,300),(20,30),()),[]
    for cls in ModOptimizer,FusedOptimizer:
        torch.manual_seed(7)
        opt = cls([nn.Parameter(p.clone()) for p in start], cbs, lr=1e-2, **hypers)
        for _ in range(n):
            for p in opt.param_lists[0]: p.grad = torch.randn_like(p)
            opt.step()
        res.append([(p,opt.state[p]) for p in opt.param_lists[0]])
    for i,((p,eager),(q,fused)) in enumerate(zip(*res)):
        torch.testing.assert_close(q, p, atol=TOL, rtol=0)
        check_state(i, eager, fused)

def test_fastai_adam():
    cbs = [weight_decay, partial(average_grad, dampening=True), average_sqr_grad, step_stat, adam_step]
    same_steps(cbs, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.01)

def trained(opt_func, n=20):
    torch.manual_seed(6)
    ps = [nn.Parameter(o) for o in few((300,300),(20,30),())]
    return ps,more(opt_func([ps[:2],ps[2:]]), n)

@pytest.mark.parametrize('opt_func', [partial(f, lr=1e-3) for f in (Adam,SGD,RMSProp,partial(RAdam, wd=0.1),QHAdam,ranger,partial(AdaMod))],
                         ids='Adam SGD RMSProp RAdam QHAdam ranger AdaMod'.split())
def test_any_optimizer_of_fastai(opt_func):
    (ps,a),(qs,b) = trained(opt_func),trained(fused.fused(opt_func))
    assert type(b) is (Lookahead if type(a) is Lookahead else FusedOptimizer)
    assert list(b.hypers) == list(a.hypers)
    assert isinstance(b.opt if type(b) is Lookahead else b, FusedOptimizer)
    for p,q in zip(ps, qs): torch.testing.assert_close(q, p, atol=TOL, rtol=TOL)

def test_a_fused_opt_func_can_be_pickled_and_trains(tmp_path):
    learn = quiet(ordered_learner(fused.fused(ranger), path=tmp_path))
    learn.fit_one_cycle(1)
    learn.export('a.pkl')
    assert load_learner(tmp_path/'a.pkl').opt_func.args == (ranger,)

def test_one_that_looks_at_norms_says_why():
    with pytest.warns(UserWarning, match='fused=True.*not elementwise|norm|mean'): trained(fused.fused(partial(Lamb, lr=1e-3)), 4)

def test_one_that_is_not_made_of_step_functions_says_so():
    with pytest.raises(TypeError, match='OptimWrapper.*step functions'):
        fused.fused(partial(OptimWrapper, opt=torch.optim.Adam))([torch.ones(2)], lr=0.1)

def test_a_view_that_is_changed_is_eager_and_says_so():
    def bits(p, lr, **kwargs): p.data.view(torch.int32).bitwise_and_(-65536)
    with pytest.warns(UserWarning, match='viewed'): same_steps([bits], n=5)

def test_a_cuda_graph_is_refused_by_name(monkeypatch):
    opt = stepped(shapes=((20,30),))
    kept = opt.param_lists[0][0].detach().clone()
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    with pytest.raises(RuntimeError, match='CUDA graph.*learning rate'): opt.step()
    assert torch.equal(opt.param_lists[0][0], kept)

def test_a_step_that_decides_by_a_number_compiles_each_way_once():
    def warm(p, lr, step=0, **kwargs):
        if step < 5: p.data.sub_(p.grad.data.sign(), alpha=lr/2)
        elif step % 2 == 0: p.data.sub_(p.grad.data, alpha=lr)
        return {'step': step+1}
    before = graphs()
    same_steps([warm])
    assert graphs()-before == 2 # and the way that does nothing is not compiled

def test_two_ways_that_differ_in_a_constant_keep_their_own_code():
    "Whatever torch keeps by code object must not be mixed up: both ways take the same tensors"
    def turning(p, lr, step=0, **kwargs):
        p.data.sub_((p.grad.data.abs()+1)**(2 if step%2 else 0.5), alpha=lr)
        return {'step': step+1}
    same_steps([turning])

def test_without_ahead_of_time_code_two_ways_keep_their_own_code(monkeypatch):
    "As above in a torch that cannot compile ahead of time, where dynamo looks code up by code object"
    compile = torch.compile
    def older(*args, **kwargs):
        fn = compile(*args, **kwargs)
        return lambda *args: fn(*args)
    monkeypatch.setattr(torch, 'compile', older)
    monkeypatch.setattr(step, '_kernels', {})
    test_two_ways_that_differ_in_a_constant_keep_their_own_code()
    codes = [o.module.forward.__func__.__code__ for o in step._kernels.values()]
    assert len(set(map(id, codes))) == len(codes) == 2

def powered(p, lr, step=0, **kwargs):
    p.data.sub_((p.grad.data.abs()+1)**(1+step/100), alpha=lr)
    return {'step': step+1}

def longer_and_longer(p, lr, step=0, **kwargs):
    for _ in range(step+1): p.data.sub_(p.grad.data, alpha=lr)
    return {'step': step+1}

@pytest.mark.parametrize('cb', [powered,longer_and_longer], ids=lambda o: o.__name__)
def test_ever_new_kernels_end_and_the_warning_says_what_for(monkeypatch, cb):
    monkeypatch.setattr(step, '_most_kernels', 3)
    before = graphs()
    with pytest.warns(UserWarning) as said: same_steps([cb], n=10)
    said = [str(o.message) for o in said if 'fused=True' in str(o.message)]
    assert len(said)==1 and 'compiled 3 times' in said[0] and 'branches' in said[0] and 'exponent' in said[0]
    assert graphs()-before == 3

def test_numbers_may_come_and_go_in_the_state():
    def counting(p, lr, step=0, **kwargs):
        p.data.sub_(p.grad.data, alpha=lr)
        return {'step': step+1, 'even': True if step%2==0 else None, f'x{step%3}': lr, f'x{(step+1)%3}': None}
    same_steps([counting])

def test_tensors_that_come_and_go_in_the_state_are_eager_and_say_so_once():
    def renaming(p, lr, step=0, **kwargs):
        p.data.sub_(p.grad.data, alpha=lr)
        return {'step': step+1, f'avg{step%2}': torch.zeros_like(p.grad.data), f'avg{(step+1)%2}': None}
    with pytest.warns(UserWarning) as said: same_steps([renaming], n=12)
    assert [str(o.message) for o in said if 'fused=True' in str(o.message)] == [
        'fused=True: a parameter falls back to the eager step, because the tensors that its step functions keep in the state have changed']

def listing(p, lr, seen=None, **kwargs):
    p.data.sub_(p.grad.data, alpha=lr)
    return {'seen': [*(seen or []),lr]}

def test_lists_may_come_into_the_state(): same_steps([listing], n=6)

def test_a_state_that_cannot_be_compared_is_eager_and_says_so_once():
    p = nn.Parameter(torch.ones(300))
    opt = FusedOptimizer([p], listing, lr=0.1)
    opt.state[p] = {'seen': []}
    with pytest.warns(UserWarning) as said: more(opt, 4)
    why, = said
    assert str(why.message).endswith('falls back to the eager step, because its state holds something that cannot be compared')
    assert opt.state[p]['seen'] == [0.1]*4

def test_steps_leave_no_garbage():
    opt = stepped(shapes=((300,300),(20,30),(7,)))
    gc.collect()
    gc.disable()
    try:
        for _ in range(5): opt.step()
        assert gc.collect() == 0
    finally: gc.enable()

def test_torch_functions_and_operators():
    def odd(p, lr, avg=None, **kwargs):
        g = p.grad.data
        if avg is None: avg = torch.zeros_like(g)
        avg = 0.9*avg + (1-0.9)*torch.abs(g)**2
        p.data -= torch.where(g > 0, g, g*0.5) * lr / (avg.sqrt() + 1) + torch.clamp(g, min=-lr, max=lr)
        return {'avg': avg}
    same_steps([odd])

def test_a_number_that_must_be_one_element():
    def filling(p, lr, **kwargs): p.data.sub_(p.grad.data.masked_fill(p.grad.data < 0, lr), alpha=lr)
    same_steps([filling])

def test_sigmoid_at_the_edges():
    def squash(p, **kwargs): p.data.copy_(p.grad.data.sigmoid())
    x = torch.cat([torch.linspace(-200, 200, 80_001), torch.tensor([0.,-0.,1e-30,3e38,-3e38,math.inf,-math.inf,math.nan])])
    p = nn.Parameter(torch.zeros_like(x))
    opt = FusedOptimizer([p], squash, lr=1.)
    for _ in range(2):
        p.grad = x.clone()
        opt.step()
        torch.testing.assert_close(p.data, x.sigmoid(), atol=2e-7, rtol=0, equal_nan=True)

def test_an_average_of_one_batch_is_exact():
    "`lerp` at its edges, also to a value that is far smaller"
    def move(p, t, **kwargs): p.data.lerp_(p.grad.data, t)
    p = nn.Parameter(torch.empty(1000))
    opt = FusedOptimizer([p], move, lr=1., t=1.)
    for t in 1.,0.,1.:
        old,new = (torch.randn(1000)*o for o in (1e8,1e-8))
        with torch.no_grad(): p.copy_(old)
        p.grad = new
        opt.set_hyper('t', t)
        opt.step()
        assert torch.equal(p.data, new if t else old)

def test_values_that_move_from_one_state_to_another():
    def two_back(p, lr, a=None, b=None, **kwargs):
        g = p.grad.data
        if a is None: a,b = torch.zeros_like(g),torch.zeros_like(g)
        p.data.sub_(b, alpha=lr).sub_(a, alpha=lr/2)
        return {'b': b.copy_(a), 'a': a.copy_(g)}
    same_steps([two_back])

def norm_step(p, lr, **kwargs): p.data.sub_(p.grad.data, alpha=lr/(p.grad.data.norm().item()+1))
def shape_step(p, lr, **kwargs): p.data.sub_(p.grad.data, alpha=lr/p.numel())
def max_step(p, lr, **kwargs): p.data.sub_(p.grad.data/p.grad.data.abs().max(), alpha=lr)
def deciding_step(p, lr, **kwargs):
    if (p.grad > 0).any(): p.data.sub_(p.grad.data, alpha=lr)
def keeping_step(p, lr, old=None, **kwargs):
    p.data.sub_(p.grad.data, alpha=lr)
    return {'old': p.grad.data}
def twice_step(p, lr, a=None, **kwargs):
    a = p.grad.data.clone() if a is None else a+p.grad.data
    p.data.sub_(a, alpha=lr)
    return {'a': a, 'b': a}
def out_step(p, lr, **kwargs): torch.add(p.grad.data, p.grad.data, out=p.grad.data)
def picky_step(p, lr, **kwargs):
    if not isinstance(p.data, torch.Tensor): raise TypeError('no tensor')
    p.data.sub_(p.grad.data, alpha=lr)
other = torch.ones(())
def other_step(p, lr, **kwargs): p.data.sub_(p.grad.data*other, alpha=lr)

@pytest.mark.parametrize('step,why', [(norm_step,'norm'), (shape_step,'shape'), (max_step,'max'), (deciding_step,'any'),
                                      (keeping_step,'copy'), (twice_step,'copy'), (out_step,'method'),
                                      (other_step,'passes a Tensor'), (picky_step,'cannot be traced: TypeError: no tensor')],
                         ids=lambda o: getattr(o, '__name__', None))
def test_what_cannot_be_fused_is_eager_and_says_so_once(step, why):
    with pytest.warns(UserWarning) as said: same_steps([step], n=5)
    said = [str(o.message) for o in said if 'fused=True' in str(o.message)]
    assert len(said)==1 and why in said[0]

def test_python_may_compute_with_numbers():
    def sqrt_step(p, lr, **kwargs): p.data.sub_(p.grad.data, alpha=math.sqrt(lr))
    same_steps([sqrt_step])

def test_a_new_value_for_data_is_a_copy():
    def assigning(p, lr, **kwargs): p.data = p.data - lr*p.grad.data
    same_steps([assigning])

def test_what_torch_cannot_compile_is_eager_and_says_so_once(monkeypatch):
    def fail(*args, **kwargs): raise RuntimeError('no luck today')
    monkeypatch.setattr(step, '_kernels', {})
    monkeypatch.setattr(kernel, '_compile_once', fail)
    twins = Twins(AdaMod, few())
    with pytest.warns(UserWarning, match='no luck today') as said:
        for _ in range(4): twins.step()
    assert len([o for o in said if 'fused=True' in str(o.message)])==1
    twins.check()

# --- parameters that share memory

def sharing(fused):
    torch.manual_seed(8)
    x = torch.randn(40)
    ps = [*map(nn.Parameter, few((300,300),(7,))), nn.Parameter(x[:30]), nn.Parameter(x[20:]), *map(nn.Parameter, few((20,30),))]
    return more(AdaMod(ps, lr=1e-2, fused=fused), 6)

def test_those_that_share_memory_are_updated_where_they_lie():
    "Each sees what the one before has written"
    a,b = sharing(False),sharing(True)
    for p,q in zip(a.param_lists[0], b.param_lists[0]): torch.testing.assert_close(q, p, atol=TOL, rtol=0)
    parts, = [o.parts for o in b._plan.subgroups]
    assert [type(o) for o in parts] == [buckets.InPlace]*3 + [buckets.Bucket]

def test_one_that_is_not_contiguous_is_eager_and_says_so_once():
    twins = Twins(AdaMod, few((300,300)) + [torch.randn(20, 30)[:,::2]])
    with pytest.warns(UserWarning) as said:
        for _ in range(6): twins.step()
    assert [str(o.message) for o in said] == ['fused=True: a parameter falls back to the eager step, because it is not contiguous']
    twins.check()

# --- its surroundings

def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(RuntimeError, match=r'C\+\+ compiler.*fused=False'): AdaMod([torch.ones(2)], lr=0.1, fused=True)

@pytest.mark.parametrize('kind,want', [('cpu','C\\+\\+ compiler'), ('cuda','triton|C compiler'), ('mps',None)])
def test_each_device_wants_its_own_compiler(kind, want, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    for o in 'CC','CXX': monkeypatch.delenv(o, raising=False)
    if want is None: return kernel.check_compiler({kind})
    with pytest.raises(RuntimeError, match=want): kernel.check_compiler({kind,'mps'})

def test_numbers_are_made_on_the_host_whatever_the_default_device():
    opt = stepped(shapes=((20,30),))
    torch.set_default_device('meta')
    try: opt.step()
    finally: torch.set_default_device('cpu')
    assert torch.isfinite(opt.param_lists[0][0]).all()

@pytest.mark.parametrize('kind,waits', [('mps',True), ('cuda',False)])
def test_only_cuda_copies_numbers_without_waiting(kind, waits, monkeypatch):
    "From memory that is freed at once: elsewhere it might be used again before it has been copied"
    found,tensor = [],torch.tensor
    monkeypatch.setattr(torch, 'tensor', lambda *args, pin_memory=False, **kwargs: tensor(*args, **kwargs))
    monkeypatch.setattr(torch.Tensor, 'to', lambda *args, non_blocking=False: found.append(non_blocking))
    kernel._to_device([1.], torch.float32, torch.device(kind))
    assert found == [not waits]

def test_one_that_is_too_long_for_a_kernel_is_eager_and_says_so(monkeypatch):
    "Shorter ones stand for what a 32-bit index cannot count"
    assert step._most_elements + 1024 < 2**31
    monkeypatch.setattr(step, '_most_elements', 40_000)
    twins = Twins(AdaMod, few((300,300),(20,30)))
    with pytest.warns(UserWarning, match='it has more than 40000 elements'):
        for _ in range(5): twins.step()
    assert [o.why for o in twins.opts[1]._plan.subgroups] == ['it has more than 40000 elements',None]
    twins.check()

@contextmanager
def counted(obj, name):
    "How often a function is called"
    calls,f = [],getattr(obj, name)
    def g(*args, **kwargs):
        calls.append(1)
        return f(*args, **kwargs)
    with patch.object(obj, name, g): yield calls

def test_compilation_that_is_switched_off_for_a_call_is_an_eager_step_that_says_so():
    twins = Twins(AdaMod, few())
    with pytest.warns(UserWarning, match='falls back to the eager step, because torch.compile is switched off') as said:
        with torch.compiler.set_stance('force_eager'):
            for _ in range(3): twins.step()
    assert len(said)==1 and twins.opts[1]._plan is None
    for _ in range(3): twins.step()
    assert [o.why for o in twins.opts[1]._plan.subgroups] == [None] # fused from then on
    twins.check()

def test_what_is_new_while_compilation_is_switched_off_is_not_compiled(monkeypatch):
    "A step without decay is another graph"
    monkeypatch.setattr(step, '_kernels', {})
    twins = Twins(AdaMod, few((20,30)))
    for _ in range(3): twins.step()
    for o in twins.opts: o.set_hyper('wd', 0.)
    with patch.object(kernel, 'compile_module', side_effect=AssertionError), torch.compiler.set_stance('force_eager'):
        with pytest.warns(UserWarning, match='because torch.compile is switched off') as said:
            for _ in range(3): twins.step()
    assert len(said)==1
    for _ in range(3): twins.step()
    assert [o.why for o in twins.opts[1]._plan.subgroups] == [None] # fused from then on
    twins.check()

def test_without_ahead_of_time_code_a_call_is_never_run_line_by_line(monkeypatch):
    "In a torch that cannot compile ahead of time what is compiled can still be switched off"
    compile = torch.compile
    def older(*args, **kwargs):
        fn = compile(*args, **kwargs)
        return lambda *args: fn(*args)
    monkeypatch.setattr(step, '_kernels', {})
    monkeypatch.setattr(torch, 'compile', older)
    twins = Twins(AdaMod, few((20,30)))
    for _ in range(3): twins.step()
    kernel_, = step._kernels.values()
    with counted(kernel_.module, 'forward') as calls, torch.compiler.set_stance('force_eager'):
        with pytest.warns(UserWarning, match='torch.compile is switched off'): twins.step()
    assert not calls
    twins.check()

@pytest.mark.slow
@pytest.mark.parametrize('variable', ['TORCHDYNAMO_DISABLE','TORCH_COMPILE_DISABLE'])
def test_without_compilation_a_step_takes_no_longer_than_the_eager_one(variable):
    "Nothing is traced and no function of the kernel is called"
    code = """if True:
        import warnings, torch
        from adamod_fastai.fused import kernel, step
        from adamod_fastai.optimizer import AdaMod
        def never(*args): raise AssertionError('it is not to get here')
        step.trace_steps = step._Plan = kernel.Kernel.__call__ = never
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            p = torch.ones(300, 300)
            opt = AdaMod([p], lr=0.1, fused=True)
            for _ in range(3):
                p.grad = torch.ones(300, 300)
                opt.step()
        assert p[0,0] < 1
        print([str(o.message) for o in said if 'fused' in str(o.message)])"""
    res = python(code, **{variable: '1'})
    want = 'fused=True: a parameter falls back to the eager step, because torch.compile is switched off'
    assert res.stdout.strip() == str([want]), res.stderr[-2000:]

def slowly(e=None):
    "A compilation that takes long, and ends with an error"
    def f(*args):
        time.sleep(0.2)
        raise e or RuntimeError('that is enough')
    return f

def test_a_long_compilation_says_in_one_line_what_is_going_on(monkeypatch, capsys):
    monkeypatch.setattr(step, '_kernels', {})
    monkeypatch.setattr(kernel, '_moment', 0.05)
    monkeypatch.setattr(kernel, '_compile_once', slowly())
    with pytest.warns(UserWarning, match='that is enough'): stepped()
    said = capsys.readouterr().err.splitlines()
    assert len(said)==1 and 'compiles the optimizer step' in said[0] and 'reuse' in said[0]

def test_a_short_compilation_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(step, '_kernels', {})
    monkeypatch.setattr(kernel, '_compile_once', slowly())
    with pytest.warns(UserWarning, match='that is enough'): stepped()
    time.sleep(0.1)
    assert capsys.readouterr().err == ''

def test_an_interrupted_compilation_is_told_in_a_line(monkeypatch):
    "And the next step compiles it"
    def deep(n=300): return deep(n-1) if n else slowly(KeyboardInterrupt())()
    monkeypatch.setattr(step, '_kernels', {})
    with patch.object(kernel, '_compile_once', lambda *args: deep()):
        with pytest.raises(KeyboardInterrupt) as e: stepped()
    shown = traceback.format_exception(e.value)
    assert len(''.join(shown).splitlines()) < 50 # 642 with all that torch was at
    assert shown[-1] == 'KeyboardInterrupt: fused=True: interrupted while torch.compile compiled the optimizer step\n'

def test_one_that_an_earlier_version_saved_whole():
    "It has none of what a step keeps, and something else in its place"
    a = stepped()
    was = {k:v for k,v in a.__getstate__().items() if k in vars(stepped(fused=False))}
    b = FusedOptimizer.__new__(FusedOptimizer)
    b.__setstate__({**was, '_plan':None, '_active':None, '_recordings':{}, '_said':set(), '_compiled':1, '_changed':0})
    more(b), more(a)
    for p,q in zip(a.param_lists[0], b.param_lists[0]): assert torch.equal(p, q)

alone = """
import sys, warnings, torch
warnings.filterwarnings('error', message='fused=True')
from adamod_fastai.fused import FusedOptimizer
def cb(p, lr, **kwargs): p.data.sub_(p.grad.data, alpha=lr)
p = torch.ones(300, 300)
opt = FusedOptimizer([p], cb, lr=0.1)
for _ in range(3):
    p.grad = torch.ones(300, 300)
    opt.step()
print(p[0,0].item())
"""
def found_in(cache):
    "Where compiled kernels are looked for and kept: without a search for what the processor could do faster"
    return dict(TORCHINDUCTOR_CACHE_DIR=str(cache), TORCHINDUCTOR_VEC_ISA_OK='0')

def in_a_process(cache):
    res = python(alone, **found_in(cache))
    assert res.returncode==0, res.stderr[-3000:]
    return float(res.stdout)

@pytest.mark.slow
def test_compiles_without_a_cache(tmp_path):
    env = {**os.environ, **found_in(tmp_path), 'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1'}   # read as torch is imported
    res = subprocess.run([sys.executable,'-c',alone], env=env, capture_output=True, text=True)
    assert res.returncode==0 and float(res.stdout) < 1, res.stderr[-3000:]

@pytest.mark.slow
def test_what_is_damaged_in_the_cache_is_told_with_its_folder(tmp_path):
    "As by a process that was stopped while it compiled: without that folder it is compiled again"
    want = in_a_process(tmp_path)
    libs = list(tmp_path.glob('**/*.main.so'))
    assert libs
    for o in libs: o.write_bytes(b'')
    with pytest.raises(AssertionError, match=f'if its cache is damaged, delete the folder {tmp_path}'): in_a_process(tmp_path)
    shutil.rmtree(tmp_path)
    assert in_a_process(tmp_path) == want

def test_global_settings_are_left_as_found(monkeypatch):
    monkeypatch.setattr(step, '_kernels', {})
    found = lambda: (torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy(), torch.is_grad_enabled(),
                     torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())
    before = found()
    stepped()
    assert found() == before

def allocated(f):
    "The most bytes allocated at a time while `f` runs"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof: f()
    now = most = 0
    for o in sorted((o for o in prof.profiler.kineto_results.events() if o.name()=='[memory]'), key=lambda o: o.start_ns()):
        now += o.nbytes()
        most = max(most, now)
    return most

def test_a_step_allocates_next_to_nothing():
    opt = stepped(shapes=((600,600),*[(50,60)]*200))
    assert allocated(opt.step) < 10_000

def test_small_tensors_take_one_buffer_more():
    opt = stepped(shapes=((600,600),*[(50,60)]*40))
    def again():
        opt._plan = None
        opt.step()
    assert 0 < allocated(again) <= 40*50*60*4 + 10_000

@pytest.mark.parametrize('wrap', [lambda f: fused.fused(partial(f, lr=0.1)), lambda f: partial(fused.fused(f), lr=0.1)],
                         ids=['inside','outside'])
def test_a_rate_that_a_partial_gives_is_that_of_the_fit(wrap):
    learn = quiet(ordered_learner(wrap(Adam)))
    learn.create_opt()
    assert {h['lr'] for h in learn.opt.hypers} == {0.1}
