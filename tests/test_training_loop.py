"The optimizers under fastai's callbacks and schedules, and what a Learner does between fits"
import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from sklearn.datasets import load_digits
from fastai.basics import DataLoaders, L, Learner, Lookahead, accuracy, load_learner, set_seed
from fastai.callback.all import (Callback, CancelFitException, ChannelsLast, EarlyStoppingCallback, GradientAccumulation, GradientClip,
                                 MixedPrecision, ParamScheduler, SaveModelCallback, SchedLin)

from adamod_fastai.all import ClippedFraction, MemoryLength
from learners import Tensors, cancer_learner, ordered_learner, quiet, same, state_of, steps, values
from test_callback import Recount

def close(a, b, rtol=1e-5, atol=1e-6): torch.testing.assert_close(list(a), list(b), rtol=rtol, atol=atol)

# --- gradients

@pytest.mark.feature('GradientAccumulation')
@pytest.mark.slow
def test_accumulated_batches_are_one_bigger_batch(opt_func):
    def fitted(bs, *cbs):
        learn = quiet(ordered_learner(partial(opt_func, len_memory=5), bs, cbs=cbs))
        learn.fit(2, 0.01)
        return learn
    big,accumulated,small = fitted(48),fitted(16, GradientAccumulation(48)),fitted(16)
    assert steps(big) == steps(accumulated) == {16} and steps(small) == {48}
    close(values(accumulated.model), values(big.model))
    with pytest.raises(AssertionError): close(values(small.model), values(big.model))

@pytest.mark.feature('GradientClip')
def test_gradients_are_clipped_before_the_step(opt_func):
    learn,norms = quiet(cancer_learner(opt_func, cbs=GradientClip(0.01))),[]
    class First(Callback):
        def before_step(self): norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())
        def after_step(self):
            norms.append(torch.cat([o['grad_avg'].flatten() for o in state_of(self.opt)]).norm().item())
            raise CancelFitException
    learn.fit(1, 0.01, cbs=First())
    assert norms[0] > 0.1 and norms[1] == pytest.approx((1-0.9)*0.01, rel=1e-3)     # `First` runs before the clip

class Autocast(MixedPrecision):
    "fastai's `MixedPrecision` on the CPU: its own takes CUDA's autocast and scaler"
    name = 'mixed_precision'
    def __init__(self, dtype, **kwargs):
        super().__init__()
        self.dtype,self.kwargs = dtype,kwargs
    def before_fit(self):
        self.autocast,self.scales = torch.autocast('cpu', dtype=self.dtype),L()
        self.learn.scaler = torch.amp.GradScaler('cpu', enabled=self.dtype is torch.float16, **self.kwargs)

def mixed(dtype, **kwargs):
    if not torch.cuda.is_available(): return Autocast(dtype, **kwargs)
    return MixedPrecision('fp16' if dtype is torch.float16 else 'bf16', **kwargs)

class SkippedSteps(Callback):
    "Whether each step was skipped, and whether it changed anything"
    order = 60
    def __init__(self): self.steps = []
    def _now(self): return values(self.model),state_of(self.opt)
    def after_loss(self): self.before = self._now()
    def after_step(self): self.steps.append((self.learn.mixed_precision.skipped, not same(self.before, self._now())))

@pytest.mark.feature('MixedPrecision: fp16, skipped steps')
def test_a_step_skipped_on_overflow_changes_nothing(opt_func):
    cbs = [mixed(torch.float16, init_scale=2.**24), SkippedSteps(), MemoryLength(), ClippedFraction(every=1)]
    learn = quiet(cancer_learner(opt_func, cbs=cbs))
    learn.fit_one_cycle(3, 0.03)
    skipped,changed = np.array(learn.skipped_steps.steps).T
    assert len(skipped) == 75 and 3 < skipped.sum() < 30
    assert (changed == ~skipped).all()
    assert steps(learn) == {len(learn.clipped_fraction.fractions)} == {(~skipped).sum()}
    assert learn.validate()[1] > 0.9

@pytest.mark.feature('MixedPrecision: bf16')
def test_bfloat16(opt_func):
    learn,seen = quiet(cancer_learner(opt_func, cbs=[mixed(torch.bfloat16), MemoryLength()])),set()
    hook = learn.model[0].register_forward_hook(lambda m,i,o: seen.add(o.dtype))
    learn.fit_one_cycle(3, 0.03)
    hook.remove()
    assert seen == {torch.bfloat16} and {p.dtype for p in learn.model.parameters()} == {torch.float32}
    assert steps(learn) == {75} and learn.validate()[1] > 0.9

