import warnings

import numpy as np
import pytest
import torch
from functools import partial
from fastai.basics import SGD, Adam, Callback, Lookahead, OptimWrapper, RMSProp
from fastai.callback.schedule import ParamScheduler, SchedLin, SchedNo
from fastai.optimizer import average_grad
from fastai.callback.all import SaveModelCallback  # also patches fit_one_cycle and fit_flat_cos

from adamod_fastai.all import *
from adamod_fastai.callback import _sgd_average, _sgd_step
from adamod_fastai.steps import _run_rounded
from learners import cancer_learner, quiet, same, state_of, used, values

adamod = partial(AdaMod, len_memory=10)
params = lambda learn: values(learn.model)

class Record(Callback):
    "Rates, momentum and parameters after every step"
    order = 100
    def __init__(self): self.lrs,self.moms,self.params = [],[],[]
    def after_step(self):
        self.lrs.append([h['lr'] for h in self.opt.hypers]); self.moms.append([h['mom'] for h in used(self.opt)])
        self.params.append(params(self.learn))

def fitted(opt_func, *cbs, fit=lambda o: o.fit_one_cycle(4, 0.01), setup=lambda o: None, **kwargs):
    learn = quiet(cancer_learner(opt_func, cbs=[Record(),*cbs], **kwargs))
    setup(learn)
    fit(learn)
    return learn

SCHEDULES = {'one_cycle': lambda lr, **kw: lambda o: o.fit_one_cycle(4, lr, **kw), 'flat': lambda lr, **kw: lambda o: o.fit(4, lr),
             'flat_cos': lambda lr, **kw: lambda o: o.fit_flat_cos(4, lr)}

@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('lr', [0.05,slice(0.01,0.1)], ids=str)
def test_from_the_start_it_is_sgd(schedule, lr):
    "The whole fit with SGD is fastai's own SGD under the same schedule at its own rate"
    switched = fitted(adamod, SwitchToSGD(lr=lr, pct=0., mom=0.9), fit=SCHEDULES[schedule](slice(1e-3,1e-2)))
    sgd = fitted(partial(SGD, mom=0.9, wd=0.01), fit=SCHEDULES[schedule](lr, moms=(0.9,0.9,0.9)))
    np.testing.assert_allclose(switched.record.lrs, sgd.record.lrs, rtol=1e-4)
    for a,b in zip(params(switched), params(sgd)): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

def test_before_the_switch_it_is_adamod():
    switched,plain = fitted(adamod, SwitchToSGD(lr=0.1, pct=0.5)),fitted(adamod)
    for i,(a,b) in enumerate(zip(switched.record.params, plain.record.params)): assert same(a, b) == (i < 50)
    assert switched.record.moms[50] == [0.9,0.9]

def test_the_momentum_is_carried_over():
    "The first step of SGD is fastai's equation, started from the sum that AdaMod's average stands for"
    avgs,grads = [],[]
    class Keep(Callback):
        order = 100
        def before_step(self): grads.append([p.grad.clone() for p in self.model.parameters()])
        def after_step(self):
            avgs.append([s.get('given_avg', s.get('grad_avg', torch.tensor(0.))).clone() for _,_,s,_ in self.opt.all_params()])
    learn = fitted(adamod, SwitchToSGD(lr=0.1, pct=0.5, mom=0.8), Keep(), fit=lambda o: o.fit(4, 0.01))
    decays = [s.get('do_wd', True) for _,_,s,_ in learn.opt.all_params()]
    assert sorted(set(decays)) == [False,True]
    for p0,p1,m,g,decay in zip(learn.record.params[49], learn.record.params[50], avgs[49], grads[50], decays):
        want = p0*(1-0.1*0.01*decay) - 0.1*(0.8*m/(1-0.8) + g)
        torch.testing.assert_close(p1, want, rtol=1e-5, atol=1e-6)

