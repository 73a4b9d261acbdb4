"How runs are kept, and looked up"
import json, os, sys, time
from functools import partial

import numpy as np, pandas as pd, pytest
from fastai.callback.core import Callback
from fastai.metrics import ValueMetric
from fastai.optimizer import Adam

from adamod_fastai.compare import compare
from adamod_fastai.compare.arguments import settings
from adamod_fastai.compare.store import Store, key
from adamod_fastai.compare.tasks import digits_learner
from comparisons import Tiny, grid, rows, runs, tiny

once = dict(opts='Adam', lrs=0.1, seeds=1, n_epoch=1)

# --- keeping and resuming

def test_a_file_of_json_for_each_run(tmp_path):
    df = compare(Tiny(), **grid, out=tmp_path)
    kept = runs(tmp_path)
    assert [(o['opt'],o['lr'],o['seed']) for o in kept] == [(o,lr,s) for s in (0,1) for o in ('Adam','SGD') for lr in (1e-2,1e-1)]
    for run in kept:
        row = df[(df.opt==run['opt']) & (df.lr==run['lr']) & (df.seed==run['seed'])].iloc[0]
        assert run['metrics'] == {o: row[o] for o in ('train_loss','valid_loss','mae')} and run['losses'] == row.losses

def test_the_tables_have_first_what_one_looks_for_and_nothing_that_says_nothing(tmp_path):
    df = compare(Tiny(), **grid, out=tmp_path)
    table = pd.read_csv(tmp_path/'results.csv', dtype=dict(mae=str)) # pandas 2 reads the last digit of some numbers wrong
    assert list(table)[:7] == list(df)[:7] == ['task','opt','lr','seed','train_loss','valid_loss','mae']
    assert not {'memory','warmup','cbs'} & set(table) and {'schedule','diverged','batches'} <= set(table)
    losses = pd.read_csv(tmp_path/'losses.csv').groupby('run').loss.agg(list)
    both = table.set_index('run').join(losses).set_index(['opt','lr','seed'])
    for o in df.itertuples():
        row = both.loc[(o.opt,o.lr,o.seed)]
        assert row.loss == o.losses and float(row.mae) == o.mae

def test_interrupted_keeps_what_it_has_and_resumes(tmp_path, capfd):
    want = compare(Tiny(), **grid)
    with pytest.raises(KeyboardInterrupt): compare(Tiny(stop=3), **grid, out=tmp_path)
    kept = runs(tmp_path)
    assert len(kept)==3 and {o['seed'] for o in kept}=={0} and len(rows(tmp_path/'results.csv'))==3
    assert capfd.readouterr().err == ''
    get = Tiny()
    df = compare(get, **grid, out=tmp_path)
    assert capfd.readouterr().err == f'Found 3 of 8 runs in {str(tmp_path)!r}\n'
    assert len(get.made)==8-3 and runs(tmp_path)[:3]==kept and len(rows(tmp_path/'results.csv'))==8
    for o in 'opt lr seed losses train_loss valid_loss mae'.split(): assert df[o].tolist()==want[o].tolist(), o

def test_interrupted_inside_a_run_keeps_no_part_of_it(tmp_path):
    class Stop(Callback):
        def before_batch(self):
            if self.train_iter==3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compare(Tiny(), **once, out=tmp_path, cbs=lambda learn: Stop())
    assert os.listdir(tmp_path) == ['runs'] and not os.listdir(tmp_path/'runs')

@pytest.mark.parametrize('size', [0,10,300])
def test_a_run_is_written_beside_and_then_put_in_its_place(tmp_path, size, monkeypatch):
    "What a full disk has cut off is never taken for a run, nor for a table"
    compare(Tiny(), **once, out=tmp_path)
    table = (tmp_path/'results.csv').read_bytes()
    from pathlib import Path
    write_text = Path.write_text
    def full(self, text, **kwargs):
        write_text(self, text[:size], **kwargs)
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError, match='No space left'): compare(Tiny(), **{**once, 'lrs': [0.1,0.2]}, out=tmp_path)
    monkeypatch.undo()
    assert len(os.listdir(tmp_path/'runs'))==1 and (tmp_path/'results.csv').read_bytes()==table
    assert len(compare(Tiny(), **{**once, 'lrs': [0.1,0.2]}, out=tmp_path))==2

