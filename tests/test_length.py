"How long a fit is: the default looks at what is there, whoever replaces, wraps or steps, and says so where it cannot"
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from fastcore.basics import GetAttr
from fastai.basics import Adam, Callback, Learner, Lookahead, Optimizer
from fastai.learner import SkipToEpoch
from fastai.callback.all import CancelStepException, CancelTrainException, EarlyStoppingCallback, GradientAccumulation
# the line above also patches fit_one_cycle

from adamod_fastai.all import *
from learners import cancer_learner, quiet, used

class Lengths(Callback):
    "The averaging length of each step, a list for each epoch"
    order = 1000
    def before_train(self): self.seen = getattr(self, 'seen', [])+[[]]
    def after_step(self): self.seen[-1].append(round(1/(1-used(self.opt)[0]['beta3']), 6))

def learner(opt_func=AdaMod, *cbs, **kwargs): return quiet(cancer_learner(opt_func, cbs=[Lengths(),*cbs], **kwargs))
def lengths(learn): return sorted({o for epoch in learn.lengths.seen for o in epoch})

def told(f):
    "The warnings of `f` about a length that nobody gave"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f()
    return [str(o.message) for o in w if 'was not told how long' in str(o.message)]

# --- whoever replaces `fit`

class OwnFit(Learner):
    "A body of its own, as some libraries have it"
    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        if start_epoch: cbs = [*(cbs or []),SkipToEpoch(start_epoch)]
        with self.added_cbs(cbs):
            if reset_opt or not self.opt: self.create_opt()
            self.opt.set_hypers(lr=lr)
            self.n_epoch = n_epoch
            self._with_events(self._do_fit, 'fit', Exception, self._end_cleanup)

def test_a_learner_with_a_fit_of_its_own():
    learn = learner()
    learn.__class__ = OwnFit
    learn.fit(4, 0.01)
    assert lengths(learn) == [15.]

def test_a_fit_that_was_replaced_and_put_back(monkeypatch):
    "As a logger does: it keeps the `fit` that it has seen"
    seen = Learner.fit
    monkeypatch.setattr(Learner, 'fit', lambda self, *args, **kwargs: seen(self, *args, **kwargs))
    learn = learner()
    learn.fit_one_cycle(4, 0.01)
    monkeypatch.setattr(Learner, 'fit', seen)
    learn.fit_one_cycle(2, 0.01)
    assert lengths(learn) == [7.5,15.]

def test_only_create_opt_of_a_learner_is_wrapped():
    "As README says"
    ours = {k for k,v in vars(Learner).items() if 'adamod_fastai' in getattr(getattr(v, '__code__', None), 'co_filename', '')}
    assert ours == {'create_opt'}

# --- whoever wraps the optimizer

class SAM(Optimizer, GetAttr):
    "The second of two steps, by an optimizer under another name than `opt`"
    _default = 'base_optimizer'
    def __init__(self, base_optimizer): self.base_optimizer = base_optimizer
    def step(self, closure=None): self.base_optimizer.step()

class Plain(GetAttr):
    "A wrapper that is no fastai optimizer"
    _default = 'inner'
    def __init__(self, inner): self.inner = inner
    def step(self, closure=None): self.inner.step()

WRAPPED = {'SAM': SAM, 'no optimizer': Plain,
           'SAM in Lookahead': lambda o: Lookahead(SAM(o)), 'Lookahead in SAM': lambda o: SAM(Lookahead(o))}

@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize('cbs,want', [([],15.), ([MemoryLength(0.3)],30.)], ids=['default','MemoryLength'])
def test_a_wrapper_under_any_name(wrap, cbs, want):
    learn = learner(lambda p, **kw: wrap(AdaMod(p, **kw)), *cbs)
    assert told(lambda: learn.fit(4, 0.01)) == [] and lengths(learn) == [want]

class Hidden(GetAttr):
    "A wrapper whose optimizer cannot be found"
    def __init__(self, inner): self.inners = [inner]
    def __getattr__(self, k): return getattr(self.__dict__['inners'][0], k)

def test_a_wrapper_that_hides_it_is_told():
    learn = learner(lambda p, **kw: Hidden(AdaMod(p, **kw)))
    msg, = told(lambda: learn.fit(2, 0.01))
    assert '1000 steps' in msg and 'len_memory' in msg

# --- whoever steps

class OwnStep(Callback):
    "Steps the optimizer itself, as a scaler of one's own would"
    order = 20
    def before_step(self):
        self.opt.step()
        raise CancelStepException()

class OwnLoop(Learner):
    "Steps without any event"
    def _do_grad_opt(self):
        self.loss_grad.backward()
        self.opt.step()
        self.opt.zero_grad()

def test_a_callback_that_steps_the_optimizer_itself():
    learn = learner(AdaMod, OwnStep())
    assert told(lambda: learn.fit(4, 0.01)) == [] and lengths(learn) == [15.]
    learn.fit(4, 0.01, cbs=GradientAccumulation(48))
    assert learn.lengths.seen[-1][-1] == 5.

@pytest.mark.parametrize('opt_func,n', [(AdaMod,1), (partial(AdaMod, len_memory=15),0), (Adam,0)], ids=['AdaMod','len_memory','Adam'])
def test_a_learner_that_steps_without_an_event_is_told_once(opt_func, n):
    learn = learner(opt_func)
    learn.remove_cb(Lengths)
    learn.__class__ = OwnLoop
    assert len(told(lambda: (learn.fit(1, 0.01), learn.fit(1, 0.01)))) == n

