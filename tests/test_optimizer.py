import copy, math, pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from hypothesis import given, settings, strategies as st
from fastai.basics import Adam, Callback, Lookahead, set_seed
from fastai.callback.all import ParamScheduler, SchedLin, combined_cos

from adamod_fastai.all import *
from adamod_fastai.base import ModOptimizer
from adamod_fastai.compare.tasks import transformer_learner
from learners import cancer_learner, quiet
from reference import Rule

OPTS = [(AdaMod,None),(DiffGrad,0),(DiffGrad,1),(DiffGrad,2),(DiffMod,0),(DiffMod,1),(DiffMod,2),(DeepMemory,1)]
ids = lambda o: o.__name__ if callable(o) else None

def one_cycle(n, lr_max=0.01):
    "lr and mom of `fit_one_cycle`, as fastai's own schedules give them"
    lrs,moms = combined_cos(0.25, lr_max/25, lr_max, lr_max/1e5),combined_cos(0.25, 0.95, 0.85, 0.95)
    return [(lrs(i/n),moms(i/n)) for i in range(n)]

def spread_grads(n, size=40):
    "Gradients of `size` elements whose sizes lie over four orders of magnitude"
    scale = 10**np.linspace(-3, 1, size)
    return np.random.default_rng(0).normal(size=(n,size))*scale

def kwargs_of(opt_func, version, **kwargs): return dict(kwargs, **({} if version is None else dict(version=version)))

# --- against the equations

@pytest.mark.parametrize('decouple_wd', [True,False])
@pytest.mark.parametrize('opt_func,version,paper,follow_lr', [(*o,True,False) for o in OPTS] + [
    (*o,p,f) for o in OPTS if o[0] is not DiffGrad for p,f in ((False,False),(True,True),(False,True))], ids=ids)
def test_follows_the_equations(opt_func, version, paper, follow_lr, decouple_wd):
    n,mem = 400,{} if opt_func is DiffGrad else dict(len_memory=50)
    grads = spread_grads(n)
    start = np.random.default_rng(1).normal(size=grads.shape[1])
    ref = Rule(opt_func.__name__, start, beta3=0.98, version=version, paper=paper, decouple_wd=decouple_wd, follow_lr=follow_lr)
    p = nn.Parameter(torch.tensor(start))
    if opt_func is not DiffGrad: mem.update(paper=paper, follow_lr=follow_lr)
    opt = opt_func([p], lr=0.01, decouple_wd=decouple_wd, **mem, **({} if version is None else dict(version=version)))
    eps,moved = (1e-6 if opt_func is DeepMemory else 1e-5),np.zeros_like(start)
    for g,(lr,mom) in zip(grads, one_cycle(n)):
        opt.set_hypers(lr=lr, mom=mom)
        (p*torch.tensor(g)).sum().backward()     # accumulates in place, as in a Learner
        opt.step()
        opt.zero_grad()
        before = ref.p
        ref.step(g, lr, mom, eps=eps)
        moved += np.abs(ref.p-before)
    assert (np.abs(p.detach().numpy()-ref.p) <= 1e-6*moved).all()

def test_no_memory_is_adam():
    grads = torch.tensor(spread_grads(100), dtype=torch.float32)
    res = []
    for opt_func in partial(AdaMod, len_memory=1),Adam:
        p = torch.ones(grads.shape[1])
        opt = opt_func([p], lr=0.01)
        for g in grads:
            p.grad = g.clone()
            opt.step()
        res.append(p)
    assert (res[0]-res[1]).abs().max() <= 1e-6

def goes_on(p, opt, grads, lrs):
    for g,lr in zip(grads, lrs):
        opt.set_hyper('lr', lr)
        p.grad = torch.tensor(g)
        opt.step()

def following(lrs, follow_lr=True):
    "The parameters and the AdaMod that has stepped them at the rates `lrs`"
    p = torch.ones(40, dtype=torch.float64)
    opt = AdaMod([p], lr=0.01, len_memory=30, follow_lr=follow_lr)
    goes_on(p, opt, spread_grads(len(lrs)), lrs)
    return p,opt

