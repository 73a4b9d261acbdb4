"What people do to an optimizer and its Learner, case by case"
import copy, gc, subprocess, sys, warnings, weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader as TorchLoader, SequentialSampler
from fastai.basics import Adam, Callback, DataLoaders, Lookahead
from fastai.callback.all import CancelBatchException, CancelStepException, GradientAccumulation, ParamScheduler, SchedNo

from adamod_fastai.all import *
from learners import cancer_learner, ordered_learner, quiet, same, state_of, used, values
from test_training_loop import mixed

class Memories(Callback):
    "The memory in steps, at each step that is taken"
    order = 1000
    def before_fit(self): self.seen = []
    def after_step(self):
        if 'beta3' in used(self.opt)[0]: self.seen.append(round(1/(1-used(self.opt)[0]['beta3']), 6))

def learner(opt_func=AdaMod, cbs=(), **kwargs): return quiet(cancer_learner(opt_func, cbs=[Memories(),*cbs], **kwargs))

# --- steps are counted, not guessed

class Accumulate(Callback):
    "Every `n`-th batch steps, by the exception that one chooses"
    order = 5
    def __init__(self, n, ex): self.n,self.ex = n,ex
    def before_step(self):
        if self.train_iter % self.n != self.n-1: raise self.ex

class Schedule(Accumulate):
    "As `Accumulate`, each epoch more"
    def before_step(self):
        if self.train_iter % (self.epoch+1) != 0: raise self.ex

@pytest.mark.parametrize('ex', [CancelStepException,CancelBatchException])
@pytest.mark.parametrize('n', [1,2,5])
def test_whoever_accumulates(n, ex):
    learn = learner()
    learn.fit(4, 0.01, cbs=[Accumulate(n, ex)])
    taken = next(iter(state_of(learn.opt)))['step']
    assert taken == 100//n and learn.memories.seen[-1] == pytest.approx(0.15*taken)

def test_a_fit_after_one_that_accumulates_counts_anew():
    learn = learner()
    learn.fit(4, 0.01, cbs=[Accumulate(5, CancelStepException())])
    learn.fit(4, 0.01)
    assert set(learn.memories.seen) == {15.}

class GradientAccumulation2(Accumulate):
    "Somebody else's callback of that name"
    name = 'gradient_accumulation'

def test_a_gradient_accumulation_that_is_not_fastais():
    learn = learner()
    learn.fit(4, 0.01, cbs=[GradientAccumulation2(4, CancelBatchException())])
    assert set(learn.memories.seen) == {3.75}

def test_an_accumulation_that_grows():
    "4 epochs, of 25, 12, 9 and 7 steps: the memory comes near 15% of them all as the fit goes on"
    learn = learner()
    learn.fit(4, 0.01, cbs=[Schedule(1, CancelBatchException())])
    taken = next(iter(state_of(learn.opt)))['step']
    assert 45 <= taken <= 60 and learn.memories.seen[0] == 15 and learn.memories.seen[-1] == pytest.approx(0.15*taken, rel=0.1)

def test_a_loader_that_makes_its_own_batches():
    learn = learner()
    def dl(ds): return TorchLoader(ds, batch_sampler=BatchSampler(SequentialSampler(ds), 16, False))
    learn.dls = DataLoaders(*(dl(o.dataset) for o in learn.dls))
    learn.fit(4, 0.01, cbs=[GradientAccumulation(48)])
    assert set(learn.memories.seen) == {5.}

def test_steps_that_the_scaler_skips_count():
    class Overflow(Callback):
        order = 5
        def before_step(self):
            if self.train_iter in (0,1,40): next(self.model.parameters()).grad[0,0] = torch.inf
    learn = learner()
    learn.fit(4, 0.01, cbs=[mixed(torch.float16, init_scale=1024.),Overflow()])
    assert set(learn.memories.seen[2:]) == {15.}      # the first two took none

@pytest.mark.parametrize('n', [1,2,5,13])
def test_a_short_fit_is_not_adam(n):
    "With a memory of one step nothing would be clipped"
    fits = {}
    for opt_func in AdaMod,Adam:
        fits[opt_func] = learn = quiet(ordered_learner(opt_func, bs=16, n=16*n, cbs=Memories()))
        learn.fit(1, 0.01, cbs=[ClippedFraction(every=1)]*(opt_func is AdaMod))
    assert set(fits[AdaMod].memories.seen) == {2.} and fits[AdaMod].clipped_fraction.used[0] == pytest.approx(0.5)
    assert not same(values(fits[AdaMod].model), values(fits[Adam].model))

