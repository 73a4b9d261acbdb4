"`opt_func=AdaMod` is all one has to write: the memory that a Learner gives each fit, and what is left when it ends"
import copy, math, pickle, warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader as TorchLoader
from fastai.basics import Adam, Callback, DataLoaders, Learner, Lookahead, OptimWrapper, SGD, load_learner
from fastai.callback.all import (CancelFitException, GradientAccumulation, MixedPrecision, ParamScheduler, SaveModelCallback, SchedLin,
                                 ShortEpochCallback)

from adamod_fastai.all import *
from adamod_fastai.optimizer import average_lr, rescale_lr_avg
from learners import cancer_learner, ordered_learner, quiet, same, state_of, used, values
from reference import Rule

class Record(Callback):
    "The hypers of the first group at every step, a list for each fit"
    order = 100
    def __init__(self): self.fits = []
    def before_train(self):
        if self.epoch == 0 or not self.fits: self.fits.append([])
    def after_step(self): self.fits[-1].append(dict(used(self.opt)[0]))

class Stop(Callback):
    "Ctrl-C after step `at`"
    order = 0
    def __init__(self, at=30): self.at = at
    def before_fit(self): self.n = 0
    def after_step(self):
        self.n += 1
        if self.n == self.at: raise KeyboardInterrupt

def learner(opt_func=AdaMod, *cbs, **kwargs): return quiet(cancer_learner(opt_func, cbs=[Record(),*cbs], **kwargs))
def memories(learn): return [sorted({round(1/(1-h['beta3']), 6) for h in o}) for o in learn.record.fits if o]
def follows(learn): return {h.get('follow_lr', False) for o in learn.record.fits for h in o}
def hypers(learn): return copy.deepcopy([dict(h) for h in learn.opt.hypers])
def interrupt(learn, *cbs, at=30, fit=lambda o,cbs: o.fit(4, 0.01, cbs=cbs)):
    with pytest.raises(KeyboardInterrupt): fit(learn, [Stop(at),*cbs])

# --- what a fit of 100 steps gives, however the optimizer is made

def own_function(params, **kwargs): return AdaMod(params, wd=0., **kwargs)

MADE = {'AdaMod': AdaMod, 'DiffMod': DiffMod, 'DeepMemory': DeepMemory, 'partial': partial(AdaMod, mom=0.8, eps=1e-6),
        'lambda': lambda p, **kw: AdaMod(p, **kw), 'a function': own_function, 'Lookahead': lambda p, **kw: Lookahead(AdaMod(p, **kw)),
        'fused': partial(AdaMod, fused=True), 'fused DiffMod': partial(DiffMod, fused=True)}

@pytest.mark.parametrize('opt_func', MADE.values(), ids=MADE)
def test_15_percent_of_the_fit(opt_func):
    learn = learner(opt_func)
    learn.fit_one_cycle(4, 0.01)
    assert memories(learn) == [[15.]] and follows(learn) == {True}
    assert learn.validate()[1] > 0.5

@pytest.mark.parametrize('wd_bn_bias', [False,True])
def test_in_every_group(wd_bn_bias):
    learn,seen = learner(wd_bn_bias=wd_bn_bias),[]
    class All(Callback):
        def after_step(self): seen.append([h['beta3'] for h in used(self.opt)])
    learn.fit(4, slice(1e-3,1e-2), cbs=All())
    np.testing.assert_allclose(seen, [[1-1/15]*2]*100)

def test_the_memory_is_the_one_the_equations_give():
    "The default against the float64 rule averaging over 15 of 100 batches, without the learning rate"
    learn,rules = learner(),{}
    class Equations(Callback):
        order = 100
        def before_step(self): self.todo = [(p,p.grad.numpy().copy(),dict(h)) for p,_,_,h in self.opt.all_params(with_grad=True)]
        def after_step(self):
            for p,g,h in self.todo:
                rule = rules.setdefault(p, Rule('AdaMod', np.zeros(p.shape), beta3=1-1/15, follow_lr=True))
                rule.step(g, h['lr'], h['mom'])
    learn.fit_one_cycle(4, 0.01, cbs=Equations())
    for p,rule in rules.items(): np.testing.assert_allclose(learn.opt.state[p]['lr_avg'], rule.s, rtol=1e-4)