def test_frozen_parts_stay_frozen():
    learn = quiet(cancer_learner(adamod, cbs=SwitchToSGD(lr=0.1, pct=0.5)))
    learn.freeze()
    before = learn.model[0].weight.detach().clone()
    learn.fit_one_cycle(4, 0.01)
    assert torch.equal(learn.model[0].weight, before)

def test_the_fit_ends_with_the_optimizer_it_began_with():
    learn = fitted(adamod, SwitchToSGD(lr=0.1, pct=0.5))
    assert average_lr in learn.opt.cbs and not any('grad_avg' in s for _,_,s,_ in learn.opt.all_params())
    learn.fit_one_cycle(2, 0.01)
    assert len(learn.record.lrs) == 150

def test_after_an_interrupted_fit():
    class Stop(Callback):
        def after_step(self):
            if self.pct_train > 0.7: raise KeyboardInterrupt
    learn = quiet(cancer_learner(adamod, cbs=SwitchToSGD(lr=0.1, pct=0.5)))
    with pytest.raises(KeyboardInterrupt): learn.fit_one_cycle(4, 0.01, cbs=Stop())
    learn.fit_one_cycle(2, 0.01)
    assert average_lr in learn.opt.cbs

@pytest.mark.parametrize('epoch', range(3))
def test_resumes_on_either_side_of_the_switch(epoch, tmp_path):
    cbs = lambda: [SwitchToSGD(lr=0.1, pct=0.5),SaveModelCallback(every_epoch=True, with_opt=True)]
    whole = fitted(adamod, *cbs(), path=tmp_path, shuffle=False)
    resumed = quiet(cancer_learner(adamod, seed=1, cbs=cbs(), path=tmp_path, shuffle=False))
    resumed.load(f'model_{epoch}', with_opt=True)
    resumed.fit_one_cycle(4, 0.01, start_epoch=epoch+1)
    assert same(params(whole), params(resumed))

def test_inside_a_lookahead():
    learn = fitted(lambda p, **kw: Lookahead(adamod(p, **kw)), SwitchToSGD(lr=0.1, pct=0.5))
    assert learn.record.moms[-1] == [0.9,0.9]

def test_clipped_fraction_ends_at_the_switch():
    learn = fitted(adamod, SwitchToSGD(lr=0.1, pct=0.5), ClippedFraction(every=1))
    assert len(learn.clipped_fraction.fractions) == 50
    assert [np.isnan(o[-1]) for o in learn.recorder.values] == [False,False,True,True]

@pytest.mark.parametrize('bad', [dict(pct=-0.1),dict(pct=1.1),dict(mom=1.),dict(mom=-0.5)], ids=str)
def test_bad_values(bad):
    (k,v), = bad.items()
    with pytest.raises(ValueError, match=f'{k}: {v}'): SwitchToSGD(lr=0.1, **bad)

def test_a_torch_optimizer_is_an_error():
    learn = quiet(cancer_learner(partial(OptimWrapper, opt=torch.optim.AdamW), cbs=SwitchToSGD(lr=0.1)))
    with pytest.raises(ValueError, match='made of step functions.*OptimWrapper'): learn.fit(1)

# --- nothing of SGD is left, whatever ends the fit

def left(learn): return list(learn.opt.cbs),[{k:v for k,v in h.items() if k not in ('lr','wd')} for h in learn.opt.hypers]

class Stop(Callback):
    def after_step(self):
        if self.pct_train > 0.7: raise KeyboardInterrupt

ENDS = {'the end': (), 'Ctrl-C': (Stop,)}

@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('n', [1,2])
@pytest.mark.parametrize('opt_func', [adamod,AdaMod,Adam,partial(AdaMod, fused=True)], ids=['AdaMod','default','Adam','fused'])
@pytest.mark.slow
def test_sgd_is_gone_after_the_fit(opt_func, n, end):
    learn = quiet(cancer_learner(opt_func))
    learn.create_opt()
    before = left(learn)
    cbs = [SwitchToSGD(lr=0.1, pct=0.5) for _ in range(n)] + [o() for o in ENDS[end]]
    try: learn.fit(4, 0.01, cbs=cbs)
    except KeyboardInterrupt: assert end == 'Ctrl-C'
    assert left(learn) == before and not any('grad_avg' in s for s in state_of(learn.opt))
    learn.fit(1, 0.01)
    assert {frozenset(s)-{'do_wd','force_train'} for s in state_of(learn.opt)} == {frozenset(state_names(opt_func))}