def test_follow_lr_does_not_remember_the_schedule():
    lrs = [lr for lr,_ in one_cycle(100)]
    memories = [o.state[p]['lr_avg']/lrs[-1] for p,o in (following(lrs), following([lrs[-1]]*100))]
    torch.testing.assert_close(*memories, rtol=1e-12, atol=0)

def test_follow_lr_is_the_same_at_a_constant_rate():
    (p,_),(q,_) = (following([0.01]*100, o) for o in (True,False))
    assert (p == q).all()

def test_follow_lr_goes_on_from_a_checkpoint():
    lrs = [lr for lr,_ in one_cycle(100)]
    (want,_),(p,opt) = following(lrs),following(lrs[:50])
    new = AdaMod([p], lr=1., len_memory=2, follow_lr=True)
    new.load_state_dict(copy.deepcopy(opt.state_dict()))
    goes_on(p, new, spread_grads(100)[50:], lrs[50:])
    assert (p == want).all()

def test_follow_lr_goes_on_at_a_rate_of_zero():
    "The memory is that of the rates without lr, whatever lr is; the parameter stands still"
    lrs,v,shape = [0.,0.01,0.02,0.,0.,0.03],0.,0.
    p,opt = following(lrs)
    for i,g in enumerate(spread_grads(6)):
        v = 0.99*v + 0.01*g**2
        shape = (1-1/30)*shape + 1/30/(np.sqrt(v/(1-0.99**(i+1)))+1e-5)
    np.testing.assert_allclose(opt.state[p]['lr_avg'], 0.03*shape, rtol=1e-9)
    assert opt.state[p]['last_lr'] == 0.03
    p,opt = following([0.,0.])
    assert (p == 1).all() and opt.state[p]['last_lr'] == 1

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DeepMemory], ids=ids)
@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
@pytest.mark.parametrize('n', [1,20,60])
def test_a_rate_of_zero_is_like_a_tiny_one(opt_func, fused, n):
    "The first move after `n` steps at 0 is that after `n` steps at 1e-12"
    moves = []
    for lr in 0.,1e-12:
        p = torch.ones(40, dtype=torch.float64)
        opt = opt_func([p], lr=0.01, len_memory=30, follow_lr=True, wd=0., fused=fused)
        goes_on(p, opt, spread_grads(n), [lr]*n)
        before = p.clone()
        goes_on(p, opt, spread_grads(n+1)[n:], [0.01])
        moves.append(p-before)
    torch.testing.assert_close(*moves, rtol=1e-6, atol=1e-15)

def test_what_follows_survives_steps_that_do_not():
    "One step by hand at the last rate of a schedule, and the memory is still that of the rates without lr"
    lrs = [lr for lr,_ in one_cycle(100)]
    for between in [],[lrs[-1]]:
        p,opt = following(lrs)
        opt.set_hyper('follow_lr', False)
        goes_on(p, opt, spread_grads(101)[100:100+len(between)], between)
        opt.set_hyper('follow_lr', True)
        goes_on(p, opt, spread_grads(102)[101:], [lrs[0]])
        if not between: want = opt.state[p]['lr_avg'].clone()
    torch.testing.assert_close(opt.state[p]['lr_avg'], want, rtol=0.2, atol=0.)

def test_the_lr_of_a_memory_that_does_not_follow_is_averaged_as_it_is():
    "Under a constant gradient the memory is lr times a number, whatever lr was"
    p = torch.ones(1, dtype=torch.float64)
    opt = AdaMod([p], lr=0.01, len_memory=30, follow_lr=True)
    goes_on(p, opt, np.full((500,1), 0.1), [0.01]*500)
    opt.set_hyper('follow_lr', False)
    goes_on(p, opt, np.full((40,1), 0.1), np.linspace(0.01, 0.1, 40))
    state = opt.state[p]
    torch.testing.assert_close(state['lr_avg']/state['last_lr'], torch.tensor([1/(0.1+1e-5)], dtype=torch.float64), rtol=1e-4, atol=0)

# --- against other packages