FITS = {'fit': (lambda o: o.fit(4, 0.01), [15.]), 'fit_one_cycle': (lambda o: o.fit_one_cycle(2, 0.01), [7.5]),
        'fit_flat_cos': (lambda o: o.fit_flat_cos(8, 0.01), [30.]), 'fit_sgdr': (lambda o: o.fit_sgdr(2, 1, 0.01), [11.25]),
        'accumulation': (lambda o: o.fit(4, 0.01, cbs=GradientAccumulation(48)), [5.]),
        'start_epoch': (lambda o: o.fit(4, 0.01, start_epoch=2), [15.]),
        'lr_find': (lambda o: o.lr_find(num_it=40, show_plot=False), [6.]),
        'short epochs': (lambda o: o.fit(4, 0.01, cbs=ShortEpochCallback(0.2)), [3.6])}

@pytest.mark.parametrize('fit,want', FITS.values(), ids=FITS)
def test_of_each_kind_of_fit(fit, want):
    learn = learner()
    fit(learn)
    assert memories(learn) == [want] and follows(learn) == {True}

def test_each_fit_has_its_own():
    learn = learner()
    learn.fit_one_cycle(4, 0.01)
    learn.fit_one_cycle(2, 0.01)
    learn.fine_tune(3, 0.01, freeze_epochs=1)
    assert memories(learn) == [[15.],[7.5],[3.75],[11.25]]

def test_one_epoch_of_one_batch():
    learn = learner(bs=400)
    learn.fit(1, 0.01)
    assert memories(learn) == [[2.]]     # averaging over one step it would be Adam

# --- who wins

@pytest.mark.parametrize('kwargs', [dict(beta3=0.9), dict(len_memory=10)], ids=str)
def test_what_is_given_is_used_as_published(kwargs):
    learn = learner(partial(AdaMod, **kwargs))
    learn.fit_one_cycle(4, 0.01)
    assert memories(learn) == [[10.]] and follows(learn) == {False}

def test_outside_a_learner_it_is_the_published_memory():
    p = torch.ones(2)
    opt = AdaMod([p], lr=0.1)
    ref = Rule('AdaMod', p.numpy(), beta3=0.999)
    for i in range(20):
        p.grad = torch.tensor([0.1,-0.2])*(1+i)
        opt.set_hyper('lr', 0.1/(1+i))
        opt.step()
        ref.step(p.grad.numpy(), 0.1/(1+i))
    np.testing.assert_allclose(opt.state[p]['lr_avg'], ref.s, rtol=1e-5)
    assert DeepMemory([p], lr=0.1).hypers[0]['beta3'] == len2beta3(200)

def test_set_hyper_wins():
    learn = learner()
    learn.create_opt()
    learn.opt.set_hyper('beta3', [0.9,0.8])
    learn.fit(2, 0.01)
    assert memories(learn) == [[10.]] and follows(learn) == {False}
    assert [h['beta3'] for h in learn.opt.hypers] == [0.9,0.8]

def test_what_is_set_during_a_fit_stays():
    class Set(Callback):
        def after_step(self):
            if self.train_iter == 10: self.opt.set_hyper('beta3', [0.9,0.8])
    learn = learner()
    learn.fit(1, 0.01, cbs=Set())
    assert [h['beta3'] for h in learn.opt.hypers] == [0.9,0.8] and {h['fit_memory'] for h in learn.opt.hypers} == {False}
    learn.fit(1, 0.01)
    assert memories(learn) == [[3.75,10.],[10.]]

def test_what_is_set_in_one_group_during_a_fit_is_used_in_that_alone():
    class Set(Callback):
        def after_step(self):
            if self.train_iter == 10: self.opt.hypers[0]['beta3'] = 0.5
    seen = []
    class Seen(Callback):
        def after_step(self): seen.append([h['beta3'] for h in used(self.opt)])
    learn = quiet(cancer_learner(AdaMod))
    learn.fit(1, 0.01, cbs=[Set(),Seen()])
    ours,other = np.array(seen).T
    assert (ours == 0.5).tolist() == [False]*11 + [True]*14 and set(other) == {len2beta3(3.75)}

