"A run that is killed and resumed, and checkpoints that do not belong"
import os, random, signal, warnings
from functools import partial

import pytest
import torch
from torch import nn
from fastai.basics import Adam, Callback, set_seed
from fastai.callback.all import SaveModelCallback

from adamod_fastai.all import AdaMod, DeepMemory, DiffGrad
from conftest import CASES, PATHS, make_opt_func
from learners import cancer_learner, quiet, same, state_of, steps, values
from new_process import context

# --- killed and resumed

class SeedEpoch(Callback):
    "Random numbers and the order of the items that depend on the epoch only, so that an epoch can be repeated"
    order = -20
    def __init__(self, seed=0): self.seed = seed
    def before_epoch(self):
        set_seed(self.seed+self.epoch)
        self.dls.train.rng = random.Random(self.seed+self.epoch)

class Die(Callback):
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter == self.at: os.kill(os.getpid(), signal.SIGKILL)

EPOCHS,BATCHES = 4,25

def run(opt_func, path, *cbs, start_epoch=0, seed=0, load=None):
    cbs = [SeedEpoch(), SaveModelCallback(every_epoch=True, with_opt=True), *cbs]
    learn = quiet(cancer_learner(opt_func, seed=seed, path=path, cbs=cbs))
    learn.model.insert(3, nn.Dropout(0.2))
    learn.splitter = lambda m: [list(m[:2].parameters()), list(m[2:].parameters())]
    if load: learn.load(load)
    learn.fit_one_cycle(EPOCHS, slice(1e-3,3e-2), start_epoch=start_epoch)
    return learn

def run_and_die(case, path, at):
    torch.set_num_threads(1)
    run(make_opt_func(case), path, Die(at))

def killed_at(case): return random.Random(case).randrange(BATCHES+1, EPOCHS*BATCHES)     # the first epoch has been saved by then

@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "For each optimizer and path a folder, where a process that was killed has left its checkpoints"
    res,ctx = {o: tmp_path_factory.mktemp('killed') for o in CASES},context()
    todo = [ctx.Process(target=run_and_die, args=(k,v,killed_at(k))) for k,v in res.items()]
    for i in range(0, len(todo), 2):
        for o in todo[i:i+2]: o.start()
        for o in todo[i:i+2]: o.join(200)
    assert [o.exitcode for o in todo] == [-signal.SIGKILL]*len(todo)
    return res

@pytest.mark.slow
@pytest.mark.feature('resume after SIGKILL, bit-for-bit identical')
def test_resumed_run_ends_where_the_uninterrupted_one_does(opt_func, killed, request, tmp_path):
    case = request.node.callspec.params['opt_func']
    done = [int(o.stem.split('_')[1]) for o in (killed[case]/'models').glob('model_*.pth')]
    epoch = (killed_at(case)-1)//BATCHES
    assert sorted(done) == list(range(epoch))
    straight = run(opt_func, tmp_path)
    resumed = run(opt_func, killed[case], start_epoch=epoch, seed=1, load=f'model_{epoch-1}')
    for o in lambda o: list(o.model.state_dict().values()), lambda o: state_of(o.opt), lambda o: list(o.recorder.values[-1][1:]):
        assert same(o(straight), o(resumed))
    assert steps(straight) == {EPOCHS*BATCHES}

# --- checkpoints of something else

def fitted(opt_func, path=None, **kwargs):
    learn = quiet(cancer_learner(opt_func, path=path, **kwargs))
    learn.fit(1, 0.01)
    return learn

def one_group(m): return list(m.parameters())

FOREIGN = {"Adam's": (lambda f: Adam, {}, r"without the hyperparameters beta3, paper"),
           "DiffGrad's": (lambda f: DiffGrad, {}, r"without the hyperparameters beta3, paper"),
           "DeepMemory's": (lambda f: DeepMemory if f is AdaMod else AdaMod, {},
                           r"saved by another optimizer(: it keeps grad_avg, lr_avg, prev_grad|, without the hyperparameters version)"),
           'another number of groups': (lambda f: f, dict(splitter=one_group), r"1 parameter groups, the optimizer has 2")}