def state_names(opt_func):
    learn = quiet(cancer_learner(opt_func))
    learn.fit(1, 0.01)
    return set(state_of(learn.opt)[0])-{'do_wd','force_train'}

def test_with_two_the_last_one_counts():
    two = fitted(adamod, SwitchToSGD(lr=0.3, pct=0.5), SwitchToSGD(lr=0.1, pct=0.5))
    one = fitted(adamod, SwitchToSGD(lr=0.1, pct=0.5))
    assert two.record.lrs == one.record.lrs and same(params(two), params(one))

def test_ctrl_c_then_removed():
    learn = quiet(cancer_learner(adamod, cbs=SwitchToSGD(lr=0.1, pct=0.5)))
    with pytest.raises(KeyboardInterrupt): learn.fit_one_cycle(4, 0.01, cbs=Stop())
    learn.remove_cb(SwitchToSGD)
    learn.opt.zero_grad()      # an interrupt leaves the gradients of its batch
    plain = quiet(cancer_learner(adamod))
    plain.model.load_state_dict(learn.model.state_dict())
    for o in learn,plain:
        o.dls.train.rng.seed(1)
        o.fit_one_cycle(1, 0.01)
    assert same(params(learn), params(plain))

def test_a_checkpoint_after_the_switch_holds_the_hypers_of_before(tmp_path):
    switch,save = SwitchToSGD(lr=0.1, pct=0.5, mom=0.95),SaveModelCallback(every_epoch=True, with_opt=True)
    learn = fitted(partial(adamod, mom=0.8), switch, save, path=tmp_path, fit=lambda o: o.fit(4, 0.01))
    other = quiet(cancer_learner(adamod, path=tmp_path))
    other.load('model_3')
    assert [(h['mom'],h['lr']) for h in other.opt.hypers] == [(0.8,0.01)]*2

def test_the_best_model_from_before_the_switch_comes_back(tmp_path):
    best = SaveModelCallback(monitor='train_loss', comp=np.greater, with_opt=True)   # "best" is the first epoch
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn = fitted(adamod, SwitchToSGD(lr=0.1, pct=0.5), best, path=tmp_path)
    assert {s['step'] for s in state_of(learn.opt)} == {25} and all('lr_avg' in s for s in state_of(learn.opt))

@pytest.mark.parametrize('lr', [0,0.,-1.,np.nan,np.inf,[0.1,0.],[0.1]*3,'0.1',slice(0.1,0.)], ids=str)
def test_a_rate_that_will_not_do_is_told_before_training(lr):
    learn = quiet(cancer_learner(adamod))
    before = params(learn)
    with pytest.raises(ValueError, match='lr.*SwitchToSGD'): learn.fit(4, 0.01, cbs=SwitchToSGD(lr=lr))
    assert same(before, params(learn)) and learn.opt.hypers[0]['lr'] == 0.01

# --- beside other callbacks, twice, and in a fit that goes on

def rates(*cbs, fit=lambda o: o.fit_one_cycle(4, 0.01), before=lambda o: None, **kwargs):
    return fitted(adamod, *cbs, fit=fit, setup=before, **kwargs).record.lrs

@pytest.mark.parametrize('name', ['wd','beta3'])
def test_another_schedule_changes_no_rate(name):
    other = ParamScheduler({name: SchedLin(0.01, 0.02) if name == 'wd' else SchedLin(0.9, 0.95)})
    assert rates(fit=lambda o: o.fit_one_cycle(4, 0.01, cbs=[SwitchToSGD(lr=0.1), other])) == rates(SwitchToSGD(lr=0.1))

