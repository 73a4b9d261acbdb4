import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
import matplotlib.pyplot as plt
from fastai.basics import Adam, Callback, L, Learner, Lookahead, accuracy, noop
from fastai.callback.all import CancelStepException, GradientAccumulation, SaveModelCallback  # also patches fit_one_cycle

from adamod_fastai.all import *
from learners import cancer_learner, quiet, used
from reference import Rule

adamod = partial(AdaMod, len_memory=10)

class Recount(Callback):
    "Follow the run with the float64 rule, from the gradients the optimizer is given"
    order = 100
    def __init__(self, rule, **kwargs): self.rule,self.kwargs,self.rules,self.fractions,self.rates,self.seen = rule,kwargs,{},[],[],0
    def before_step(self):
        self.seen += 1
        self.todo = [(p,p.grad.clone().numpy(),dict(h)) for p,_,_,h in self.opt.all_params(with_grad=True)]
    def after_step(self):
        clipped = total = 0
        given = {p:h for pg,h in zip(self.opt.param_lists, used(self.opt)) for p in pg}
        for p,g,h in self.todo:
            h = {**given[p], **{k:h[k] for k in ('lr','mom')}}
            rule = self.rules.setdefault(p, Rule(self.rule, np.zeros(p.shape), **self.kwargs))
            rule.beta3,rule.follow_lr = h.get('beta3'),h.get('follow_lr', False)
            rule.step(g, h['lr'], h['mom'], h['sqr_mom'], h['eps'], 0.)
            clipped += (rule.s < rule.eta).sum()
            total += p.numel()
        self.fractions.append(clipped/total)
        self.rates.append(np.concatenate([self.rules[p].used.ravel() for p,*_ in self.todo]))

def measured(opt_func, setup=lambda learn: None, fit=lambda learn: learn.fit_one_cycle(3, 0.02), cbs=(), **kwargs):
    recount = Recount(opt_func.func.__name__)
    learn = quiet(cancer_learner(opt_func, cbs=[ClippedFraction(every=1),recount,*cbs], **kwargs))
    setup(learn)
    fit(learn)
    return learn.clipped_fraction.fractions,recount.fractions

def two_groups(learn):
    learn.create_opt()
    learn.opt.set_hyper('beta3', [0.99,0.8])     # 100 batches and 5

CASES = {'one cycle': {},
         'frozen': dict(setup=lambda o: o.freeze()),
         'groups': dict(setup=two_groups, fit=lambda o: o.fit_one_cycle(3, slice(1e-3,1e-1))),
         'accumulation': dict(cbs=[GradientAccumulation(48)]),
         'flat': dict(fit=lambda o: o.fit(3, 0.02))}

@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod], ids=lambda o: o.__name__)
def test_equals_a_float64_recount(opt_func, case):
    equal(*measured(partial(opt_func, len_memory=15), **CASES[case]))

def test_equals_a_recount_where_the_memory_follows_lr(): equal(*measured(partial(AdaMod, len_memory=15, follow_lr=True)))

def equal(ours, want):
    assert len(ours) == len(want) > 20
    assert np.abs(np.array(ours)-want).max() <= 2e-3
    assert 0 < np.mean(want) < 1

def test_accumulated_batches_count_once():
    ours,_ = measured(partial(AdaMod, len_memory=5), cbs=[GradientAccumulation(48)])
    assert len(ours) == 25*3//3

def test_every():
    every1 = quiet(cancer_learner(partial(AdaMod, len_memory=10), cbs=ClippedFraction(every=1)))
    every1.fit(2, 0.01)
    every7 = quiet(cancer_learner(partial(AdaMod, len_memory=10), cbs=ClippedFraction(every=7)))
    every7.fit(2, 0.01)
    assert every7.clipped_fraction.fractions == every1.clipped_fraction.fractions[::7]
    assert every7.clipped_fraction.steps == every1.clipped_fraction.steps[::7]

def test_a_memory_of_one_batch_clips_nothing():
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=1), cbs=ClippedFraction(every=1)))
    learn.fit(1, 0.01)
    assert learn.clipped_fraction.fractions == [0.]*25

def test_the_rate_is_that_of_the_recorder():
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=10), cbs=ClippedFraction(every=1)))
    learn.fit_one_cycle(1, slice(1e-3,1e-2))
    assert learn.clipped_fraction.lrs == learn.recorder.lrs