@pytest.mark.feature('checkpoint of another optimizer or other groups: rejected')
@pytest.mark.parametrize('which', FOREIGN)
@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit(opt_func, which, tmp_path):
    other,kwargs,msg = FOREIGN[which]
    theirs = fitted(other(opt_func.func), tmp_path, **kwargs)
    theirs.save('theirs')
    ours = fitted(opt_func, tmp_path)
    before,hypers = state_of(ours.opt),[dict(h) for h in ours.opt.hypers]
    with warnings.catch_warnings(), pytest.raises(ValueError, match=msg):
        warnings.simplefilter('ignore')
        ours.opt.load_state_dict(theirs.opt.state_dict())
    with pytest.warns(UserWarning) as seen: ours.load('theirs')
    told = [str(o.message) for o in seen]
    for s in 'does not fit and is not loaded','Could not load the optimizer state': assert sum(s in o for o in told) == 1
    assert same(before, state_of(ours.opt)) and same(hypers, list(ours.opt.hypers))
    ours.fit(1, 0.01)
    assert steps(ours) == {50}

@pytest.mark.feature('checkpoint of another model: rejected')
def test_a_checkpoint_of_another_model(opt_func, tmp_path):
    ours,theirs = fitted(opt_func, tmp_path),fitted(opt_func, tmp_path)
    before = state_of(ours.opt)
    theirs.model[0] = nn.Linear(30,8); theirs.model[1] = nn.BatchNorm1d(8); theirs.model[3] = nn.Linear(8,2)
    theirs.create_opt()
    theirs.fit(1, 0.01)
    theirs.save('theirs')
    with pytest.raises(RuntimeError, match='size mismatch'): ours.load('theirs')
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r'parameter 0 has shape \(8, 30\), the parameter \(16, 30\)'):
        warnings.simplefilter('ignore')
        ours.opt.load_state_dict(theirs.opt.state_dict())
    assert same(before, state_of(ours.opt))
    ours.fit(1, 0.01)
    assert steps(ours) == {50}

@pytest.mark.feature("checkpoint loaded into fastai's Adam: rejected")
def test_adam_refuses_ours(opt_func, tmp_path):
    fitted(opt_func, tmp_path).save('ours')
    adam = fitted(Adam, tmp_path)
    before = state_of(adam.opt)
    with pytest.warns(UserWarning, match='Could not load the optimizer state'): adam.load('ours')
    assert same(before, state_of(adam.opt)) and 'beta3' not in adam.opt.hypers[0]
    adam.fit(1, 0.01)
    assert steps(adam) == {50}

@pytest.mark.feature('checkpoint from before the first step')
def test_an_optimizer_that_has_not_stepped(opt_func, tmp_path):
    fresh = quiet(cancer_learner(opt_func, path=tmp_path))
    fresh.create_opt()
    fresh.save('fresh')
    learn = fitted(opt_func, tmp_path)
    learn.load('fresh')
    assert steps(learn) == {0}
    learn.fit(1, 0.01)
    assert steps(learn) == {25}

@pytest.mark.feature('checkpoint shared by the eager and the fused step')
@pytest.mark.parametrize('saved_by', PATHS)
def test_eager_and_fused_share_checkpoints(opt_func, saved_by, tmp_path):
    saved,loaded = fitted(partial(opt_func.func, **PATHS[saved_by]), tmp_path),fitted(opt_func, tmp_path, seed=1)
    saved.save('m')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        loaded.load('m')
    assert same(state_of(saved.opt), state_of(loaded.opt))
    loaded.fit(1, 0.01)
    assert steps(loaded) == {50}

def test_two_optimizers_can_load_the_same_state():
    p = torch.ones(2)
    p.grad = torch.ones(2)
    opt = AdaMod([p], lr=0.1)
    opt.step()
    a,b = (AdaMod([torch.ones(2)], lr=0.1) for _ in range(2))
    sd = opt.state_dict()
    for o in a,b: o.load_state_dict(sd)
    a.set_hyper('lr', 0.5)
    assert b.hypers[0]['lr'] == opt.hypers[0]['lr'] == 0.1

def test_a_state_of_another_number_of_parameters():
    two,three = (AdaMod([torch.ones(2) for _ in range(n)], lr=0.1) for n in (2,3))
    with warnings.catch_warnings(), pytest.raises(ValueError, match='it has 3 parameters, the optimizer has 2'):
        warnings.simplefilter('ignore')
        two.load_state_dict(three.state_dict())