def published(name):
    if name == 'pytorch_optimizer':
        opt = pytest.importorskip(name).AdaMod
        return lambda p, lr, wd: opt([p], lr=lr, betas=(0.9,0.99,0.99), eps=1e-8, weight_decay=wd)
    opt = pytest.importorskip(name).AdaMod
    return lambda p, lr, wd: opt([p], lr=lr, betas=(0.9,0.99), beta3=0.99, eps=1e-8, weight_decay=wd)

@pytest.mark.parametrize('name', ['pytorch_optimizer','torch_optimizer'])
def test_paper_false_is_the_published_code(name):
    grads = torch.tensor(spread_grads(1000))
    ps = [nn.Parameter(torch.ones(grads.shape[1], dtype=torch.float64)) for _ in range(2)]
    opts = [published(name)(ps[0], 1e-3, 0.01), AdaMod([ps[1]], lr=1e-3, sqr_mom=0.99, beta3=0.99, eps=1e-8, wd=0.01, paper=False)]
    for g in grads:
        for p,opt in zip(ps, opts):
            p.grad = g.clone()
            opt.step()
    assert (ps[0]-ps[1]).abs().max() <= 1e-6
    assert (ps[0]-1).abs().max() > 0.01

def test_diffgrad_is_the_published_code():
    "With no weight decay and eps too small to matter: theirs is not debiased"
    published = pytest.importorskip('torch_optimizer').DiffGrad
    grads = torch.tensor(spread_grads(300))
    ps = [nn.Parameter(torch.ones(grads.shape[1], dtype=torch.float64)) for _ in range(2)]
    opts = [published([ps[0]], lr=1e-3, betas=(0.9,0.99), eps=1e-16), DiffGrad([ps[1]], lr=1e-3, eps=1e-16, wd=0.)]
    for g in grads:
        for p,opt in zip(ps, opts):
            p.grad = g.clone()
            opt.step()
    assert (ps[0]-ps[1]).abs().max() <= 1e-6

# --- state

N_STATE = {'AdaMod': {'grad_avg','sqr_avg','lr_avg'}, 'DiffMod': {'grad_avg','sqr_avg','lr_avg','prev_grad'},
           'DeepMemory': {'grad_avg','sqr_avg','lr_avg','prev_grad'}, 'DiffGrad': {'grad_avg','sqr_avg','prev_grad'}}

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory], ids=ids)
def test_state_holds_only_what_the_next_step_needs(opt_func, tmp_path):
    learn = cancer_learner(opt_func, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.save('m')
    saved = torch.load(tmp_path/'models'/'m.pth', weights_only=False)['opt']
    for (p,_,state,_),kept in zip(learn.opt.all_params(), saved['state']):
        for s in state,kept:
            assert {k for k,v in s.items() if torch.is_tensor(v)} == N_STATE[opt_func.__name__]
            assert all(v.shape == p.shape for v in s.values() if torch.is_tensor(v))
            assert set(s) - N_STATE[opt_func.__name__] <= {'step','do_wd','force_train','last_lr'}

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
@pytest.mark.parametrize('grad', [1e-3,0.1,3.])
@pytest.mark.slow
def test_memory_reaches_the_rate_in_half_precision(dtype, grad):
    p = torch.ones(4, dtype=dtype)
    g = torch.full((4,), grad, dtype=dtype)
    opt = AdaMod([p], lr=1e-3, wd=0.)
    for _ in range(8000):
        p.grad = g.clone()
        opt.step()
    state = opt.state[p]
    assert state['lr_avg'].dtype == torch.float32
    want = 1e-3/(g.double()+1e-5)
    assert ((state['lr_avg'].double()-want).abs() <= 0.05*want).all()

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory], ids=ids)
def test_resumed_run_is_the_same_to_the_bit(opt_func, tmp_path):
    def batches(learn, n):
        learn.model.train()
        for xb,yb in list(learn.dls.valid)[:n]:
            nn.functional.cross_entropy(learn.model(xb), yb).backward()
            learn.opt.step()
            learn.opt.zero_grad()
    straight,first,resumed = (cancer_learner(opt_func, path=tmp_path, seed=s) for s in (0,0,1))
    for o in straight,first,resumed: o.create_opt(); o.opt.set_hypers(lr=0.01)
    batches(straight, 10); batches(straight, 10)
    batches(first, 10)
    first.save('half')
    resumed.load('half')
    batches(resumed, 10)
    for a,b in zip(straight.model.state_dict().values(), resumed.model.state_dict().values()): assert torch.equal(a, b)
    for (_,_,a,_),(_,_,b,_) in zip(straight.opt.all_params(), resumed.opt.all_params()):
        assert set(a) == set(b)
        for k in a: assert torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k]