@pytest.mark.parametrize('every', [0,-1,1.5,'2'])
def test_bad_every(every):
    with pytest.raises(ValueError, match=f'every.*{every}'): ClippedFraction(every=every)

# --- the table

def test_column_is_the_mean_of_the_epoch():
    learn = cancer_learner(partial(AdaMod, len_memory=15), cbs=ClippedFraction(every=1))
    learn.logger = lambda *_: None
    with learn.no_bar(): learn.fit_one_cycle(3, 0.02)
    assert list(learn.recorder.metric_names) == ['epoch','train_loss','valid_loss','accuracy','clipped','used','time']
    fractions = np.array(learn.clipped_fraction.fractions).reshape(3, -1).mean(1)
    np.testing.assert_allclose([o[-2] for o in learn.recorder.values], fractions, atol=1e-9)

def test_fits_again_without_adding_columns():
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=15), cbs=ClippedFraction(every=1)))
    for _ in range(3):
        learn.fit(1, 0.01)
        assert list(learn.recorder.metric_names).count('clipped') == 1
        assert list(learn.metrics.attrgot('name')) == ['accuracy']
    assert len(learn.clipped_fraction.fractions) == 25

def test_fit_after_an_interrupted_one():
    class Stop(Callback):
        order = 60     # after it has measured
        def after_step(self): raise KeyboardInterrupt
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=15), cbs=ClippedFraction(every=1)))
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 0.01, cbs=Stop())
    assert len(learn.validate()) == 2
    learn.fit(1, 0.01)
    assert list(learn.recorder.metric_names).count('clipped') == 1 and len(learn.clipped_fraction.fractions) == 25

def test_save_model_can_monitor_it(tmp_path):
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=15), cbs=ClippedFraction(every=1), path=tmp_path))
    learn.fit(2, 0.01, cbs=SaveModelCallback(monitor='clipped', comp=np.less))
    assert (tmp_path/'models'/'model.pth').exists()

def test_train_metrics_do_not_break_it():
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=15), cbs=ClippedFraction(every=1)))
    learn.recorder.train_metrics = True
    learn.fit(1, 0.01)
    assert len(learn.recorder.values[0]) == len(learn.recorder.metric_names)-2

# --- silence

def test_silent_outside_training():
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=15), cbs=ClippedFraction(every=1)))
    learn.fit(1, 0.01)
    before = list(learn.clipped_fraction.fractions)
    assert len(learn.validate()) == 2
    learn.get_preds()
    learn.lr_find(show_plot=False, num_it=10)
    assert learn.clipped_fraction.fractions == before
    assert list(learn.metrics.attrgot('name')) == ['accuracy']

def test_silent_in_an_exported_learner(tmp_path):
    from fastai.basics import load_learner
    learn = quiet(cancer_learner(AdaMod, cbs=ClippedFraction(every=1), path=tmp_path))
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    loaded.get_preds(dl=learn.dls.valid)
    assert len(loaded.validate(dl=learn.dls.valid)) == 2

@pytest.mark.parametrize('opt_func', [Adam,DiffGrad,DeepMemory], ids=lambda o: o.__name__)
def test_an_optimizer_that_does_not_clip_is_an_error(opt_func):
    learn = quiet(cancer_learner(opt_func, cbs=ClippedFraction(every=1)))
    before = [p.clone() for p in learn.model.parameters()]
    learn.validate()
    with pytest.raises(ValueError, match=f'Invalid opt_func: {opt_func.__name__}.*clips its adaptive rates'): learn.fit(1)
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))

def test_skipped_steps_are_not_counted():
    class Skip(Callback):
        n = 0
        def before_step(self):
            self.n += 1
            if self.n % 2: raise CancelStepException()
    learn = quiet(cancer_learner(AdaMod, cbs=[ClippedFraction(every=1),Skip()]))
    learn.fit(2, 0.01)
    assert len(learn.clipped_fraction.fractions) == 25

def test_works_through_lookahead():
    learn = quiet(cancer_learner(lambda p, **kw: Lookahead(AdaMod(p, len_memory=10, **kw)), cbs=ClippedFraction(every=1)))
    learn.fit(1, 0.01)
    assert len(learn.clipped_fraction.fractions) == 25 and learn.clipped_fraction.fractions[0] == 1.

