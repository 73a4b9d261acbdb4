"One run: what it trains, what comes of it, what is refused"
import math, random
from functools import partial

import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.metrics import ValueMetric, mae
from fastai.optimizer import Adam, Lookahead, SGD

from adamod_fastai.compare import compare, compare_table, plot_losses, plot_metric
from adamod_fastai.optimizer import AdaMod
from adamod_fastai.compare import known_opts
from adamod_fastai.compare.tasks import digits_learner, transformer_learner
from comparisons import N_BATCHES, Tiny, grid, rows, tiny_dls
from learners import used

# What it returns

def test_a_row_per_run():
    df = compare(Tiny(), **grid)
    assert list(zip(df.opt, df.lr, df.seed)) == [(o,lr,s) for o in ('Adam','SGD') for lr in (1e-2,1e-1) for s in (0,1)]
    assert {'train_loss','valid_loss','mae','seconds'} <= set(df.columns)
    assert (df.batches==N_BATCHES).all() and (df.losses.map(len)==N_BATCHES).all() and not df.diverged.any()

def test_results_are_those_of_the_learner():
    get = Tiny()
    df = compare(get, Adam, 1e-2, seeds=1, n_epoch=2)
    learn = get.made[0]
    with learn.no_bar(): valid_loss,mae_ = learn.validate()
    assert df.valid_loss[0] == pytest.approx(valid_loss) and df.mae[0] == pytest.approx(mae_)

@pytest.mark.parametrize('schedule', ['one_cycle','flat','flat_cos'])
def test_schedules(schedule):
    get = Tiny()
    compare(get, 'Adam', 0.1, seeds=1, n_epoch=4, schedule=schedule)
    lrs = np.array(get.made[0].recorder.lrs)
    assert lrs.max() == pytest.approx(0.1, rel=1e-2)
    if schedule=='one_cycle': assert lrs[0] == pytest.approx(0.1/25) and 4 <= lrs.argmax() <= 7 and lrs[-1] < 0.01
    if schedule=='flat':      assert (lrs==lrs[0]).all()
    if schedule=='flat_cos':  assert np.allclose(lrs[:18], 0.1) and lrs[-1] < 0.01

def test_the_rates_and_optimizers_are_used():
    get = Tiny()
    compare(get, {'mine': partial(AdaMod, len_memory=10)}, [0.25], seeds=1, n_epoch=1, schedule='flat')
    hypers = get.made[0].opt.hypers[0]
    assert hypers['lr']==0.25 and hypers['beta3']==pytest.approx(0.9)

def test_known_sgd_has_momentum():
    assert known_opts['SGD']([torch.ones(1)], lr=1).hypers[0]['mom']==0.9

def test_rates_may_be_an_array():
    assert list(compare(Tiny(), 'Adam', np.array([0.5,0.25]), seeds=1, n_epoch=1).lr) == [0.5,0.25]

# Randomness

def test_same_seed_same_run():
    a,b = compare(Tiny(), **grid),compare(Tiny(), **grid)
    assert a.losses.tolist()==b.losses.tolist() and a.mae.tolist()==b.mae.tolist()
    for _,o in a.groupby(['opt','lr']): assert o.losses.iloc[0] != o.losses.iloc[1]

@pytest.mark.parametrize('get', [digits_learner, partial(transformer_learner, n_batches=3)])
def test_same_seed_same_run_on_real_data(get):
    a,b = [compare(get, 'AdaMod', 1e-2, seeds=1, n_epoch=1) for _ in range(2)]
    assert a.losses[0]==b.losses[0] and a.valid_loss[0]==b.valid_loss[0]

def test_same_run_whatever_ran_before_on_shared_dataloaders():
    alone = compare(Tiny(dls=tiny_dls()), 'SGD', 0.1, seeds=2, n_epoch=1)
    after = compare(Tiny(dls=tiny_dls()), 'Adam,SGD', [0.01,0.1], seeds=2, n_epoch=1)
    assert after[(after.opt=='SGD') & (after.lr==0.1)].losses.tolist() == alone.losses.tolist()

def test_random_states_are_left_as_found():
    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item())
    def seed(): random.seed(1); np.random.seed(1); torch.manual_seed(1)
    seed(); want = draw()
    seed(); compare(Tiny(), 'Adam', 0.1, seeds=1, n_epoch=1)
    assert draw()==want

