"A fit ends where it would have ended, whatever is done to its optimizer in the middle of it"
import copy, pickle, subprocess, sys, warnings
from functools import partial

import pytest
import torch
from fastai.basics import Adam, Callback, Lookahead
from fastai.callback.all import GradientAccumulation, ReduceLROnPlateau  # also patches fit_one_cycle

from adamod_fastai.all import *
from learners import cancer_learner, quiet, same, state_of, used, values

ignoring = pytest.mark.filterwarnings('ignore:.*insecure pickle:UserWarning', 'ignore:Saved file doesn.t contain')

# --- what may be done after each epoch

class Do(Callback):
    "Call `f` with the Learner after each epoch"
    order = 200
    def __init__(self, f): self.f,self.doing = f,False
    def after_epoch(self):
        if self.doing: return      # `validate` has an epoch, too
        self.doing = True
        self.f(self.learn)
        self.doing = False

def export(learn): learn.export('e.pkl')
def save_and_load(learn):
    learn.save('s')
    learn.load('s')
def none_and_load(learn):
    learn.save('s')
    learn.opt = None
    learn.load('s')
def new_optimizer(learn):
    old = learn.opt.state_dict()
    learn.create_opt()
    learn.opt.load_state_dict(old)
def new_opt_func(learn):
    old,learn.opt_func = learn.opt_func,lambda *args, **kwargs: old(*args, **kwargs)
    new_optimizer(learn)
def deep_copy(learn): copy.deepcopy(learn.opt)
def pickled(learn): pickle.loads(pickle.dumps(learn.opt))
def predicts(learn): learn.get_preds()
def validates(learn): learn.validate()
def another_fit(learn): quiet(cancer_learner(learn.opt_func)).fit_one_cycle(1, 0.02)
def steps_a_copy(learn):
    twin = copy.deepcopy(learn.model)
    opt = learn.opt_func([list(twin[:2].parameters()), list(twin[2:].parameters())], lr=0.1)
    opt.load_state_dict(learn.opt.state_dict())
    for p in twin.parameters(): p.grad = torch.ones_like(p)
    for _ in range(3): opt.step()

DONE = [export,save_and_load,none_and_load,new_optimizer,new_opt_func,deep_copy,pickled,predicts,validates,another_fit,steps_a_copy]

OPTS = {'AdaMod': (AdaMod,[]), 'DiffMod': (DiffMod,[]), 'DiffGrad': (DiffGrad,[]), 'DeepMemory': (DeepMemory,[]),
        'fused': (partial(AdaMod, fused=True),[]), 'len_memory': (partial(AdaMod, len_memory=9),[]),
        'follow_lr': (partial(AdaMod, len_memory=9, follow_lr=True),[]),
        'Lookahead': (lambda p, **kw: Lookahead(AdaMod(p, **kw)),[]),
        'fused in Lookahead': (lambda p, **kw: Lookahead(DiffMod(p, fused=True, **kw)),[]),
        'MemoryLength': (partial(AdaMod, len_memory=9),[MemoryLength(0.5)])}
FITS = {'one_cycle': lambda o,cbs: o.fit_one_cycle(4, 0.01, cbs=cbs), 'flat': lambda o,cbs: o.fit(4, 0.01, cbs=cbs)}

def fitted(opt, fit, path, *cbs):
    opt_func,own = OPTS[opt]
    learn = quiet(cancer_learner(opt_func, shuffle=False, bs=32, path=path))
    FITS[fit](learn, [*copy.deepcopy(own),*cbs])
    return learn

def rates(learn): return [float(o) for o in learn.recorder.lrs]

@ignoring
@pytest.mark.slow
@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('opt', OPTS)
def test_the_same_fit_with_and_without_ends_in_the_same_weights(opt, fit, tmp_path):
    plain = fitted(opt, fit, tmp_path)
    for f in DONE:
        if f is steps_a_copy and OPTS[opt][0] is Adam: continue      # fastai's own shares what is loaded
        with warnings.catch_warnings():
            warnings.filterwarnings('error', '.*(not loaded|Could not load|eagerly).*')
            learn = fitted(opt, fit, tmp_path, Do(f))
        ends = {'weights': lambda o: values(o.model), 'state': lambda o: state_of(o.opt),
                'hypers': lambda o: [dict(h) for h in o.opt.hypers]}
        if f not in (predicts,validates): ends['rates'] = rates      # these begin fastai's recorder anew
        assert not [k for k,end in ends.items() if not same(end(plain), end(learn))], f.__name__