def test_what_comes_back_as_none_is_no_longer_kept():
    def counting(p, step=0, **kwargs): return {'step': step+1, 'odd': None if step%2 else True}
    p = torch.ones(2)
    opt = ModOptimizer([p], counting, lr=0.1)
    p.grad = torch.ones(2)
    for want in {'step','odd'},{'step'},{'step','odd'}:
        opt.step()
        assert set(opt.state[p]) == want

# --- hypers and errors

def test_defaults_are_adams_plus_beta3():
    ours,adams = AdaMod([torch.ones(1)], lr=0.1).hypers[0],Adam([torch.ones(1)], lr=0.1).hypers[0]
    assert {k:ours[k] for k in adams} == adams
    assert ours['beta3'] == 0.999

def test_default_friction():
    assert [o([torch.ones(1)], lr=0.1).hypers[0]['version'] for o in (DiffGrad,DiffMod,DeepMemory)] == [0,0,1]

@pytest.mark.parametrize('opt_func,n', [(AdaMod,1000),(DiffMod,1000),(DeepMemory,200)], ids=ids)
def test_default_memory(opt_func, n):
    assert opt_func([torch.ones(1)], lr=0.1).hypers[0]['beta3'] == pytest.approx(1-1/n, abs=1e-12)
    assert opt_func([torch.ones(1)], lr=0.1, len_memory=2.5).hypers[0]['beta3'] == pytest.approx(0.6, abs=1e-12)

BAD = [dict(len_memory=0.99), dict(len_memory=-3), dict(len_memory=math.nan), dict(len_memory=math.inf), dict(len_memory='many'),
       dict(beta3=1.), dict(beta3=-1e-3), dict(beta3=math.nan), dict(beta3='x'), dict(mom=1.), dict(sqr_mom=-0.1), dict(eps=-1e-8),
       dict(lr=-1.), dict(lr=math.nan)]

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DeepMemory], ids=ids)
@pytest.mark.parametrize('bad', BAD, ids=str)
def test_bad_values_are_refused_by_name(opt_func, bad):
    (k,v), = bad.items()
    with pytest.raises(ValueError) as e: opt_func([torch.ones(1)], **dict(dict(lr=0.1), **bad))
    assert k in str(e.value) and str(v) in str(e.value)

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DeepMemory], ids=ids)
def test_beta3_and_len_memory_exclude_each_other(opt_func):
    with pytest.raises(ValueError, match='beta3.*len_memory.*0.9.*50'): opt_func([torch.ones(1)], lr=0.1, beta3=0.9, len_memory=50)

@pytest.mark.parametrize('opt_func', [DiffGrad,DiffMod,DeepMemory], ids=ids)
@pytest.mark.parametrize('version', [3,-1,None,'0',1.,True])
def test_unknown_version(opt_func, version):
    with pytest.raises(ValueError, match='version'): opt_func([torch.ones(1)], lr=0.1, version=version)

def test_refused_hyper_changes_nothing():
    opt = AdaMod([[torch.ones(1)],[torch.ones(1)]], lr=0.1)
    before = copy.deepcopy(opt.hypers)
    with pytest.raises(ValueError, match='beta3.*1.5'): opt.set_hyper('beta3', [0.9,1.5])
    assert opt.hypers == before

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory], ids=ids)
def test_sparse_gradient_stops_before_anything_moved(opt_func):
    dense,emb = nn.Parameter(torch.ones(3)),nn.Embedding(6, 2, sparse=True)
    opt = opt_func([dense,emb.weight], lr=0.1)
    dense.grad = torch.ones(3)
    emb(torch.tensor([1,4])).sum().backward()
    with pytest.raises(RuntimeError, match=r'parameter 1.*\(6, 2\).*sparse'): opt.step()
    assert torch.equal(dense.data, torch.ones(3)) and not opt.state[dense]