@pytest.mark.parametrize('where', ['Learner','fit'])
def test_a_subclass_of_memory_length_as_a_class(where):
    class Whole(MemoryLength):
        def __init__(self): super().__init__(1.)
    learn = learner(cbs=[Whole] if where == 'Learner' else [])
    learn.fit(4, 0.01, cbs=[Whole]*(where == 'fit'))
    assert set(learn.memories.seen) == {100.}

# --- following

def test_a_manual_step_between_two_fits_keeps_what_follows():
    res = []
    for manual in False,True:
        learn = learner(shuffle=False)
        learn.fit_one_cycle(2, 0.01)
        if manual:
            xb,yb = next(iter(learn.dls.train))
            learn.loss_func(learn.model(xb), yb).backward()
            learn.opt.step()
            learn.opt.zero_grad()
        before = [s['lr_avg']/s['last_lr'] for s in state_of(learn.opt)]
        first = First()
        learn.fit_one_cycle(1, 0.01, cbs=first)
        res.append([a/b for a,b in zip(first.after, before)])
    for ratios in res:
        for o in ratios: assert 0.5 < o.median() < 2

class First(Callback):
    order = 1000
    def after_step(self):
        if self.train_iter == 0: self.after = [s['lr_avg']/s['last_lr'] for s in state_of(self.opt)]

def test_a_fit_that_schedules_beta3_keeps_what_follows():
    learn = learner()
    learn.fit_one_cycle(2, 0.01)
    learn.fit_one_cycle(1, 0.01, cbs=ParamScheduler({'beta3': SchedNo(0.9, 0.9)}))
    learn.opt.set_hyper('follow_lr', True)
    before = [s['lr_avg']/s['last_lr'] for s in state_of(learn.opt)]
    first = First()
    learn.fit_one_cycle(1, 0.01, cbs=first)
    for a,b in zip(first.after, before): assert 0.5 < (a/b).median() < 2

def test_a_group_that_was_held_at_zero():
    "Let go after two epochs it moves as one that was held at a tiny rate"
    res = []
    for lr in 0.,1e-12:
        learn = learner(shuffle=False, wd=0.)
        class Hold(Callback):
            order = 70
            def before_batch(self):
                if self.training and self.epoch < 2: self.opt.hypers[0]['lr'] = lr
                elif self.training: self.opt.hypers[0]['lr'] = 0.01
        learn.fit(3, 0.01, cbs=Hold())
        res.append(values(learn.model))
    for a,b in zip(*res): torch.testing.assert_close(a, b, rtol=0.01, atol=1e-3)

# --- parameters

GROUPS = {'named_parameters': lambda m: m.named_parameters(),
          'a tuple of tuples': lambda m: (tuple(m[0].parameters()),tuple(m[1].parameters())),
          'a tuple of generators': lambda m: (m[0].parameters(),m[1].parameters()),
          'generator of lists': lambda m: (list(o.parameters()) for o in m),
          'groups of named parameters': lambda m: [list(o.named_parameters()) for o in m],
          'a ParameterList': lambda m: nn.ParameterList(m.parameters())}

@pytest.mark.parametrize('groups', GROUPS)
@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
def test_whatever_holds_the_parameters_they_move(groups, fused):
    m = nn.Sequential(nn.Linear(3,4), nn.Linear(4,2))
    opt = AdaMod(GROUPS[groups](m), lr=0.1, fused=fused)
    for p in m.parameters(): p.grad = torch.ones_like(p)
    before = values(m)
    opt.step()
    assert not any(map(torch.equal, before, values(m)))
    assert len(opt.param_lists) == (2 if 'of' in groups else 1)

@pytest.mark.parametrize('params,msg', [([torch.ones(2),[torch.ones(2)]],'beside groups'),
                                        ([[torch.ones(2)],torch.ones(2)],'beside groups'),
                                        ([[torch.ones(2)],[[torch.ones(2)]]],'type list in group 1'), ([[1.]],'type float in group 0'),
                                        ([('a',1)],'type int')], ids=str)
def test_what_cannot_be_parameters_is_named(params, msg):
    with pytest.raises(ValueError, match=f'Invalid params: .*{msg}'): AdaMod(params, lr=0.1)

def test_a_splitter_that_gives_tuples():
    learn = learner(splitter=lambda m: (tuple(m[:2].parameters()),tuple(m[2:].parameters())))
    before = values(learn.model)
    learn.fit(1, slice(1e-3,1e-2))
    assert not any(map(torch.equal, before, values(learn.model)))

# --- wrappers

def test_what_is_frozen_in_a_lookahead_stands_still():
    learn = learner(lambda p, **kw: Lookahead(AdaMod(p, **kw)))
    learn.fit(1, 0.01)
    learn.freeze()
    before = learn.model[0].weight.detach().clone()
    learn.fit(10, 0.01, wd=0.5)
    assert torch.equal(before, learn.model[0].weight)