def test_parameters_train_the_same_with_and_without():
    res = []
    for cbs in [],[ClippedFraction(every=1)]:
        learn = quiet(cancer_learner(partial(DiffMod, len_memory=15), cbs=cbs))
        learn.fit_one_cycle(1, 0.02)
        res.append([p.detach().clone() for p in learn.model.parameters()])
    assert all(torch.equal(a, b) for a,b in zip(*res))

# --- the warning

def warned(fit, n=25, **kwargs):
    learn = quiet(cancer_learner(partial(AdaMod, **kwargs), bs=400//n, cbs=ClippedFraction(every=1)))
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        fit(learn)
    return [str(o.message) for o in ws if 'memory' in str(o.message)]

def test_says_once_that_the_memory_is_too_long():
    msg, = warned(lambda o: o.fit(2), len_memory=80)
    assert all(o in msg for o in ('50 steps','80','len_memory=8.'))

@pytest.mark.parametrize('n', [5,10,25,50])
def test_says_nothing_when_the_memory_fits(n):
    assert not warned(lambda o: o.fit(1), n, len_memory=n) and warned(lambda o: o.fit(1), n, len_memory=n+0.5)

def test_the_memory_of_frozen_groups_does_not_count():
    def fit(learn, freeze):
        two_groups(learn)
        if freeze: learn.freeze()
        learn.fit(1, 0.01)
    for freeze in False,True: assert bool(warned(lambda o: fit(o, freeze))) != freeze

def test_validate_does_not_warn(): assert not warned(lambda o: o.validate(), len_memory=5000)

def test_accumulation_shortens_the_fit():
    msg, = warned(lambda o: o.fit(2, cbs=GradientAccumulation(32)), len_memory=40)
    assert '25 steps' in msg

# --- no waiting for the device

def test_nothing_is_fetched_before_the_epoch_ends(monkeypatch):
    "Every way from a tensor to a Python number is forbidden while a step is measured"
    cb = ClippedFraction(every=1)
    learn = quiet(cancer_learner(AdaMod, cbs=cb))
    def refuse(*_, **__): raise AssertionError('waits for the device')
    measure = cb.measure
    def watched(todo):
        with pytest.MonkeyPatch.context() as m:
            for k in 'item','tolist','cpu','numpy','__bool__','__int__','__float__','__index__': m.setattr(torch.Tensor, k, refuse)
            measure(todo)
    cb.measure = watched
    learn.fit(2, 0.01)
    assert len(cb.fractions) == 50

# --- plots

@pytest.fixture(scope='module')
def fitted():
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=10), cbs=ClippedFraction(every=1)))
    learn.fit_one_cycle(2, 0.02)
    return learn

def test_plot_draws_the_fractions_and_the_rate(fitted):
    cb,(_,ax) = fitted.clipped_fraction,plt.subplots()
    assert cb.plot(ax=ax) is ax
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), cb.fractions)
    right, = [o for o in ax.figure.axes if o is not ax]
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), fitted.recorder.lrs)
    assert ax.get_xlabel() and ax.get_ylabel() and right.get_ylabel()
    plt.close('all')

def test_plot_layers_draws_a_row_per_layer(fitted):
    cb,(_,ax) = fitted.clipped_fraction,plt.subplots()
    assert cb.plot_layers(ax=ax) is ax
    img, = ax.get_images()
    assert cb.layer_names == ['0','1','3'] == [o.get_text() for o in ax.get_yticklabels()]
    assert img.get_array().shape == (3,50)
    sizes = [sum(p.numel() for p in fitted.model[int(i)].parameters()) for i in cb.layer_names]
    np.testing.assert_allclose(np.average(cb.layer_fractions, axis=1, weights=sizes), cb.fractions, atol=1e-12)
    plt.close('all')

def test_frozen_layers_are_missing():
    learn = quiet(cancer_learner(partial(AdaMod, len_memory=10), cbs=ClippedFraction(every=1)))
    learn.freeze()
    learn.fit(1, 0.02)
    assert np.isnan(learn.clipped_fraction.layer_fractions[:,0]).all()      # the linear layer; batch norm trains on
    assert not np.isnan(learn.clipped_fraction.layer_fractions[:,1:]).any()