@pytest.mark.parametrize('when', [1,2**33])
def test_tables_are_written_from_the_runs_each_time_whatever_is_there(tmp_path, when):
    "Also if all runs were found, and the table that was cut off is newer by the clock"
    compare(Tiny(), **grid, out=tmp_path)
    want = (tmp_path/'results.csv').read_text()
    (tmp_path/'results.csv').write_text(want[:len(want)//2])
    os.utime(tmp_path/'results.csv', (when,when))
    compare(Tiny(), **grid, out=tmp_path)
    assert (tmp_path/'results.csv').read_text()==want and not [o for o in os.listdir(tmp_path) if o.startswith('.')]

def test_losses_are_read_back_to_the_last_bit(tmp_path):
    a,b = [compare(Tiny(), 'Adam', [1/3], seeds=1, n_epoch=3, out=tmp_path) for _ in range(2)]
    assert a.losses[0]==b.losses[0] and a.lr[0]==b.lr[0]==1/3 and a.valid_loss[0]==b.valid_loss[0] and a.seconds[0]==b.seconds[0]

def test_every_file_is_json_even_of_a_run_that_diverged(tmp_path):
    a,b = [compare(Tiny(), 'SGD', 1e25, seeds=1, n_epoch=20, out=tmp_path) for _ in range(2)]
    def refuse(name): raise ValueError(name)
    for o in (tmp_path/'runs').iterdir(): json.loads(o.read_text(), parse_constant=refuse)
    assert np.isnan([b.mae[0], b.valid_loss[0], b.loss_rise[0], b.losses[0][-1]]).all() and len(a.losses[0])==len(b.losses[0])
    assert a.seconds[0]==b.seconds[0]

def test_a_metric_without_a_number_is_found_again(tmp_path):
    def get_learner(opt_func):
        learn = tiny(opt_func)
        learn.metrics = [ValueMetric(lambda: float('nan'), 'never')]
        return learn
    a,b = [compare(get_learner, **once, out=tmp_path) for _ in range(2)]
    assert a.seconds[0]==b.seconds[0] and np.isnan(b.never[0])

@pytest.mark.parametrize('name', ['a\rb','a\nb','a,"b"','ä\u2028b'])
def test_any_name_can_be_kept(tmp_path, name):
    for n in 1,2:
        df = compare(Tiny(), {name: Adam}, 0.1, seeds=n, n_epoch=1, out=tmp_path)
        assert df.opt.tolist()==[name]*n and len(runs(tmp_path))==n
        assert pd.read_csv(tmp_path/'results.csv').seed.tolist()==list(range(n))

def test_the_first_metric_is_that_of_the_task_whatever_else_is_in_the_folder(tmp_path):
    from adamod_fastai.compare import compare_table
    compare(digits_learner, **once, out=tmp_path)
    df = compare(Tiny(), **once, out=tmp_path)
    assert compare_table(df).equals(compare_table(df, 'mae'))
    both = pd.read_csv(tmp_path/'results.csv')
    for task,metric in dict(tiny='mae', digits_learner='accuracy').items():
        part = both[both.task==task]
        assert compare_table(part).equals(compare_table(part, metric))

@pytest.mark.slow
def test_ten_thousand_runs_are_looked_up_in_seconds(tmp_path):
    base = {**dict.fromkeys(settings, ''), 'n_epoch': 5, 'memory': 0., 'made': dict(model='0'*12, losses=[1/3]*6, metrics=[1/3]*9)}
    wanted = [{**base, 'opt': f'o{i}', 'lr': 10.**-j, 'seed': s} for i in range(100) for j in range(10) for s in range(10)]
    result = dict(metrics=dict(train_loss=1/3, valid_loss=2/3, accuracy=0.5), seconds=1.5, diverged=False, loss_rise=0.1, batches=110,
                  losses=[round(1/(i+3), 6) for i in range(110)])
    (tmp_path/'runs').mkdir()
    for o in wanted: (tmp_path/'runs'/f'{key(o)}-{"0"*12}.json').write_text(json.dumps({**o, **result}))
    start = time.process_time()
    store = Store(tmp_path)
    assert all(store.find(o) for o in wanted)
    assert time.process_time()-start < 6

@pytest.mark.parametrize('change', [dict(n_epoch=2), dict(schedule='flat'), dict(lrs=0.2), dict(seeds=2), dict(cbs=lambda learn: None),
                                    dict(opts={'Adam': partial(Adam, mom=0.5)})])
def test_other_settings_never_mix(tmp_path, change):
    get = Tiny()
    compare(get, **once, out=tmp_path)
    df = compare(get, **{**once, **change}, out=tmp_path)
    assert len(get.made)==2 and len(df)==change.get('seeds', 1) and len(runs(tmp_path))==2
    compare(get, **once, out=tmp_path)
    assert len(get.made)==2

def test_other_task_never_mixes(tmp_path):
    a,b = Tiny(),Tiny()
    b.__name__ = 'other'
    for get in a,b: compare(get, **once, out=tmp_path)
    assert len(a.made)==len(b.made)==1

def test_a_default_that_changed_is_another_run(tmp_path):
    def opt(params, lr, mom=0.9): return Adam(params, lr, mom=mom)
    get = Tiny()
    compare(get, {'mine': opt}, .1, seeds=1, n_epoch=1, out=tmp_path)
    opt.__defaults__ = 0.8,
    compare(get, {'mine': opt}, .1, seeds=1, n_epoch=1, out=tmp_path)
    assert len(get.made)==len(runs(tmp_path))==2

def test_results_of_something_else_are_not_touched(tmp_path):
    (tmp_path/'results.csv').write_text('a\n1\n')
    with pytest.raises(ValueError, match='^Invalid out: .* was not written by compare'): compare(Tiny(), **grid, out=tmp_path)
    assert (tmp_path/'results.csv').read_text()=='a\n1\n' and os.listdir(tmp_path)==['results.csv']

def test_a_file_of_something_else_among_the_runs_is_left_alone(tmp_path):
    (tmp_path/'runs').mkdir()
    (tmp_path/'runs/notes.json').write_text('{"a": 1}')
    assert len(compare(Tiny(), **once, out=tmp_path))==len(rows(tmp_path/'results.csv'))==1

@pytest.mark.parametrize('missing', ['made','losses','metrics','warmup','everything'])
def test_a_run_that_cannot_be_read_is_named(tmp_path, missing):
    compare(Tiny(), **once, out=tmp_path)
    file, = (tmp_path/'runs').iterdir()
    run = json.loads(file.read_text())
    left = {k: v for k,v in run.items() if k != missing}
    file.write_text(json.dumps({'a': 1} if missing == 'everything' else left))
    get = Tiny()
    with pytest.raises(ValueError, match=f'^Invalid out: .*{file.name} was not written by compare'): compare(get, **once, out=tmp_path)
    assert not get.made

# --- the folder

def test_two_comparisons_share_a_folder(tmp_path):
    "What one of them has done, the table of the other has too"
    class Other(Callback):
        def before_fit(self):
            if not (tmp_path/'other').exists():
                (tmp_path/'other').touch()
                compare(Tiny(), 'SGD', 0.1, seeds=2, n_epoch=1, out=tmp_path/'res')
    compare(Tiny(), **once, out=tmp_path/'res', cbs=lambda learn: Other())
    assert sorted((o['opt'],o['seed']) for o in rows(tmp_path/'res/results.csv')) == [('Adam','0'),('SGD','0'),('SGD','1')]

def test_a_folder_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for _ in range(2): compare(Tiny(), **once, out='~/res')
    assert os.listdir(tmp_path)==['res'] and len(runs(tmp_path/'res'))==1

def test_a_task_that_changes_the_folder_does_not_take_the_results_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'else').mkdir()
    def get_learner(opt_func):
        os.chdir(tmp_path/'else')
        return tiny(opt_func)
    compare(get_learner, **once, out='res')
    assert len(runs(tmp_path/'res'))==1 and not os.listdir(tmp_path/'else')

@pytest.mark.parametrize('out', [3, '/proc/new', '/dev/null', '/dev/null/new', '~nobody_there/x'])
def test_an_out_that_is_no_folder(out):
    if str(out).startswith('/proc') and sys.platform != 'linux': return
    get = Tiny()
    with pytest.raises(ValueError, match=rf"^Invalid out: '?{out}'? cannot be used as a folder: (?!\[|None)"): compare(get, **grid, out=out)
    assert not get.made