def test_freezing_keeps_the_gradients_of_what_trains_on():
    "Batch norm, which fastai marks so"
    conv,norm,head = ps = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    opt = AdaMod([[conv,norm],[head]], lr=0.1)
    opt.state[norm] = dict(force_train=True)
    for p in ps: p.grad = torch.ones(3)
    opt.freeze_to(1)
    opt.step()
    assert [bool((p < 1).all()) for p in ps] == [False,True,True]

def test_beta3_can_be_scheduled_and_set_per_group():
    seen = []
    class Record(Callback):
        def after_step(self): seen.append([h['beta3'] for h in self.opt.hypers])
    beta3 = lambda pct: [SchedLin(0.9, 0.99)(pct), SchedLin(0.5, 0.6)(pct)]
    learn = cancer_learner(AdaMod, cbs=[ParamScheduler({'beta3': beta3}), Record()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    seen = np.array(seen)
    want = np.linspace(0, 1, len(seen), endpoint=False)
    np.testing.assert_allclose(seen, np.stack([0.9+0.09*want, 0.5+0.1*want], 1), atol=1e-9)

@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
def test_beta3_set_in_one_group_counts_from_then_on_in_that_group_alone(fused):
    grads,betas = spread_grads(20),(0.9,0.8)
    ps = [torch.ones(40, dtype=torch.float64) for _ in betas]
    refs = [Rule('AdaMod', p.numpy(), beta3=o) for p,o in zip(ps, betas)]
    opt = AdaMod([[p] for p in ps], lr=0.01, len_memory=10, fused=fused)
    opt.set_hyper('beta3', betas)
    for i,g in enumerate(grads):
        if i == 10: opt.hypers[0]['beta3'] = refs[0].beta3 = 0.5
        for p,ref in zip(ps, refs):
            p.grad = torch.tensor(g)
            ref.step(g, 0.01)
        opt.step()
    for p,ref in zip(ps, refs): np.testing.assert_allclose(opt.state[p]['lr_avg'], ref.s, rtol=1e-9)

@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
@pytest.mark.parametrize('wrap', [lambda o: o, Lookahead], ids=['AdaMod','Lookahead'])
def test_zero_grad_of_gradients_that_have_a_graph(wrap, fused):
    "Those of `backward(create_graph=True)`: zero, in the same memory, and without the graph"
    p,c = nn.Parameter(torch.ones(3)),nn.Parameter(torch.full((3,), 2.))
    opt = wrap(AdaMod([p], lr=0.1, fused=fused))
    (p**3*c).sum().backward(create_graph=True)
    grad,where = p.grad,p.grad.data_ptr()
    assert grad.grad_fn is not None
    opt.step()
    opt.zero_grad()
    assert p.grad is grad and grad.data_ptr() == where and (grad == 0).all()
    assert grad.grad_fn is None and not grad.requires_grad

# --- properties

rates = st.floats(1e-5, 1.)
betas = st.sampled_from([0.,0.5,0.9,0.99,0.999])
shapes = st.sampled_from([(),(1,),(0,),(7,),(3,4),(2,3,2,2)])
dtypes = st.sampled_from([torch.float32,torch.float64,torch.bfloat16])

def drive(opt_func, shape, dtype, n, seed, scale=1., **kwargs):
    "`n` steps of random gradients; what each step used: (parameter before, after, opt)"
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(shape, generator=g).to(dtype)
    opt = opt_func([p], wd=0., **kwargs)
    for _ in range(n):
        p.grad = (torch.randn(shape, generator=g)*10**torch.randn(shape, generator=g)).to(dtype)*scale
        before = p.clone()
        opt.step()
        yield before,p,opt

@settings(max_examples=60, deadline=None)
@given(shape=shapes, dtype=dtypes, lr=rates, mom=betas, sqr_mom=betas, beta3=betas, seed=st.integers(0,1000), paper=st.booleans())
def test_rate_never_exceeds_the_adaptive_rate_nor_the_memory(shape, dtype, lr, mom, sqr_mom, beta3, seed, paper):
    used = []
    def spy(p, rate, lr_avg, **kwargs): used.append((rate.clone(),lr_avg.clone(),adaptive_rate(p, **kwargs)['rate']))
    p = torch.ones(shape, dtype=dtype)
    opt = AdaMod([p], lr=lr, mom=mom, sqr_mom=sqr_mom, beta3=beta3, paper=paper)
    opt.cbs.insert(len(opt.cbs)-1, spy)
    for i in range(6):
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed+i)).to(dtype)
        opt.step()
    assert len(used) == 6
    for rate,memory,eta in used: assert (rate <= memory).all() and (rate <= eta).all() and (rate >= 0).all()