@pytest.mark.parametrize('plot', ['plot','plot_layers'])
def test_nothing_to_plot(plot):
    with pytest.raises(RuntimeError, match='fit with ClippedFraction first'): getattr(ClippedFraction(every=1), plot)()

# --- the distribution of the rates

@pytest.mark.parametrize('opt_func,rule', [(Adam,'DiffGrad'),(AdaMod,'AdaMod'),(DeepMemory,'DeepMemory')])
def test_rate_histogram_equals_a_float64_recount(opt_func, rule):
    hist,recount = RateHistogram(every=1, lo=-5, hi=2, bins=70),Recount(rule)
    quiet(cancer_learner(opt_func, cbs=[hist,recount])).fit_one_cycle(2, 0.02)
    want = np.stack([np.histogram(np.log10(o).clip(-5, 2), 70, (-5,2))[0]/o.size for o in recount.rates])
    assert hist.histograms.shape == (50,70)
    assert np.abs(hist.histograms.sum(1)-1).max() < 1e-5
    assert np.abs(hist.histograms-want).sum(1).max() <= 4e-3        # an element at the edge of two bins

def test_rate_histogram_of_sgd_is_an_error():
    from fastai.basics import SGD
    learn = quiet(cancer_learner(SGD, cbs=RateHistogram(every=1)))
    with pytest.raises(ValueError, match="Invalid opt_func: SGD.*adaptive rates"): learn.fit(1)

@pytest.mark.parametrize('bad', [dict(lo=2, hi=2),dict(bins=0),dict(bins=1.5),dict(every=0)], ids=str)
def test_rate_histogram_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): RateHistogram(**bad)

def test_rate_histogram_plot():
    cb,(_,ax) = RateHistogram(every=5),plt.subplots()
    quiet(cancer_learner(partial(AdaMod, len_memory=10), cbs=cb)).fit(2, 0.01)
    assert cb.plot(ax) is ax
    assert ax.get_images()[0].get_array().shape == (120,10)
    plt.close('all')

def test_rate_histogram_of_a_second_fit_is_of_that_alone():
    cb = RateHistogram(every=2)
    learn = quiet(cancer_learner(adamod, cbs=cb))
    for n_epoch in 2,1:
        learn.fit(n_epoch, 0.01)
        assert cb.steps == list(range(0, 25*n_epoch, 2)) and len(cb.histograms) == len(cb.steps)

def test_a_step_at_a_learning_rate_of_zero_uses_no_rate():
    p = torch.ones(3)
    opt = AdaMod([p], lr=0.01, len_memory=3, follow_lr=True)
    for lr in 0.01,0.,0.02:
        opt.set_hyper('lr', lr)
        p.grad = torch.ones(3)
        opt.step()
        rate = used_rate(p, opt.state[p], opt.hypers[0], opt.cbs)
        assert (rate > 0).all() if lr else (rate == 0).all()

# --- what is not a number is shown as that

def diverge(learn, at=30):
    class Spoil(Callback):
        def before_step(self):
            if self.train_iter >= at: next(self.model.parameters()).grad[0,0] = float('nan')
    learn.fit(2, 0.01, cbs=Spoil())
    return learn

def test_a_rate_that_is_nan_makes_the_fraction_nan():
    cb = diverge(quiet(cancer_learner(AdaMod, cbs=ClippedFraction(every=1)))).clipped_fraction
    assert not np.isnan(cb.fractions[:30]).any() and np.isnan(cb.fractions[30:]).all()
    assert np.isnan(cb.layer_fractions[30]).tolist() == [True,False,False]     # and from there into the others

def test_a_rate_that_is_nan_makes_the_histogram_nan():
    cb = diverge(quiet(cancer_learner(AdaMod, cbs=RateHistogram(every=1)))).rate_histogram
    assert not np.isnan(cb.histograms[:30]).any() and np.isnan(cb.histograms[30:]).all()
    cb.plot()
    plt.close('all')

def test_two_of_them_make_one_column():
    learn = quiet(cancer_learner(AdaMod))
    for _ in range(2): learn.add_cb(ClippedFraction(every=1))
    for _ in range(2):
        learn.fit(1, 0.01)
        assert list(learn.recorder.metric_names).count('clipped') == 1
    assert len(learn.metrics) == 1 and 0 < learn.recorder.values[-1][-1] <= 1

# --- several of them, and without a Recorder