@ignoring
@pytest.mark.parametrize('opt', ['AdaMod','Lookahead'])
def test_an_export_after_each_epoch_changes_nothing(opt, tmp_path):
    "The same for every day, where one of them is enough"
    a,b = fitted(opt, 'one_cycle', tmp_path),fitted(opt, 'one_cycle', tmp_path, Do(export))
    assert same(values(a.model), values(b.model)) and rates(a) == rates(b)

def test_the_outer_fit_keeps_its_memory_where_two_learners_share_an_optimizer():
    outer,seen = quiet(cancer_learner(AdaMod)),[]
    inner = quiet(cancer_learner(AdaMod))
    inner.model = outer.model
    def fit_inner(learn):
        inner.opt = learn.opt
        inner.fit(1, 0.01)
    class Seen(Callback):
        def after_step(self): seen.append(round(1/(1-used(self.opt)[0]['beta3']), 6))
    outer.fit(4, 0.01, cbs=[Do(fit_inner),Seen()])
    assert set(seen) == {15.} and len(seen) == 100

# --- a fit that ends in an error ends in that error

@pytest.mark.parametrize('opt_func', [Adam,AdaMod], ids=['Adam','AdaMod'])
def test_an_optimizer_that_is_gone_when_the_fit_ends(opt_func):
    class Free(Callback):
        def after_fit(self): self.learn.opt = None
    learn = quiet(cancer_learner(opt_func))
    for _ in range(2): learn.fit(1, 0.01, cbs=Free())
    assert learn.opt is None

@pytest.mark.parametrize('opt_func', [Adam,AdaMod], ids=['Adam','AdaMod'])
def test_an_export_that_fails_says_why(opt_func, tmp_path):
    learn = quiet(cancer_learner(opt_func, path=tmp_path/'there is'/'no such folder'))
    def fails(learn):
        learn.opt = None
        raise OSError('disk full')
    with pytest.raises(OSError, match='disk full'): learn.fit(1, 0.01, cbs=Do(fails))

RELOADED = """
import importlib
from fastai.basics import *
from fastai.test_utils import synth_dbunch, RegModel
from adamod_fastai.all import *
import adamod_fastai.memory as memory
for _ in range(3): importlib.reload(memory)
for opt_func in Adam,AdaMod:
    learn = Learner(synth_dbunch(), RegModel(), loss_func=MSELossFlat(), opt_func=opt_func)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.01)
print(1/(1-learn.opt.used[0]['beta3']))
"""

def test_the_module_can_be_imported_again():
    res = subprocess.run([sys.executable,'-W','ignore','-c',RELOADED], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-2000:]
    assert float(res.stdout) == pytest.approx(3)

# --- nothing is left, wherever a step is interrupted

def own_cbs(learn): return list(learn.opt.cbs),[dict(h) for h in learn.opt.hypers]

@pytest.mark.parametrize('opt_func', [AdaMod,DiffMod,DeepMemory,lambda p, **kw: Lookahead(AdaMod(p, **kw))],
                         ids=['AdaMod','DiffMod','DeepMemory','Lookahead'])
@pytest.mark.parametrize('at', range(9))
def test_ctrl_c_inside_of_a_step_leaves_no_temporary(opt_func, at, tmp_path):
    "Before each of its step functions in turn"
    learn = quiet(cancer_learner(opt_func, path=tmp_path))
    learn.fit(1, 0.01)
    names,before = [set(s) for s in state_of(learn.opt)],own_cbs(learn)
    def stop(p, **kwargs):
        if learn.train_iter == 3: raise KeyboardInterrupt
    learn.opt.cbs.insert(min(at, len(learn.opt.cbs)), stop)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 0.01)
    learn.opt.cbs.remove(stop)
    assert [set(s) for s in state_of(learn.opt)] == names and own_cbs(learn) == before
    learn.save('q')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.load('q')
    learn.fit(1, 0.01)