@pytest.mark.parametrize('cbs,n', [([],1), ([MemoryLength()],0)], ids=['alone','MemoryLength'])
def test_an_optimizer_that_was_assigned_is_told(cbs, n):
    learn = learner(AdaMod, *cbs)
    learn.opt = AdaMod(learn.splitter(learn.model), lr=0.01)
    assert len(told(lambda: learn.fit(4, 0.01))) == n
    assert lengths(learn) == ([1000.] if n else [15.])

@pytest.mark.parametrize('fused', [False,True], ids=['eager','fused'])
def test_a_loop_of_ones_own_is_told_at_the_tenth_step(fused):
    p = torch.ones(2)
    p.grad = torch.ones(2)
    opt = AdaMod([p], lr=0.1, fused=fused)
    assert [len(told(opt.step)) for _ in range(12)] == [0]*9+[1]+[0]*2
    opt = AdaMod([p], lr=0.1, len_memory=3, fused=fused)
    assert [len(told(opt.step)) for _ in range(12)] == [0]*12

def test_a_step_that_is_cancelled_leaves_nothing():
    class Cancel(Callback):
        def before_step(self):
            if self.train_iter >= 10: raise CancelStepException()
    learn = learner(AdaMod, Cancel())
    learn.fit(1, 0.01)
    assert learn.opt.for_step is None and [len(o) for o in learn.lengths.seen] == [25]
    assert next(iter(learn.opt.state.values()))['step'] == 10

# --- epochs that are not as long as the loader says

class Ends(Callback):
    "Ends each epoch after `n` batches"
    order = -5
    def __init__(self, n): self.n = n
    def before_batch(self):
        if self.training and self.iter >= self.n: raise CancelTrainException()

@pytest.mark.parametrize('fit', ['fit','fit_one_cycle'])
def test_a_callback_that_ends_epochs_early(fit):
    learn = learner(AdaMod, Ends(10))
    getattr(learn, fit)(8, 0.01)
    first,*rest = learn.lengths.seen
    assert set(first) == {30.} and {round(o) for epoch in rest for o in epoch} == {12}  # 15% of 8 epochs of 25, and of 10

def test_a_first_epoch_that_only_validates():
    class Validates(Callback):
        order = Lengths.order+1
        def before_train(self):
            if self.epoch == 0: raise CancelTrainException()
    learn = learner(AdaMod, Validates())
    learn.fit(4, 0.01)
    assert [len(o) for o in learn.lengths.seen] == [0,25,25,25] and lengths(learn) == [15.]

@pytest.mark.parametrize('factor', [16,0.25])
def test_a_loader_whose_length_is_wrong(factor):
    learn = learner()
    dl = learn.dls.train
    class Wrong(type(dl)):
        def __len__(self): return round(25*factor)
    dl.__class__ = Wrong
    learn.fit(4, 0.01)
    assert {o for epoch in learn.lengths.seen[1:] for o in epoch} == {15.}
    assert learn.lengths.seen[0][0] == pytest.approx(0.15*4*round(25*factor), abs=0.01)

def test_epochs_are_counted_anew_in_each_fit():
    learn = learner()
    learn.fit(2, 0.01, cbs=Ends(10))
    learn.fit(2, 0.01)
    assert set(learn.lengths.seen[-2]+learn.lengths.seen[-1]) == {7.5}

def test_a_fit_that_goes_on_is_told_from_the_one_before():
    learn = learner()
    learn.fit(2, 0.01, cbs=[Ends(10),GradientAccumulation(64)])
    learn.fit(4, 0.01, start_epoch=2)
    assert set(learn.lengths.seen[-2]+learn.lengths.seen[-1]) == {15.}

def test_a_validation_in_the_middle_is_no_new_fit():
    class Midway(Callback):
        order = 200
        def after_batch(self):
            if self.training and self.iter == 5: # `validate` leaves these to the next epoch
                learn,n = self.learn,self.learn.train_iter
                learn.validate()
                learn.model.train()
                learn.training,learn.dl,learn.train_iter,learn.n_iter,self.run = True,learn.dls.train,n,25,True
    learn = learner(AdaMod, Ends(20))
    learn.fit(3, 0.01, cbs=Midway())
    assert [len(o) for o in learn.lengths.seen] == [20,20,20] and set(learn.lengths.seen[1]+learn.lengths.seen[2]) == {9.}

# --- early stopping

@pytest.mark.parametrize('fit', ['fit','fit_one_cycle'])
def test_early_stopping_counts_only_the_epochs_that_are_sure(fit):
    "Those so far and the patience, of which a fit of 6 has no more than 6: 15% of them, with 25 batches each"
    learn = learner()
    getattr(learn, fit)(6, 1e-4, cbs=EarlyStoppingCallback(monitor='train_loss', patience=3))
    assert [set(o) for o in learn.lengths.seen] == [{15.}, {18.75}, {22.5}, {22.5}, {22.5}, {22.5}]

def test_early_stopping_leaves_epochs_and_later_fits_alone():
    learn = learner()
    learn.fit(100, 1e-4, cbs=[EarlyStoppingCallback(monitor='train_loss', patience=2, comp=np.greater),MemoryLength(epochs=1)])
    learn.fit(4, 0.01)
    assert lengths(learn) == [15.,25.]