# Divergence

def test_diverged_run_is_a_row(tmp_path):
    get = Tiny()
    df = compare(get, 'SGD', [1e-2,1e25], seeds=1, n_epoch=20, out=tmp_path)
    good,bad = df.iloc[0],df.iloc[1]
    assert not good.diverged and good.batches==20*N_BATCHES and math.isfinite(good.mae)
    assert bad.diverged and bad.batches < N_BATCHES and not math.isfinite(bad.losses[-1])
    assert all(math.isnan(bad[o]) for o in ('train_loss','valid_loss','mae'))
    assert [o['diverged'] for o in rows(tmp_path/'results.csv')] == ['False','True'] and math.isnan(bad.loss_rise)
    again = compare(get, 'SGD', [1e-2,1e25], seeds=1, n_epoch=20, out=tmp_path)
    assert len(get.made)==2 and again.diverged.tolist()==[False,True]

def test_all_diverged_still_tables_and_draws():
    df = compare(Tiny(), 'SGD', 1e25, seeds=2, n_epoch=1)
    assert compare_table(df).loc['SGD','1e+25'].strip() == 'diverged'
    plot_metric(df); plot_losses(df)
    plt.close('all')

def test_divergence_seen_only_in_validation():
    class Break(Callback):
        def after_train(self): self.model[0].bias.data.fill_(math.nan)
    df = compare(Tiny(), 'SGD', 0.1, seeds=1, n_epoch=1, cbs=lambda learn: Break())
    assert df.diverged[0] and df.batches[0]==N_BATCHES

# Callbacks

class Shown(Callback):
    "Adds the metric `shown`, where it stands before the Recorder reads their names"
    order = 49
    def before_fit(self): self.learn.metrics = self.learn.metrics + [ValueMetric(lambda: self.dls.train.bs/2, 'shown')]

made = []
def test_cbs_are_made_for_each_run_and_their_metrics_are_columns(tmp_path):
    def cbs(learn):
        if 'sqr_mom' not in learn.opt.hypers[0]: return None
        made.append(learn)
        learn.mine = Shown()
        return learn.mine
    for n in 4+1,4+2: # each time one trial with Adam
        df = compare(Tiny(), **grid, cbs=cbs, out=tmp_path)
        assert len(made)==len({id(o.mine) for o in made})==n
        assert (df[df.opt=='Adam'].shown==4).all() and df[df.opt=='SGD'].shown.isna().all()
        assert compare_table(df).equals(compare_table(df, 'mae'))

# What is refused

@pytest.mark.parametrize('arg,value,text', [
    ('opts', 'Adamod', "'Adamod'"), ('opts', [], 'opts'), ('opts', {'a': 3}, '3'),
    ('opts', [partial(SGD, mom=1), SGD, lambda p,lr: 0, lambda p,lr: 1], 'lambda'),
    ('lrs', 'fast', "'fast'"), ('lrs', [0.1,-1], '-1'), ('lrs', [math.nan], 'nan'), ('lrs', math.inf, 'inf'),
    ('lrs', [], 'lrs'), ('lrs', 0, '0'),
    ('seeds', 0, '0'), ('seeds', 1.5, '1.5'), ('n_epoch', -1, '-1'), ('n_epoch', None, 'None'), ('schedule', 'cosine', "'cosine'")])
def test_bad_arguments(tmp_path, arg, value, text):
    get = Tiny()
    with pytest.raises(ValueError, match=f'^Invalid {arg}:') as e:
        compare(get, **{**grid, 'schedule':'flat', arg:value}, out=tmp_path/'new')
    assert text in str(e.value) and not get.made and not (tmp_path/'new').exists()

shared = torch.nn.Linear(3,1)
def no_runs(tmp_path): return not (tmp_path/'results.csv').exists()
def learner(opt_func, metrics=mae, model=None):
    return Learner(tiny_dls(), model or torch.nn.Linear(3,1), loss_func=MSELossFlat(), opt_func=opt_func, metrics=metrics)