@settings(max_examples=60, deadline=None)
@given(shape=shapes, dtype=st.sampled_from([torch.float32,torch.float64]), lr=rates, mom=betas, sqr_mom=betas, beta3=betas,
       version=st.sampled_from([0,1]), seed=st.integers(0,1000))
def test_diffmod_never_steps_further_than_adamod(shape, dtype, lr, mom, sqr_mom, beta3, version, seed):
    kwargs = dict(lr=lr, mom=mom, sqr_mom=sqr_mom, beta3=beta3)
    mods = drive(AdaMod, shape, dtype, 6, seed, **kwargs)
    diffs = drive(partial(DiffMod, version=version), shape, dtype, 6, seed, **kwargs)
    spacing = torch.finfo(dtype).eps
    for (a0,a1,_),(d0,d1,_) in zip(mods, diffs):
        rounding = spacing*torch.maximum(a0.abs(), d0.abs()).clamp(min=torch.maximum(a1.abs(), d1.abs()))*2
        assert ((d1-d0).abs() <= (a1-a0).abs() + rounding).all()

@settings(max_examples=60, deadline=None)
@given(lr=rates, mom=betas, sqr_mom=betas, beta3=betas, seed=st.integers(0,1000), scale=st.floats(1e-6,1e6), paper=st.booleans())
def test_scaling_the_gradients_changes_nothing(lr, mom, sqr_mom, beta3, seed, scale, paper):
    kwargs = dict(lr=lr, mom=mom, sqr_mom=sqr_mom, beta3=beta3, eps=0., paper=paper)
    plain,scaled = (drive(AdaMod, (5,), torch.float64, 8, seed, scale=o, **kwargs) for o in (1.,scale))
    for (_,a,_),(_,b,_) in zip(plain, scaled):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory], ids=ids)
def test_parameters_without_a_gradient_stay(opt_func):
    with_grad,without = torch.ones(3),torch.ones(3)
    with_grad.grad = torch.ones(3)
    opt = opt_func([with_grad,without], lr=0.1)
    for _ in range(3): opt.step()
    assert torch.equal(without, torch.ones(3)) and not opt.state[without]
    assert (with_grad < 1).all()

# --- in a Learner

@pytest.mark.parametrize('opt_func', [partial(AdaMod, len_memory=20),partial(DiffMod, len_memory=20),DiffGrad,DeepMemory],
                         ids=lambda o: getattr(o, 'func', o).__name__)
def test_trains_a_learner(opt_func):
    learn = cancer_learner(opt_func)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 0.02)
    assert learn.validate()[1] > 0.92

@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_adamod_trains_where_adam_fails(seed):
    "AdaMod's promise at its smallest: a transformer without warmup, on which Adam does not get below the unigram baseline"
    def loss(opt_func):
        set_seed(seed)
        learn = quiet(transformer_learner(opt_func))
        learn.dls.train.rng.seed(seed)
        learn.fit(5, 1e-2)
        return learn.validate()[0],learn.dls
    adam,dls = loss(Adam)
    chars = lambda dl: torch.cat([y.flatten() for _,y in dl]).bincount(minlength=dls.c)
    train,valid = chars(dls.train),chars(dls.valid)
    only_counts = -(valid*((train+1)/(train.sum()+dls.c)).log()).sum()/valid.sum()
    assert adam > only_counts-0.1
    assert loss(partial(AdaMod, len_memory=1000))[0] < only_counts-0.2 # the text is that of the Python at hand