def test_a_lookahead_clears_gradients_that_are_views():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(4)[:2]
    Lookahead(AdaMod([p], lr=0.1)).zero_grad()
    assert (p.grad == 0).all()

def test_a_lookahead_loads_a_copy_and_leaves_the_dict_as_it_is():
    opts = []
    for _ in range(2):
        p = nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        opts.append(Lookahead(AdaMod([p], lr=0.1), k=2))
    a,b = opts
    for _ in range(3): a.step()
    sd = a.state_dict()
    keys,slow = set(sd),copy.deepcopy(sd['slow_weights'])
    for _ in range(2): b.load_state_dict(sd)
    assert set(sd) == keys and b.count == 3
    for _ in range(4): b.step()
    assert same(list(sd['slow_weights'][0]), list(slow[0])) and same(list(a.slow_weights[0]), list(slow[0]))
    with warnings.catch_warnings(), pytest.raises(ValueError):
        warnings.simplefilter('ignore')
        b.load_state_dict({**sd, 'state': [], 'count': 0})
    assert b.count == 7

# --- state

@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
def test_loading_copies(fused):
    def optimizer():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        return AdaMod([p], lr=0.1, fused=fused)
    a,b = optimizer(),optimizer()
    for _ in range(2): a.step()
    sd = a.state_dict()
    want = copy.deepcopy(sd)
    b.load_state_dict(sd)
    b.step()
    assert same(sd, want) and same(state_of(a), want['state'])
    a.load_state_dict(copy.deepcopy(want))
    a.step()
    assert same(state_of(a), state_of(b))

MEMORY = '''
import resource, sys, torch
from adamod_fastai.optimizer import AdaMod
n = 8_000_000
torch.set_num_threads(1)
def optimizer():
    p = torch.nn.Parameter(torch.zeros(n))
    p.grad = torch.ones(n)
    opt = AdaMod([p], lr=0.1, len_memory=5, fused=sys.argv[1] == 'fused')
    opt.step()
    return opt
a,b = optimizer(),optimizer()
torch.empty(4*n).fill_(1)                   # more than a step needs
def peak(f):
    with open('/proc/self/clear_refs', 'w') as file: file.write('5')
    def read(k): return next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith(k))
    before = read('VmRSS')
    res = f()
    print((read('VmHWM')-before)*1024/n)
    return res
sd = peak(a.state_dict)
peak(lambda: b.load_state_dict(sd))
'''

@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs /proc of Linux')
@pytest.mark.parametrize('how', ['eager','fused'])
def test_saving_and_loading_need_little_memory(how):
    "Bytes for each element, of which the state has twelve: `state_dict` copies none, loading never has two copies of a parameter's"
    res = subprocess.run([sys.executable,'-W','ignore','-c',MEMORY,how], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-2000:]
    save,load = map(float, res.stdout.split())
    assert save < 1 and load < 5

@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
def test_an_expanded_gradient_with_l2(fused):
    res = []
    for expanded in False,True:
        p = torch.arange(6.).view(2,3)
        opt = AdaMod([p], lr=0.1, decouple_wd=False, wd=0.1, fused=fused)
        for _ in range(3):
            p.grad = torch.full((1,1), 0.5).expand(2,3) if expanded else torch.full((2,3), 0.5)
            opt.step()
        res.append(p)
    assert torch.equal(*res)

def test_len_memory_is_no_hyper_but_one_is_told_which():
    opt = AdaMod([torch.ones(2)], lr=0.1)
    with pytest.raises(ValueError, match=r"'len_memory'. Set beta3=len2beta3\(len_memory\)"): opt.set_hyper('len_memory', 0.5)

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory,partial(AdaMod, fused=True)])
def test_an_optimizer_says_what_it_is(opt_func):
    shown = repr(opt_func([[torch.ones(2)],[torch.ones(1),torch.ones(1)]], lr=0.125))
    assert shown.startswith(getattr(opt_func, 'func', opt_func).__name__) and shown.count('lr=0.125') == 2
    for o in 'weight_decay','rate_step','1 parameter:','2 parameters:': assert o in shown

def test_the_representation_says_that_the_length_fits():
    learn = learner()
    class Shown(Callback):
        order = 1000
        def after_step(self): self.shown = repr(self.opt)
    learn.fit(4, 0.01, cbs=[cb := Shown()])
    for o in cb.shown,repr(learn.opt): assert o.count('beta3 fits each fit (0.9333 in the last step)') == 2 and '0.999' not in o
    learn.opt.set_hyper('beta3', [0.9,0.8])
    assert 'fits' not in repr(learn.opt) and 'beta3=0.9' in repr(learn.opt) and 'beta3=0.8' in repr(learn.opt)

# --- callbacks