@pytest.mark.parametrize('get,text', [
    (lambda f: None, 'returns None'), (lambda f: tiny_dls(), 'returns DataLoaders'), (lambda f: learner(Adam), 'does not use the opt_func'),
    *[(lambda f, o=o: learner(f, ValueMetric(lambda: 1., o)), f'a metric called {o!r}') for o in 'lr opt seed losses made run'.split()],
    (lambda f: learner(f, [mae,mae]), "two metrics called 'mae'"), (3, '3')])
@pytest.mark.parametrize('jobs', [None,2])
def test_refused_before_the_first_batch(tmp_path, get, text, jobs):
    with pytest.raises(ValueError, match='^Invalid get_learner: ') as e: compare(get, **grid, out=tmp_path, jobs=jobs)
    assert text in str(e.value) and no_runs(tmp_path)

def test_the_same_model_again_is_refused(tmp_path):
    model = torch.nn.Linear(3,1)
    for get in (lambda f: learner(f, model=model)),(lambda f: learner(f, model=torch.nn.Sequential(model, torch.nn.ReLU()))):
        with pytest.raises(ValueError, match='^Invalid get_learner: .*trained before'): compare(get, **grid, out=tmp_path)
    assert no_runs(tmp_path)

def test_a_frozen_part_may_be_shared():
    body = torch.nn.Linear(3,3).requires_grad_(False)
    assert len(compare(lambda f: learner(f, model=torch.nn.Sequential(body, torch.nn.Linear(3,1))), **grid))==8

def test_the_opt_func_may_be_wrapped():
    get = lambda f: learner(lambda p, **kw: Lookahead(f(p, **kw)))
    assert len(compare(get, **grid))==8
    assert len(compare(lambda f: learner(partial(f, wd=0.1)), **grid))==8

@pytest.mark.parametrize('lrs', [slice(1e-3), slice(1e-3,1e-2), [[1e-3]], np.ones((2,2)), None, {}, 'own', [slice(1)]])
def test_rates_that_are_none(lrs):
    with pytest.raises(ValueError, match='^Invalid lrs: '): compare(Tiny(), 'Adam', lrs)

@pytest.mark.parametrize('cbs', [Callback(), [Callback()], 3])
def test_cbs_that_are_no_function(cbs):
    with pytest.raises(ValueError, match='^Invalid cbs: '): compare(Tiny(), **grid, cbs=cbs)

# --- the memory

def test_clipped_is_measured_where_there_is_a_memory():
    df = compare(Tiny(), {'Adam': known_opts['Adam'], 'AdaMod': known_opts['AdaMod']}, 0.1, seeds=1, n_epoch=2).set_index('opt')
    assert math.isnan(df.clipped['Adam']) and df.clipped['AdaMod'] == 1.

@pytest.mark.parametrize('memory', [None,0.5])
def test_a_memory_that_does_not_clip_is_compared_too(memory):
    df = compare(Tiny(), 'DeepMemory,AdaMod', 0.1, seeds=1, n_epoch=2, memory=memory)
    assert df.clipped.isna().tolist() == [True,False] and df.mae.notna().all()

def test_memory_fits_the_run_and_is_a_setting_of_its_own(tmp_path):
    once = dict(opts='AdaMod-1000', lrs=0.1, seeds=1, n_epoch=10, out=tmp_path)
    default,fitting = compare(Tiny(), **once),compare(Tiny(), **once, memory=0.1)
    assert fitting.clipped[0] < default.clipped[0]
    assert len(rows(tmp_path/'results.csv')) == 2
    assert compare(Tiny(), **once, memory=0.1).seconds[0] == fitting.seconds[0]

def test_several_memories_are_lines_of_their_own(tmp_path):
    df = compare(Tiny(), 'Adam,AdaMod', 0.1, seeds=1, n_epoch=2, memory='own,0.1,2.5', out=tmp_path)
    assert df.opt.tolist() == ['Adam','AdaMod','AdaMod, averaging 10%','AdaMod, averaging 250%']
    assert df.memory.tolist() == [0,0,0.1,2.5]
    again = compare(Tiny(), 'Adam,AdaMod', 0.1, seeds=1, n_epoch=2, memory=[2.5], out=tmp_path)
    assert again.seconds.tolist() == df.seconds.iloc[[0,3]].tolist()

def test_two_lines_of_one_name_are_refused():
    opts = {'AdaMod': AdaMod, 'AdaMod, averaging 10%': AdaMod}
    with pytest.raises(ValueError, match='^Invalid opts: .*No two may have the same name'): compare(Tiny(), opts, 0.1, memory='own,0.1')