@pytest.mark.parametrize('kind', [ClippedFraction,RateHistogram])
def test_two_in_a_fit_can_be_removed(kind):
    learn = quiet(cancer_learner(adamod, cbs=kind(every=2)))
    learn.fit(1, 0.01, cbs=kind(every=1))
    learn.remove_cb(kind)
    learn.fit(1, 0.01, cbs=[kind(every=1),kind(every=5)])
    assert not learn._grab_cbs(kind)

def test_clipped_fraction_needs_no_recorder():
    learn = quiet(cancer_learner(adamod))
    learn.remove_cb(learn.recorder)
    cb = ClippedFraction(every=1)
    learn.fit(2, 0.01, cbs=cb)
    assert len(cb.steps) == 2*len(learn.dls.train)

def test_a_fit_that_goes_on_is_measured_anew():
    learn = quiet(cancer_learner(adamod, cbs=ClippedFraction(every=1)))
    learn.fit(2, 0.01)
    learn.fit(4, 0.01, start_epoch=2)
    assert learn.clipped_fraction.steps == list(range(2*len(learn.dls.train)))

# --- columns, wherever `Recorder` puts its own

@pytest.mark.parametrize('train', [False,True])
@pytest.mark.parametrize('valid', [False,True])
def test_columns_are_named_rightly_whatever_recorder_logs(train, valid):
    learn = quiet(cancer_learner(adamod, cbs=ClippedFraction(every=1)))
    learn.recorder.train_metrics,learn.recorder.valid_metrics = train,valid
    learn.fit(1, 0.01)
    shown = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert shown['clipped'] == pytest.approx(np.mean(learn.clipped_fraction.fractions))
    assert shown['used'] == pytest.approx(np.mean(learn.clipped_fraction.used))

@pytest.mark.parametrize('name', ['clipped','used'])
def test_a_metric_with_the_name_of_a_column_is_an_error(name):
    def metric(x, y): return accuracy(x, y)
    metric.__name__ = name
    learn = quiet(cancer_learner(adamod, cbs=ClippedFraction(), metrics=metric))
    with pytest.raises(ValueError, match=f'Invalid metrics: {name!r}'): learn.fit(1, 0.01)

@pytest.mark.parametrize('bs,epochs,want,stride', [(40,2,20,1), (16,2,25,2), (4,1,10,10)], ids=['10 batches','25 batches','100 batches'])
def test_an_epoch_is_measured_ten_times_unless_told_otherwise(bs, epochs, want, stride):
    "At every step of 10, at every second of 25, at every tenth of 100"
    for cb in ClippedFraction(),RateHistogram():
        learn = quiet(cancer_learner(adamod, bs=bs, cbs=cb))
        learn.fit(epochs, 0.01)
        assert (len(cb.steps),cb.stride) == (want,stride)
        cb.plot()

# --- names of layers

def layers_of(change):
    learn = quiet(cancer_learner(adamod, cbs=ClippedFraction()))
    learn.model = change(learn.model)
    learn.fit(1, 0.01)
    return learn.clipped_fraction.layer_names

class Compiled(nn.Module):
    "Names as `torch.compile` makes them"
    def __init__(self, m): super().__init__(); self._orig_mod = m
    def forward(self, x): return self._orig_mod(x)
    def __getitem__(self, i): return self._orig_mod[i]

def inner_compiled(m):
    m[0] = Compiled(m[0])
    return m
def parametrized(m):
    torch.nn.utils.parametrizations.weight_norm(m[0])
    return m

@pytest.mark.parametrize('change', [noop,Compiled,inner_compiled,parametrized],
                         ids=['plain','compiled','a compiled layer','parametrized'])
def test_layers_have_their_names(change): assert layers_of(change) == ['0','1','3']

# --- NaN

@pytest.mark.filterwarnings('error')
def test_a_histogram_with_some_nan_is_plotted_and_one_of_nan_alone_says_so():
    learn = quiet(cancer_learner(adamod))
    learn.fit(1, 0.01, cbs=RateHistogram(every=1))
    hist = learn.rate_histogram
    hist._hists[3] = torch.full_like(hist._hists[3], torch.nan)
    hist.plot()
    hist._hists = [torch.full_like(o, torch.nan) for o in hist._hists]
    with pytest.raises(RuntimeError, match='NaN at every measured step'): hist.plot()