@pytest.mark.parametrize('cb', [ClippedFraction,RateHistogram])
def test_what_was_measured_is_on_the_learner_after_the_fit(cb):
    learn = learner()
    learn.fit_one_cycle(2, 0.01, cbs=cb(every=1))
    measured = getattr(learn, 'clipped_fraction' if cb is ClippedFraction else 'rate_histogram')
    assert len(measured.steps) == 50 and type(measured) is cb
    measured.plot()
    learn.fit_one_cycle(1, 0.01, cbs=cb(every=5))
    again = getattr(learn, 'clipped_fraction' if cb is ClippedFraction else 'rate_histogram')
    assert again is not measured and len(again.steps) == 5
    assert not hasattr(learner(), 'clipped_fraction')

def test_kept_for_its_plots_it_does_not_keep_the_model():
    learn,cb = learner(),ClippedFraction(every=1)
    learn.fit(1, 0.01, cbs=cb)
    model,p = weakref.ref(learn.model),weakref.ref(next(learn.model.parameters()))
    del learn
    gc.collect()
    assert model() is None and p() is None
    cb.plot(); cb.plot_layers()

def test_the_histogram_counts_beyond_what_float32_does():
    hist,n = RateHistogram(every=1, lo=-5, hi=5, bins=4),(1<<24)+(1<<22)
    p = torch.zeros(n)
    state,hyper = dict(sqr_avg=torch.ones(n), step=1000),dict(lr=0.1, mom=0.9, sqr_mom=0.99, eps=1e-5)
    hist.learn = SimpleNamespace(opt=None)
    hist.measure([(p,None,state,hyper)])
    assert hist.histograms.sum() == pytest.approx(1, abs=1e-6)

def test_layers_whose_parameters_are_replaced_in_the_middle():
    class Replace(Callback):
        def before_epoch(self):
            if self.epoch != 1: return
            self.model[0].weight = nn.Parameter(self.model[0].weight.detach().clone())
            self.learn.create_opt()
            self.opt.set_hyper('lr', 0.01)
    learn = learner()
    learn.fit(2, 0.01, cbs=[ClippedFraction(every=1),Replace()])
    assert learn.clipped_fraction.layer_fractions.shape == learn.clipped_fraction.layer_used.shape == (50,3)
    assert np.isfinite(learn.clipped_fraction.layer_used).all()

def test_train_metrics_show_each_column_once():
    learn = learner(cbs=[ClippedFraction()])
    learn.recorder.train_metrics = True
    learn.fit(1, 0.01)
    names = list(learn.recorder.metric_names)
    assert names == ['epoch','train_loss','train_accuracy','valid_loss','valid_accuracy','clipped','used','time']
    assert len(learn.recorder.values[0]) == len(names)-2

def test_no_batches_at_all_say_nothing():
    learn = quiet(ordered_learner(partial(AdaMod, len_memory=5), n=8, bs=16, cbs=ClippedFraction()))
    learn.dls.train.drop_last = True
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'This fit has')
        learn.fit(1, 0.01)

@pytest.mark.parametrize('opt_func', [AdaMod,partial(DiffMod, len_memory=15)], ids=['AdaMod','DiffMod'])
def test_used_is_the_mean_part_of_adams_rate(opt_func):
    "Against min(η, s)/η from the state, in float64"
    want = []
    class Recount(Callback):
        order = 1000
        def after_step(self):
            parts = []
            for p,_,s,h in self.opt.all_params(with_grad=True):
                eta = h['lr']/((s['sqr_avg'].double()/(1-h['sqr_mom']**s['step'])).sqrt()+h['eps'])
                parts.append((torch.minimum(eta, s['lr_avg'].double())/eta).flatten())
            want.append(torch.cat(parts).mean().item())
    learn = learner(opt_func)
    learn.fit_one_cycle(3, 0.02, cbs=[ClippedFraction(every=1),Recount()])
    np.testing.assert_allclose(learn.clipped_fraction.used, want, atol=1e-5)
    np.testing.assert_allclose([o[-1] for o in learn.recorder.values], np.array(want).reshape(3,-1).mean(1), atol=1e-5)
    assert want[0] < 0.1 and want[-1] > 0.8

def test_used_at_a_rate_of_zero_is_that_of_the_memory():
    learn = learner()
    class Zero(Callback):
        order = 70
        def before_batch(self):
            if self.training: self.opt.set_hyper('lr', 0. if self.epoch == 1 else 0.01)
    learn.fit(3, 0.01, cbs=[ClippedFraction(every=1),Zero()])
    seen = np.array(learn.clipped_fraction.used).reshape(3,-1)
    assert np.isfinite(seen).all() and seen[1].min() > seen[0].mean() and abs(seen[2,0]-seen[1,-1]) < 0.1