def test_an_optimizer_that_cannot_be_made_without_the_model_has_no_averaging_length():
    def mine(params, **kwargs):
        weight,bias = params
        return AdaMod([[weight],[bias]], **kwargs)
    df = compare(Tiny(), {'mine': mine}, 0.1, seeds=1, n_epoch=1, memory=0.1)
    assert df.opt.tolist() == ['mine'] and df.memory.tolist() == [0]

def test_a_memory_is_that_fraction_of_the_run():
    lengths = []
    def see(learn): return SeeMemory(lengths)
    compare(Tiny(), 'AdaMod', 0.1, seeds=1, n_epoch=5, memory=[0.2,2], cbs=see)
    n = 5*len(tiny_dls().train)
    assert lengths == pytest.approx([0.2*n,2*n])

class SeeMemory(Callback):
    order = 70
    def __init__(self, lengths): self.lengths = lengths
    def after_step(self):
        if hasattr(self.learn, 'first_batches'): return # a trial
        if self.epoch==self.train_iter==0: self.lengths.append(1/(1-used(self.opt)[0]['beta3']))

@pytest.mark.parametrize('warmup', [0.25,0.5])
def test_warmup_rises_linearly_and_stays(warmup):
    get = Tiny()
    df = compare(get, 'Adam', 0.1, seeds=1, n_epoch=10, schedule='flat', warmup=warmup)
    assert df.opt[0] == f'Adam, warmup {100*warmup:g}%'
    lrs = np.array(get.made[0].recorder.lrs)
    pcts = np.arange(len(lrs))/len(lrs)
    assert np.allclose(lrs, 0.1*np.minimum(1, pcts/warmup))

def test_a_warmup_that_is_none_changes_nothing():
    a,b = [compare(Tiny(), 'Adam', 0.1, seeds=1, n_epoch=2, schedule='flat', **o) for o in ({},dict(warmup=0))]
    assert a.losses[0]==b.losses[0] and a.opt[0]==b.opt[0]

@pytest.mark.parametrize('warmup', [-0.1,1,math.nan,'long'])
def test_bad_warmup(warmup):
    with pytest.raises(ValueError, match=f'warmup: {warmup!r}'): compare(Tiny(), 'Adam', 0.1, schedule='flat', warmup=warmup)

def test_a_warmup_goes_with_a_flat_schedule():
    with pytest.raises(ValueError, match="warmup: 0.1.*'one_cycle'.*schedule='flat'"): compare(Tiny(), 'Adam', 0.1, warmup=0.1)

def test_loss_rise_is_the_sum_of_all_rises():
    df = compare(Tiny(), 'SGD', 0.1, seeds=1, n_epoch=3)
    weights = [np.array([0.9**(i-j) for j in range(i+1)]) for i in range(len(df.losses[0]))]
    smooth = [np.average(df.losses[0][:len(o)], weights=o) for o in weights]
    assert df.loss_rise[0] == pytest.approx(sum(max(0, b-a) for a,b in zip(smooth, smooth[1:])), rel=1e-4)

@pytest.mark.parametrize('memory', [0,-1,math.nan,math.inf,'much'])
def test_bad_memory(memory):
    with pytest.raises(ValueError, match=f'memory: {memory!r}'): compare(Tiny(), 'AdaMod', 0.1, memory=memory)

def test_one_gets_the_memory_of_a_user():
    lengths = []
    compare(Tiny(), 'AdaMod,AdaMod-1000', 0.1, seeds=1, n_epoch=5, cbs=lambda learn: SeeMemory(lengths))
    assert lengths == pytest.approx([0.15*5*N_BATCHES, 1000])

def test_losses_are_those_of_training(tmp_path):
    get = Tiny()
    df = compare(get, 'SGD', 0.1, seeds=1, n_epoch=3, out=tmp_path)
    smooth,avg = [],0.     # fastai's recorder keeps them smoothed only
    for i,o in enumerate(df.losses[0]):
        avg = 0.98*avg + 0.02*o
        smooth.append(avg/(1-0.98**(i+1)))
    np.testing.assert_allclose(smooth, np.array(get.made[0].recorder.losses), rtol=2e-6)

# --- runs beside and after one another