@pytest.mark.parametrize('cbs', [[],[MemoryLength(0.3)]], ids=['default','MemoryLength'])
def test_a_schedule_of_beta3_wins(cbs):
    learn = learner(AdaMod, *cbs)
    learn.fit(2, 0.01, cbs=ParamScheduler({'beta3': SchedLin(0.5, 0.9)}))
    np.testing.assert_allclose([h['beta3'] for h in learn.record.fits[0]], 0.5+0.4*np.arange(50)/50, rtol=1e-6)
    assert follows(learn) == {False}

@pytest.mark.parametrize('where', ['Learner','fit','class'])
def test_a_memory_length_of_ones_own_wins(where):
    learn = learner(AdaMod, *([MemoryLength(0.5)] if where == 'Learner' else []))
    learn.fit(4, 0.01, cbs=dict(Learner=None, fit=MemoryLength(epochs=2), **{'class': MemoryLength})[where])
    assert memories(learn) == [[dict(Learner=50., fit=50., **{'class': 15.})[where]]] and follows(learn) == {True}

def test_memory_length_with_a_given_memory_follows_only_if_told():
    for follow in None,False,True:
        learn = learner(partial(AdaMod, len_memory=7, follow_lr=follow), MemoryLength())
        learn.fit(4, 0.01)
        assert memories(learn) == [[15.]] and follows(learn) == {bool(follow)} and learn.opt.hypers[0]['beta3'] == len2beta3(7)

def test_follow_lr_false_keeps_the_length():
    learn = learner(partial(AdaMod, follow_lr=False))
    learn.fit_one_cycle(4, 0.01)
    assert memories(learn) == [[15.]] and follows(learn) == {False} and not any('last_lr' in s for s in state_of(learn.opt))

# --- other optimizers are not touched

@pytest.mark.parametrize('opt_func', [Adam, partial(OptimWrapper, opt=torch.optim.AdamW), DiffGrad], ids=['Adam','AdamW','DiffGrad'])
def test_other_optimizers_are_as_fastai_has_them(opt_func):
    learn = quiet(cancer_learner(opt_func))
    before,seen = list(learn.cbs),[]
    class Look(Callback):
        def after_step(self): seen.append([o for o in self.learn.cbs if o is not self])
    learn.fit_one_cycle(1, 0.01, cbs=Look())
    assert list(learn.cbs) == before and {type(o).__module__.split('.')[0] for o in before} == {'fastai'}
    assert {type(o).__name__ for o in seen[0]}-{type(o).__name__ for o in before} == {'ParamScheduler'}

@pytest.mark.parametrize('before', [[],[AdaMod],[AdaMod,partial(AdaMod, len_memory=5)]], ids=['new','AdaMod','len_memory'])
def test_nothing_of_it_stays_in_the_export_of_adam(before, tmp_path):
    learn = quiet(cancer_learner(Adam, path=tmp_path))
    for opt_func in [*before,Adam]:
        learn.opt_func = opt_func
        learn.create_opt()
        learn.fit(1, 0.01)
    learn.export('adam.pkl')
    assert b'adamod_fastai' not in (tmp_path/'adam.pkl').read_bytes()

def defaults(learn): return [o for o in learn.cbs if isinstance(o, DefaultMemoryLength)]

def test_the_default_is_in_the_learner_once_for_all_fits():
    learn = learner()
    assert not defaults(learn)
    learn.fit(1, 0.01, cbs=MemoryLength(0.5))
    learn.create_opt()
    for _ in range(2): learn.fit(4, 0.01)
    assert memories(learn) == [[12.5],[15.],[15.]] and len(defaults(learn)) == 1
    learn.opt_func = partial(AdaMod, len_memory=9)
    learn.create_opt()
    assert not defaults(learn)

def test_an_exported_learner_trains_with_the_default(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit(1, 0.01)
    learn.export('adamod.pkl')
    again = quiet(load_learner(tmp_path/'adamod.pkl', pickle_module=pickle))
    again.dls = learn.dls
    again.fit(4, 0.01)
    assert memories(again)[-1] == [15.] and len(defaults(again)) == 1

# --- loading, in the Learner it was saved by

SCHEDULES = {'fit_one_cycle': lambda o: o.fit_one_cycle(1, 0.01), 'fit_flat_cos': lambda o: o.fit_flat_cos(1, 0.01),
             'fit_sgdr': lambda o: o.fit_sgdr(1, 1, 0.01), 'fine_tune': lambda o: o.fine_tune(1, 0.01), 'fit': lambda o: o.fit(1, 0.01)}

@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DiffGrad,DeepMemory,partial(AdaMod, len_memory=9), partial(AdaMod, fused=True)],
                         ids=['AdaMod','DiffMod','DiffGrad','DeepMemory','len_memory','fused'])