# --- schedules

def beta3(pct): return [SchedLin(0.5, 0.9)(pct), SchedLin(0.9, 0.6)(pct)]

FITS = {'fit_one_cycle': lambda o: o.fit_one_cycle(2, slice(1e-3,3e-2)), 'fit_flat_cos': lambda o: o.fit_flat_cos(2, 0.03),
        'fit_sgdr': lambda o: o.fit_sgdr(2, 1, 0.03),
        'ParamScheduler on beta3': lambda o: o.fit(2, 0.03, cbs=ParamScheduler({'beta3': beta3}))}

@pytest.mark.parametrize('fit', [pytest.param(v, marks=pytest.mark.feature(k), id=k) for k,v in FITS.items()])
def test_follows_a_schedule(opt_func, fit):
    "The memory is the one that the equations give for the hypers of every step"
    learn = quiet(cancer_learner(partial(opt_func, len_memory=10), cbs=Recount(opt_func.func.__name__)))
    fit(learn)
    assert steps(learn) == {learn.recount.seen} and learn.recount.seen >= 50
    for p,rule in learn.recount.rules.items(): np.testing.assert_allclose(learn.opt.state[p]['lr_avg'], rule.s, rtol=1e-4)
    assert learn.validate()[1] > 0.9

# --- stopping, saving, loading

@pytest.mark.feature('EarlyStoppingCallback')
def test_early_stopping(opt_func):
    learn = quiet(cancer_learner(opt_func, cbs=MemoryLength()))
    learn.fit(5, 0.01, cbs=EarlyStoppingCallback(min_delta=10., patience=1))
    assert len(learn.recorder.values) == 2 and steps(learn) == {50}
    learn.fit(1, 0.01)
    assert steps(learn) == {75} and learn.opt.hypers[0]['beta3'] == 0.999

@pytest.mark.feature('SaveModelCallback: with_opt')
def test_the_best_model_comes_back_with_its_state(opt_func, tmp_path):
    learn,ends = quiet(cancer_learner(opt_func, path=tmp_path)),[]
    class Ends(Callback):
        def after_epoch(self): ends.append((values(self.model), state_of(self.opt)))
    learn.fit(3, 0.01, cbs=[Ends(), SaveModelCallback(monitor='train_loss', comp=np.greater, with_opt=True)])
    assert same((values(learn.model), state_of(learn.opt)), ends[0]) and steps(learn) == {25}     # "best" is the first here
    learn.fit(1, 0.01)
    assert steps(learn) == {50}

@pytest.mark.feature('Learner.export and load_learner')
def test_export(opt_func, tmp_path):
    learn = quiet(cancer_learner(partial(opt_func, len_memory=10), path=tmp_path, cbs=[MemoryLength(), ClippedFraction(every=1)]))
    learn.fit(1, 0.01)
    before = state_of(learn.opt)
    learn.export('learner.pkl')
    assert same(before, state_of(learn.opt))
    loaded = load_learner(tmp_path/'learner.pkl')
    assert same(*(o.get_preds(dl=learn.dls.valid)[0] for o in (learn,loaded)))
    loaded.dls = learn.dls
    quiet(loaded).fit(1, 0.01)
    assert loaded.validate()[1] > 0.9

# --- around a fit

@pytest.mark.feature('lr_find')
def test_lr_find_leaves_no_trace_and_suggests_what_trains(opt_func):
    learn = quiet(cancer_learner(partial(opt_func, len_memory=10), lr=1e-4))     # every fit sets `lr` to its own, or to the Learner's
    learn.fit(1)
    now = lambda: copy.deepcopy((list(learn.model.state_dict().values()), state_of(learn.opt), list(learn.opt.hypers)))
    before = now()
    lr = learn.lr_find(show_plot=False).valley
    assert same(before, now())
    loss = learn.validate()[0]
    learn.fit_one_cycle(2, lr)
    assert learn.validate()[0] < 0.5*loss and learn.validate()[1] > 0.9

@pytest.mark.feature('learn.summary')
def test_summary(opt_func):
    learn = quiet(cancer_learner(opt_func))
    learn.fit(1, 0.01)
    before = values(learn.model),state_of(learn.opt)
    assert opt_func.func.__name__ in learn.summary()
    assert same(before, (values(learn.model), state_of(learn.opt)))

