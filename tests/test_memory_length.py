import math

import numpy as np
import pytest
from fastai.basics import Adam, Callback, Optimizer
from fastai.callback.all import GradientAccumulation  # also patches fit_one_cycle, fit_sgdr and fine_tune

from adamod_fastai.all import *
from learners import cancer_learner, quiet, used

class Record(Callback):
    "The `beta3` of every group at every step"
    order = 100
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append([])
    def after_step(self): self.fits[-1].append(tuple(h['beta3'] for h in used(self.opt)))

def learner(*cbs):
    learn = quiet(cancer_learner(AdaMod, cbs=[Record(),*cbs]))
    learn.create_opt()
    learn.opt.set_hyper('beta3', [0.9,0.95])
    return learn

def lengths(learn): return [sorted({round(1/(1-b), 6) for step in fit for b in step}) for fit in learn.record.fits if fit]
def before_and_after(learn): return [h['beta3'] for h in learn.opt.hypers] == [0.9,0.95]

@pytest.mark.parametrize('kwargs,want', [({},15), (dict(pct=0.5),50), (dict(pct=3.),300), (dict(epochs=1),25), (dict(epochs=0.5),12.5),
                                         (dict(pct=1e-9),2)], ids=str)
def test_length_of_a_fit(kwargs, want):
    learn = learner(MemoryLength(**kwargs))
    learn.fit(4, 0.01)
    assert lengths(learn) == [[want]] and before_and_after(learn)

def test_accumulated_batches_count_once():
    learn = learner(MemoryLength(pct=0.5), GradientAccumulation(48))
    learn.fit(4, 0.01)
    assert lengths(learn) == [[16.666667]]     # 100 batches are 33 steps, and one batch over

def test_each_fit_of_fine_tune_has_its_own():
    learn = learner(MemoryLength(pct=0.5))
    learn.fine_tune(3, 0.01, freeze_epochs=1)
    assert lengths(learn) == [[12.5],[37.5]] and before_and_after(learn)

def test_sgdr_is_one_fit():
    learn = learner(MemoryLength(pct=0.5))
    learn.fit_sgdr(2, 1, 0.01)            # cycles of 1 and 2 epochs
    assert lengths(learn) == [[37.5]]

def test_lr_find_counts_its_own_iterations_and_leaves_no_trace():
    learn = learner(MemoryLength(pct=0.5))
    learn.lr_find(num_it=20, show_plot=False)
    assert lengths(learn) == [[10.]] and before_and_after(learn)
    assert not any(learn.opt.state[p].get('step') for p in learn.model.parameters())

def test_given_back_after_an_interrupted_fit():
    class Stop(Callback):
        def after_step(self): raise KeyboardInterrupt
    learn = learner(MemoryLength())
    with pytest.raises(KeyboardInterrupt): learn.fit(4, 0.01, cbs=Stop())
    learn.fit(2, 0.01)
    assert lengths(learn)[-1] == [7.5] and before_and_after(learn)

def test_resumed_fit_has_the_memory_of_the_whole(tmp_path):
    learn = learner(MemoryLength())
    learn.fit(4, 0.01, start_epoch=2)
    assert lengths(learn) == [[15.]]

def test_outside_training_nothing_changes():
    learn = learner(MemoryLength())
    learn.validate(); learn.get_preds()
    assert before_and_after(learn)

def fastais_own(params, lr): return Optimizer(params, AdaMod(params, lr).cbs, lr=lr, beta3=0.9)

@pytest.mark.parametrize('opt_func', [Adam,DiffGrad,fastais_own])
def test_an_optimizer_whose_length_cannot_be_set(opt_func):
    learn = quiet(cancer_learner(opt_func, cbs=MemoryLength()))
    learn.create_opt()
    learn.validate()
    with pytest.raises(ValueError, match=f'Invalid opt_func: {opt_func.__name__}. MemoryLength needs'): learn.fit(1)

@pytest.mark.parametrize('k', ['pct','epochs'])
@pytest.mark.parametrize('v', [0,-0.1,math.nan,math.inf])
def test_bad_values(k, v):
    with pytest.raises(ValueError, match=f'{k}.*{v}'): MemoryLength(**{k: v})

def test_one_or_the_other():
    with pytest.raises(ValueError, match='pct and epochs: 0.1 and 2'): MemoryLength(pct=0.1, epochs=2)

def test_a_fit_that_goes_on_counts_its_own_steps():
    learn = learner(MemoryLength())
    learn.fit(2, 0.01, cbs=GradientAccumulation(64))
    learn.fit(4, 0.01, start_epoch=2)
    assert lengths(learn)[-1] == [15.]