def test_star_import_shadows_nothing_of_fastai():
    import adamod_fastai.all as ours
    public = {k for k in vars(ours) if not k.startswith('_')}
    import importlib
    for mod in 'basics','vision.all','tabular.all','text.all','collab','callback.all':
        theirs = importlib.import_module(f'fastai.{mod}')
        clash = {k for k in public & set(vars(theirs)) if getattr(theirs, k) is not getattr(ours, k)}
        assert not clash, f'fastai.{mod}: {clash}'
    assert {'AdaMod','DiffMod','DiffGrad','DeepMemory','len2beta3','adaptive_rate'} <= public

# --- refused before anything moves

@pytest.mark.parametrize('fused', [False,True])
@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory], ids=ids)
def test_complex_parameters_are_refused(opt_func, fused):
    ps = [torch.ones(2), torch.ones(2, dtype=torch.complex64)]
    for p in ps: p.grad = torch.ones_like(p)
    opt = opt_func(ps, lr=0.1, wd=0.1, fused=fused)
    with pytest.raises(RuntimeError, match=r'parameter 1 of shape \(2,\) is torch.complex64'): opt.step()
    assert all((p == 1).all() for p in ps) and not any(opt.state[p] for p in ps)

@pytest.mark.parametrize('k,like', [('beta_3','beta3'),('len_memory',''),('betas','beta3'),('sqr_momentum','sqr_mom')])
@pytest.mark.parametrize('wrap', [lambda o: o, Lookahead], ids=['AdaMod','Lookahead'])
def test_an_unknown_hyper_is_refused(k, like, wrap):
    opt = wrap(AdaMod([torch.ones(2)], lr=0.1))
    before = copy.deepcopy(opt.hypers)
    with pytest.raises(ValueError, match=f"hyper: '{k}'.*{like}"): opt.set_hyper(k, 0.9)
    with pytest.raises(ValueError, match=f"hyper: '{k}'"): opt.hypers[0][k] = 0.9
    assert opt.hypers == before

def test_numbers_are_kept_as_pythons():
    opt = AdaMod([[torch.ones(2)],[torch.ones(2)]], lr=0.1)
    for v in np.float64(0.5),np.float32(0.5),torch.tensor(0.5),np.array(0.5),slice(np.float64(0.1),np.float64(0.5)): opt.set_hyper('lr', v)
    opt.set_hyper('mom', np.linspace(0.5, 0.6, 2))
    opt.hypers[1]['wd'] = np.float64(0.1)
    assert {type(v) for h in opt.hypers for v in h.values()} <= {float,int,bool}
    with pytest.raises(ValueError, match='Invalid mom: 2'): opt.hypers[0]['mom'] = 2

@pytest.mark.parametrize('params,msg', [([],'at least one'),(iter(()),'at least one'),([{'params': [torch.ones(2)], 'lr': 0.1}],'dict'),
                                        ('ab','str'),([1.],'float')])
def test_params_that_are_none(params, msg):
    with pytest.raises(ValueError, match=f'Invalid params.*{msg}'): AdaMod(params, lr=0.1)

def test_params_of_any_kind():
    ps = [torch.ones(2),torch.zeros(3)]
    for params,want in ((p for p in ps),[2]),(ps[0],[1]),(tuple(ps),[2]),([[ps[0]],[ps[1]]],[1,1]),(nn.Linear(2,3).parameters(),[2]):
        assert [len(o) for o in AdaMod(params, lr=0.1).param_lists] == want

def test_hypers_survive_copies():
    opt = AdaMod([torch.ones(2)], lr=0.1)
    for o in copy.deepcopy(opt),pickle.loads(pickle.dumps(opt)):
        assert o.hypers == opt.hypers
        with pytest.raises(ValueError): o.hypers[0]['lr'] = -1