@pytest.mark.feature('Lookahead')
def test_lookahead(opt_func, tmp_path):
    ahead = lambda params, **kw: Lookahead(opt_func(params, len_memory=10, **kw), k=5)
    learns = [quiet(cancer_learner(ahead, path=tmp_path, seed=o)) for o in range(2)]
    learns[0].fit(2, 0.03)
    slow = [p for o in learns[0].opt.slow_weights for p in o]
    assert learns[0].opt.count == 50 and same(slow, values(learns[0].model))
    assert learns[0].validate()[1] > 0.9
    learns[0].save('ahead')
    learns[1].load('ahead')
    for o in learns: set_seed(1); o.dls.train.rng.seed(1); o.fit(1, 0.03)
    assert same(*(values(o.model) for o in learns))

# --- models in other forms

def digits_convnet(opt_func, *cbs):
    set_seed(0)
    x,y = (torch.tensor(o) for o in load_digits(return_X_y=True))
    x = x.view(-1,1,8,8).float()/16
    dls = DataLoaders.from_dsets(Tensors(x[:512],y[:512]), Tensors(x[512:768],y[512:768]), bs=32, num_workers=0)
    model = nn.Sequential(nn.Conv2d(1,8,3), nn.ReLU(), nn.Conv2d(8,16,3,stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64,10))
    return quiet(Learner(dls, model, nn.CrossEntropyLoss(), opt_func=partial(opt_func, len_memory=5), metrics=accuracy, cbs=cbs))

@pytest.mark.feature('ChannelsLast')
@pytest.mark.parametrize('start', ['at first','later'])
def test_channels_last(opt_func, start):
    plain,last = digits_convnet(opt_func),digits_convnet(opt_func)
    for o in plain,last:
        set_seed(1)
        if o is last and start == 'at first': o.add_cb(ChannelsLast())
        o.fit(1, 0.01)
        if o is last and start == 'later': o.add_cb(ChannelsLast())
        o.fit(1, 0.01)
    assert last.model[2].weight.is_contiguous(memory_format=torch.channels_last) and not last.model[2].weight.is_contiguous()
    close(values(last.model), values(plain.model), rtol=1e-3, atol=1e-4)
    assert last.validate()[1] > 0.5

@pytest.fixture(scope='module')
def compiled():
    "A model that `torch.compile` has compiled, and what it was before it was trained"
    model = nn.Sequential(nn.Linear(30,16), nn.Tanh(), nn.Linear(16,2))
    res = torch.compile(model)
    try: res(torch.zeros(2,30)).sum().backward()
    except Exception as e:
        if 'compiler' in str(e).lower(): pytest.skip(f'no compiler: {e}')
        raise
    model.zero_grad()
    return res,{k: v.clone() for k,v in model.state_dict().items()}

@pytest.mark.slow
@pytest.mark.feature('torch.compile')
def test_compiled_model(opt_func, compiled):
    res = []
    for compile in False,True:
        learn = quiet(ordered_learner(partial(opt_func, len_memory=10), cbs=ClippedFraction(every=1)))
        learn.model.load_state_dict(compiled[1])
        if compile:
            compiled[0]._orig_mod.load_state_dict(compiled[1])
            learn.model = compiled[0]
        learn.fit_one_cycle(2, 0.03)
        res.append((values(learn.model), learn.clipped_fraction.fractions))
    close(res[0][0], res[1][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(res[0][1], res[1][1], atol=0.01)
    assert learn.validate()[1] > 0.9

# --- logging

@pytest.mark.feature('TensorBoardCallback')
def test_tensorboard_sees_the_hypers_and_the_clipped_fraction(opt_func, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = quiet(cancer_learner(partial(opt_func, len_memory=10), cbs=ClippedFraction(every=1)))
    learn.fit(2, 0.01, cbs=TensorBoardCallback(log_dir=tmp_path, trace_model=False, log_preds=False))
    log = EventAccumulator(str(tmp_path)).Reload()
    seen = lambda k: [o.value for o in log.Scalars(k)]
    for i,o in enumerate(('clipped','used'), -2): np.testing.assert_allclose(seen(o), [v[i] for v in learn.recorder.values], rtol=1e-5)
    np.testing.assert_allclose(seen('lr_1'), [0.01]*len(seen('lr_1')), rtol=1e-6)
    np.testing.assert_allclose(seen('beta3_0'), [0.9]*len(seen('beta3_0')), rtol=1e-6)