@pytest.mark.slow
def test_the_same_learner_loads_what_it_saved(opt_func, name, tmp_path):
    learn = quiet(cancer_learner(opt_func, path=tmp_path))
    SCHEDULES[name](learn)
    learn.save('q')
    want = state_of(learn.opt),hypers(learn),values(learn.model)
    SCHEDULES[name](learn)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.load('q')
    assert same((state_of(learn.opt), hypers(learn), values(learn.model)), want)
    SCHEDULES[name](learn)

@pytest.mark.parametrize('opt_func', [AdaMod,DiffGrad,partial(AdaMod, follow_lr=True, len_memory=9),
                                      lambda p, **kw: Lookahead(AdaMod(p, **kw))], ids=['AdaMod','DiffGrad','follow_lr','Lookahead'])
def test_only_python_numbers_are_kept(opt_func, tmp_path):
    learn = quiet(cancer_learner(opt_func, path=tmp_path))
    learn.fit_one_cycle(1, slice(1e-3,1e-2))
    kept = [v for o in (*learn.opt.hypers,*state_of(learn.opt)) for v in o.values() if not torch.is_tensor(v)]
    assert {type(o) for o in kept} <= {float,int,bool}
    learn.save('q')
    if isinstance(learn.opt, Lookahead): return    # its own state is a fastcore `L`
    torch.load(tmp_path/'models'/'q.pth', weights_only=True)
    torch.save(learn.opt.state_dict(), tmp_path/'opt.pth')
    learn.opt.load_state_dict(torch.load(tmp_path/'opt.pth', weights_only=True))

def test_a_checkpoint_with_numpy_numbers_is_loaded_as_python_numbers():
    p = torch.ones(2); p.grad = torch.ones(2)
    opt = AdaMod([p], lr=0.1, follow_lr=True, len_memory=5)
    opt.step()
    sd = opt.state_dict()
    sd['hypers'][0]['lr'] = np.float64(0.5)
    sd['state'][0]['last_lr'] = np.float64(0.5)
    opt.load_state_dict(sd)
    assert type(opt.hypers[0]['lr']) is type(opt.state[p]['last_lr']) is float

def test_a_checkpoint_from_before_the_default():
    p = torch.ones(2); p.grad = torch.ones(2)
    opt = AdaMod([p], lr=0.1)
    opt.step()
    sd = opt.state_dict()
    for h in sd['hypers'][:-1]: del h['fit_memory'],h['follow_lr']
    opt.load_state_dict(sd)
    assert opt.hypers[0]['beta3'] == 0.999 and not opt.hypers[0]['fit_memory']