def same_opt(): return {'a': Adam, 'b': lambda p, **kw: Adam(p, **kw)}

def test_texts_of_a_language_model_come_in_the_same_order_each_time(tmp_path):
    from fastai.text.data import LMDataLoader
    texts = [torch.randint(9, (n,), generator=torch.Generator().manual_seed(n)) for n in range(20, 50)]
    dls = DataLoaders(*(LMDataLoader([(o,) for o in l], bs=4, seq_len=8, shuffle=l is texts) for l in (texts,texts[:5])))
    class Next(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = torch.nn.Embedding(9, 9)
        def forward(self, x): return self.emb(x).flatten(0, 1)
    loss = lambda p, t: torch.nn.functional.cross_entropy(p, t.flatten())
    df = compare(lambda f: Learner(dls, Next(), loss_func=loss, opt_func=f), same_opt(), 0.1, seeds=2, n_epoch=2, out=tmp_path)
    a,b = [df[df.opt==o] for o in 'ab']
    assert a.losses.tolist() == b.losses.tolist() and a.losses.iloc[0] != a.losses.iloc[1]

def test_a_shared_body_that_a_fit_has_unfrozen_is_refused():
    body = torch.nn.Linear(3, 8)
    def get_learner(opt_func):
        learn = Learner(Tiny()(Adam).dls, torch.nn.Sequential(body, torch.nn.Linear(8, 1)), loss_func=MSELossFlat(), opt_func=opt_func,
                        splitter=lambda m: [list(o.parameters()) for o in m])
        learn.freeze()
        return learn
    assert len(compare(get_learner, same_opt(), 0.1, seeds=1, n_epoch=1)) == 2 # it stays frozen
    with pytest.raises(ValueError, match='a model that was trained before'):
        compare(get_learner, same_opt(), 0.1, seeds=1, n_epoch=1, schedule='fine_tune')

def test_runs_side_by_side_do_not_load_what_others_save(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    def cbs(learn):
        folders.append(learn.path/learn.model_dir)
        return SaveModelCallback()
    get = Tiny()
    compare(get, 'Adam', [1e-2,1e-1], seeds=1, n_epoch=1, cbs=cbs)
    assert len({*folders}) == 1+2 and not any(o.exists() for o in folders) and not any(tmp_path.iterdir())

def test_fine_tune_keeps_the_losses_of_both_fits():
    df = compare(Tiny(), 'SGD', 0.1, seeds=1, n_epoch=2, schedule='fine_tune')
    assert df.batches[0] == len(df.losses[0]) == 3*N_BATCHES

@pytest.mark.parametrize('cbs', [TerminateOnNaNCallback,TerminateOnNaNCallback()], ids=['class','instance'])
def test_a_callback_is_no_function_that_makes_some(cbs):
    with pytest.raises(ValueError, match='Invalid cbs: .*TerminateOnNaN'): compare(Tiny(), 'Adam', 0.1, cbs=cbs)

def test_a_learner_is_no_function_that_makes_one():
    with pytest.raises(ValueError, match='Invalid get_learner: Learner'): compare(Tiny()(Adam), 'Adam', 0.1)

def test_a_function_may_look_at_the_name_of_its_opt_func():
    names = []
    def get_learner(opt_func):
        names.append(opt_func.__name__)
        return Tiny()(opt_func)
    compare(get_learner, 'Adam', 0.1, seeds=1, n_epoch=1)
    assert set(names) == {'Adam'}

# --- interrupted

@pytest.mark.parametrize('out', [None,'res'])
def test_interrupted_in_a_notebook_hands_back_what_is_done(tmp_path, monkeypatch, capfd, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('adamod_fastai.compare.sweep.IN_NOTEBOOK', True)
    df = compare(Tiny(stop=3), **grid, out=out)
    err = capfd.readouterr().err.splitlines()[-1]
    assert len(df)==3 and err.startswith('Interrupted: 3 of 8 runs are done') and ('out=' in err) == (out is None)
    assert compare_table(df).shape == (2,2)

def test_interrupted_elsewhere_says_how_to_keep_it():
    with pytest.raises(KeyboardInterrupt, match='^3 of 8 runs are done. They are not saved: pass out=') as e: compare(Tiny(stop=3), **grid)
    assert e.value.__suppress_context__