def test_a_schedule_of_the_learner_counts_after_another_fit():
    constant = ParamScheduler({'lr': SchedNo(0.01, 0.01)})
    fit = lambda o: o.fit(4, cbs=SwitchToSGD(lr=0.1, pct=0.5))
    again = rates(constant, fit=fit, before=lambda o: o.fit_one_cycle(1, 0.01))
    assert max(map(max, again)) == pytest.approx(0.1)

@pytest.mark.parametrize('end', ['fit','Ctrl-C'])
def test_a_fit_that_goes_on_is_a_new_one(end):
    def before(learn):
        if end == 'fit': learn.fit_one_cycle(2, 1e-3)
        else:
            with pytest.raises(KeyboardInterrupt): learn.fit_one_cycle(2, 1e-3, cbs=Stop())
    def goes_on(learn):
        learn.record.__init__()
        learn.fit_one_cycle(4, 0.1, start_epoch=2)
    assert rates(SwitchToSGD(lr=0.1), fit=goes_on, before=before) == rates(SwitchToSGD(lr=0.1), fit=goes_on)

def test_one_of_the_fit_then_that_of_the_learner():
    learn = fitted(adamod, SwitchToSGD(lr=0.1, pct=0.5), fit=lambda o: o.fit(1, 0.01, cbs=SwitchToSGD(lr=0.2, pct=0.)))
    assert learn.record.lrs[-1][0] == pytest.approx(0.2)
    learn.fit(1, 0.01)
    assert learn.record.lrs[-1][0] == pytest.approx(0.1)

def test_switched_off_for_a_fit():
    def fit(learn):
        learn.switch_to_sgd.run = False
        learn.fit(1, 0.01)
        learn.fit(1, 0.01)
    off = rates(SwitchToSGD(lr=0.1, pct=0.), fit=fit)
    assert off[0] == [0.01]*len(off[0]) and off[-1] == pytest.approx([0.1]*len(off[0]))

def test_a_group_that_stays_where_it_is():
    at = rates(SwitchToSGD(lr=0.1, pct=0.), fit=lambda o: o.fit(1, [0.,0.01]))
    assert at[-1] == [0., pytest.approx(0.1)]

@pytest.mark.parametrize('opt_func', [Adam,RMSProp,partial(RMSProp, mom=0.9),partial(RMSProp, mom=0.5)], ids=['Adam','none','0.9','0.5'])
def test_the_momentum_of_a_sum_is_not_summed_again(opt_func):
    "The first step of SGD has the momentum of what was before: an average m as m/(1-mom), a sum as it is"
    p = torch.nn.Parameter(torch.zeros(3))
    grads = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    opt = opt_func([p], lr=0.)
    for g in grads:
        p.grad = g.clone()
        opt.step()
    (_,_,state,hyper),_sum = opt.all_params()[0],torch.zeros(3, dtype=torch.float64)
    before = hyper.get('mom', 0.)
    for g in grads.double(): _sum = before*_sum + g*(1-before)
    switch = SwitchToSGD(lr=0.1)
    is_sum = average_grad in opt.cbs
    after = switch._sgd_state(state, [], 1-hyper['mom'] if is_sum else 1).get('given_avg')
    assert after is None if before==0 else torch.allclose(after.double(), _sum/(1-0.9), atol=1e-5)

def test_small_steps_in_bfloat16_are_not_lost_after_the_switch():
    "SGD's steps of one gradient move each weight as far as in float32, on average, and none stays where it is"
    c = torch.linspace(0.5, 1, 1000).bfloat16()
    p,state = torch.nn.Parameter(torch.ones(1000).bfloat16()),{}
    for _ in range(200):
        p.grad = c.clone()
        _run_rounded([_sgd_average,_sgd_step], p, state, dict(lr=1e-3, mom=0.))
    moved,want = 1-p.detach().float(),0.2*c.float()
    assert (moved-want).mean().abs() < 0.005 and (moved-want).abs().max() < 0.1