@pytest.mark.parametrize('opt_func', [AdaMod,partial(AdaMod, len_memory=9)], ids=['default','len_memory'])
def test_the_best_model_of_a_one_cycle_fit_comes_back(opt_func, tmp_path):
    learn = learner(opt_func, path=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit_one_cycle(3, 0.01, cbs=SaveModelCallback(monitor='train_loss', comp=np.greater, with_opt=True))
    assert {s['step'] for s in state_of(learn.opt)} == {25}     # "best" is the first here

# --- nothing leaks: what the user set comes back, and is what checkpoints hold

def hypers_of(opt_func):
    learn = quiet(cancer_learner(opt_func))
    learn.create_opt()
    return hypers(learn)

KEPT = 'beta3','follow_lr','fit_memory'
def kept(hs): return [{k:h.get(k) for k in KEPT} for h in hs]

OWN = {'default': (AdaMod,[]), 'MemoryLength': (AdaMod,[MemoryLength(0.5)]), 'two': (AdaMod,[MemoryLength(0.5),MemoryLength(0.1)]),
       'len_memory and MemoryLength': (partial(AdaMod, len_memory=9),[MemoryLength(0.5)]),
       'fused': (partial(AdaMod, fused=True),[MemoryLength(0.5)]), 'Lookahead': (lambda p, **kw: Lookahead(AdaMod(p, **kw)),[])}

@pytest.fixture(params=OWN)
def case(request):
    opt_func,cbs = OWN[request.param]
    return opt_func,copy.deepcopy(cbs)

class Die(Exception): pass

def cancelled(learn, cbs):
    class Cancel(Callback):
        def after_step(self): raise CancelFitException
    learn.fit(4, 0.01, cbs=[Cancel(),*cbs])
def failed(learn, cbs):
    class Fail(Callback):
        def after_step(self): raise Die('out of memory')
    with pytest.raises(Die): learn.fit(4, 0.01, cbs=[Fail(),*cbs])
def refused(learn, cbs):
    with pytest.raises(Exception): learn.fit_one_cycle(4, -1., cbs=cbs)

ENDS = {'the end': lambda o,cbs: o.fit_one_cycle(2, 0.01, cbs=cbs), 'Ctrl-C': lambda o,cbs: interrupt(o, *cbs), 'CancelFit': cancelled,
        'an error': failed, 'a bad lr': refused, 'lr_find': lambda o,cbs: (o.add_cbs(cbs), o.lr_find(num_it=20, show_plot=False)),
        'Ctrl-C in one cycle': lambda o,cbs: interrupt(o, fit=lambda o,c: o.fit_one_cycle(4, 0.01, cbs=[*c,*cbs]))}

@pytest.mark.parametrize('end', ENDS.values(), ids=ENDS)
def test_what_the_user_set_comes_back(case, end):
    opt_func,cbs = case
    learn = learner(opt_func)
    end(learn, cbs)
    assert kept(hypers(learn)) == kept(hypers_of(opt_func))

def test_a_checkpoint_of_the_middle_of_a_fit_holds_it(case, tmp_path):
    opt_func,cbs = case
    learn = learner(opt_func, path=tmp_path)
    learn.fit_one_cycle(4, 0.01, cbs=[*cbs,SaveModelCallback(every_epoch=True, with_opt=True)])
    want = kept(hypers_of(opt_func))
    assert kept(hypers(learn)) == want
    learn.load('model_1')
    assert kept(hypers(learn)) == want
    saved = torch.load(tmp_path/'models'/'model_1.pth', weights_only=False)['opt']
    assert kept(saved['hypers'][:2]) == want
    fresh = learner(opt_func, path=tmp_path, seed=1)
    fresh.load('model_1')
    fresh.fit_one_cycle(4, 0.01, start_epoch=2, cbs=cbs)
    assert memories(fresh) == memories(learn)

def test_loading_in_the_middle_of_a_fit_keeps_its_memory(tmp_path):
    learn = learner(AdaMod, path=tmp_path)
    learn.fit(1, 0.01)
    learn.save('q')
    class LoadAgain(Callback):       # a Learner's `load` is what `Load` would stand for
        def after_epoch(self): self.learn.load('q')
    learn.fit(4, 0.01, cbs=LoadAgain())
    assert memories(learn) == [[3.75],[15.]] and learn.opt.hypers[0]['beta3'] == 0.999
    assert {s['step'] for s in state_of(learn.opt)} == {25}

def test_ctrl_c_then_another_fit(case):
    opt_func,cbs = case
    learn = learner(opt_func, *cbs)
    interrupt(learn)
    first = memories(learn)
    learn.fit(4, 0.01)
    assert memories(learn) == first*2

def test_ctrl_c_then_without_the_callback():
    learn = learner(partial(AdaMod, len_memory=9), MemoryLength(0.5))
    interrupt(learn)
    learn.remove_cb(MemoryLength)
    learn.fit(4, 0.01)
    assert memories(learn) == [[50.],[9.]]

OTHERS = {'its own memory': (partial(AdaMod, len_memory=9), [9.]), 'the default': (AdaMod, [7.5]),
          'Adam': (Adam, None), 'DiffGrad': (DiffGrad, None)}

@pytest.mark.parametrize('opt_func,want', OTHERS.values(), ids=OTHERS)
def test_ctrl_c_then_another_optimizer(opt_func, want):
    learn = learner()
    interrupt(learn)
    learn.opt_func = opt_func
    learn.create_opt()
    learn.fit(2, 0.01)
    if want: assert memories(learn)[-1] == want
    else: assert 'beta3' not in learn.record.fits[-1][0]
    assert hypers(learn)[0].keys() == hypers_of(opt_func)[0].keys()

def test_ctrl_c_then_other_groups():
    learn = learner()
    interrupt(learn)
    learn.splitter = lambda m: [list(m[0].parameters()), list(m[1].parameters()), list(m[2:].parameters())]
    learn.create_opt()
    learn.fit(2, 0.01)
    assert memories(learn)[-1] == [7.5] and len(learn.opt.hypers) == 3

# --- an interrupt leaves nothing to what comes after it, whatever that is

BEFORE = {'nothing': list, 'MemoryLength': lambda: [MemoryLength(0.5)],
          'ClippedFraction': lambda: [ClippedFraction(every=1)], 'RateHistogram': lambda: [RateHistogram(every=1)],
          'ParamScheduler': lambda: [ParamScheduler({'beta3': SchedLin(0.5, 0.9)})]}
AFTER = {**BEFORE, 'Adam': Adam, 'DiffGrad': DiffGrad, 'fused': partial(AdaMod, fused=True)}

@pytest.mark.slow
@pytest.mark.parametrize('before', BEFORE)
@pytest.mark.parametrize('after', AFTER)
@pytest.mark.parametrize('added', [False,True], ids=['to the fit','to the Learner'])
def test_ctrl_c_then_something_else(before, after, added):
    "What follows is as in a new Learner with the same weights and state"
    learn,fresh = learner(shuffle=False),learner(shuffle=False)
    cbs = BEFORE[before]()
    if added: learn.add_cbs(cbs)
    interrupt(learn, *([] if added else cbs), at=20, fit=lambda o,c: o.fit(1, 0.01, cbs=c))
    if added: learn.remove_cbs(cbs)
    fresh.create_opt()
    fresh.model.load_state_dict(learn.model.state_dict())
    fresh.opt.load_state_dict(copy.deepcopy(learn.opt.state_dict()))
    learn.opt.zero_grad()      # an interrupt leaves the gradients of its batch
    learn.record.fits.clear()
    for o in learn,fresh:
        if after not in BEFORE:
            o.opt_func = AFTER[after]
            o.create_opt()
        o.fit_one_cycle(1, 0.01, cbs=BEFORE[after]() if after in BEFORE else None)
    assert learn.record.fits == fresh.record.fits and len(learn.record.fits[0]) == 25
    assert list(learn.recorder.metric_names) == list(fresh.recorder.metric_names)
    assert same((values(learn.model), state_of(learn.opt), hypers(learn)), (values(fresh.model), state_of(fresh.opt), hypers(fresh)))

# --- loaders

def loaders(**kwargs):
    learn = cancer_learner(AdaMod)
    return DataLoaders(*(TorchLoader(o.dataset, batch_size=16, **kwargs) for o in learn.dls))

def test_a_plain_pytorch_loader():
    for kwargs,want in (dict(),8),(dict(drop_last=True),8):
        learn = learner()
        learn.dls = loaders(**kwargs)
        learn.fit(1, 0.01, cbs=GradientAccumulation(48))
        assert len(learn.record.fits[0]) == want and memories(learn) == [[2.]]

class NoLength:
    "A loader that does not say how long it is"
    def __init__(self, dl): self.dl = dl
    def __iter__(self): return iter(self.dl)
    device = torch.device('cpu')

class Endless(Learner):
    def all_batches(self):
        self.n_iter = 25
        for o in enumerate(self.dl): self.one_batch(*o)

def test_a_loader_without_a_length():
    learn = cancer_learner(AdaMod)
    dls = DataLoaders(NoLength(learn.dls.train), learn.dls.valid)
    learn = quiet(Endless(dls, learn.model, learn.loss_func, opt_func=AdaMod, cbs=Record()))
    learn.fit(2, 0.01)
    assert memories(learn) == [[7.5]] and follows(learn) == {True}

def test_fit_takes_its_arguments_by_position_too():
    learn = learner()
    learn.fit(4, 0.01, 0.02, None, True, 2)
    assert memories(learn) == [[15.]] and len(learn.record.fits[0]) == 50 and learn.opt.hypers[0]['wd'] == 0.02
    first = learn.opt
    learn.fit(1, 0.01, reset_opt=True)
    assert learn.opt is not first
