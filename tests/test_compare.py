"`compare`: what it trains, keeps, resumes, tables and draws, and its console command"
import csv, math, multiprocessing, os, random, signal, subprocess, sys, time, warnings
from collections import deque
from functools import partial

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, torch
from torch.utils.data import TensorDataset
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, mk_metric
from fastai.losses import MSELossFlat
from fastai.metrics import ValueMetric, mae
from fastai.optimizer import Adam, Lookahead, SGD

from adamod_fastai.compare import compare, compare_table, main, plot_losses, plot_metric
from adamod_fastai.optimizer import AdaMod
from adamod_fastai.runs import known_opts
from adamod_fastai.tasks import cancer_learner, densenet_learner, digits_dls, digits_learner, text_dls, text_learner, transformer_learner

N_BATCHES = 6

class Tiny:
    "Linear regression in 6 batches an epoch; keeps the Learners it made, and interrupts like Ctrl-C when it is to make number `stop`"
    __name__ = 'tiny'
    def __init__(self, stop=None, dls=None): self.made,self.stop,self.dls = [],stop,dls
    def __call__(self, opt_func):
        if len(self.made)==self.stop: raise KeyboardInterrupt
        learn = Learner(self.dls or tiny_dls(), torch.nn.Sequential(torch.nn.Linear(3,1), torch.nn.Dropout(0.1)), loss_func=MSELossFlat(),
                        opt_func=opt_func, metrics=mae)
        self.made.append(learn)
        return learn

def tiny_dls():
    x = torch.linspace(-1, 1, 3*8*N_BATCHES).view(-1,3).sin()
    ds = TensorDataset(x, x.sum(1, keepdim=True))
    return DataLoaders(DataLoader(ds, bs=8, shuffle=True), DataLoader(ds, bs=8))

def rows(path):
    with open(path, newline='') as f: return list(csv.DictReader(f))

grid = dict(opts=['Adam','SGD'], lrs=[1e-2,1e-1], seeds=2, n_epoch=1)

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

@pytest.mark.parametrize('get', [digits_learner, partial(text_learner, n_batches=3)])
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
    assert [o['diverged'] for o in rows(tmp_path/'results.csv')] == ['False','True']
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

# Keeping and resuming

def test_interrupted_keeps_what_it_has_and_resumes(tmp_path):
    want = compare(Tiny(), **grid)
    with pytest.raises(KeyboardInterrupt): compare(Tiny(stop=3), **grid, out=tmp_path)
    kept = rows(tmp_path/'results.csv')
    assert len(kept)==3 and {o['seed'] for o in kept}=={'0'}
    get = Tiny()
    df = compare(get, **grid, out=tmp_path)
    assert len(get.made)==8-3 and len(rows(tmp_path/'results.csv'))==8
    for o in 'opt lr seed losses train_loss valid_loss mae'.split(): assert df[o].tolist()==want[o].tolist(), o
    for o in kept: assert o in rows(tmp_path/'results.csv')

def test_interrupted_inside_a_run_keeps_no_part_of_it(tmp_path):
    class Stop(Callback):
        def before_batch(self):
            if self.iter==3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compare(Tiny(), 'Adam', 0.1, seeds=1, n_epoch=1, out=tmp_path, cbs=lambda learn: Stop())
    assert not (tmp_path/'results.csv').exists() and not (tmp_path/'losses.csv').exists()

@pytest.mark.parametrize('name', ['results.csv','losses.csv'])
@pytest.mark.parametrize('cut', [1,2,7])
def test_partial_last_line(tmp_path, name, cut):
    want = compare(Tiny(), **grid, out=tmp_path)
    lines = (tmp_path/'results.csv').read_text().splitlines()
    (tmp_path/name).write_text((tmp_path/name).read_text()[:-cut])
    if name=='losses.csv': (tmp_path/'results.csv').write_text('\n'.join(lines[:-1])+'\n')
    get = Tiny()
    df = compare(get, **grid, out=tmp_path)
    assert len(get.made)==1
    assert df.losses.tolist()==want.losses.tolist() and df.mae.tolist()==want.mae.tolist()
    with open(tmp_path/'results.csv', newline='') as f: fields = [len(o) for o in csv.reader(f)]
    assert len(fields)==1+8 and len(set(fields))==1
    assert len(rows(tmp_path/'losses.csv'))==8*N_BATCHES

def test_killed_before_the_first_line_was_whole(tmp_path):
    (tmp_path/'results.csv').write_text('run,opt,l')
    assert len(compare(Tiny(), **grid, out=tmp_path))==8
    assert len(rows(tmp_path/'results.csv'))==8

def test_losses_are_read_back_to_the_last_bit(tmp_path):
    a,b = [compare(Tiny(), 'Adam', [1/3], seeds=1, n_epoch=3, out=tmp_path) for _ in range(2)]
    assert a.losses[0]==b.losses[0] and a.lr[0]==b.lr[0]==1/3 and a.valid_loss[0]==b.valid_loss[0] and a.seconds[0]==b.seconds[0]

@pytest.mark.parametrize('change', [dict(n_epoch=2), dict(schedule='flat'), dict(lrs=0.2), dict(seeds=2), dict(cbs=lambda learn: None),
                                    dict(opts={'Adam': partial(Adam, mom=0.5)})])
def test_other_settings_never_mix(tmp_path, change):
    base,get = dict(opts='Adam', lrs=0.1, seeds=1, n_epoch=1),Tiny()
    compare(get, **base, out=tmp_path)
    df = compare(get, **{**base, **change}, out=tmp_path)
    assert len(get.made)==2 and len(df)==change.get('seeds', 1) and len(rows(tmp_path/'results.csv'))==2
    compare(get, **base, out=tmp_path)
    assert len(get.made)==2

def test_other_task_never_mixes(tmp_path):
    a,b = Tiny(),Tiny()
    b.__name__ = 'other'
    for get in a,b: compare(get, 'Adam', 0.1, seeds=1, n_epoch=1, out=tmp_path)
    assert len(a.made)==len(b.made)==1

def test_results_of_something_else_are_not_touched(tmp_path):
    (tmp_path/'results.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match='was not written by compare'): compare(Tiny(), **grid, out=tmp_path)
    assert (tmp_path/'results.csv').read_text()=='a,b\n1,2\n' and os.listdir(tmp_path)==['results.csv']

# Callbacks

class Shown(Callback):
    "Adds the metric `shown`, where it stands before the Recorder reads their names"
    order = 49
    def before_fit(self): self.learn.metrics = self.learn.metrics + [ValueMetric(lambda: self.dls.train.bs/2, 'shown')]

def test_cbs_are_made_for_each_run_and_their_metrics_are_columns(tmp_path):
    made = deque() # a list would be part of what the run was
    def cbs(learn):
        if 'sqr_mom' not in learn.opt.hypers[0]: return None
        made.append(Shown())
        return made[-1]
    for _ in range(2):
        df = compare(Tiny(), **grid, cbs=cbs, out=tmp_path)
        assert len(made)==len(set(map(id, made)))==4
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

# The table and the pictures

def frame(**diverged):
    "Two optimizers at two rates with three seeds, and numbers one can check by hand"
    acc = {('A',0.1): (.5,.6,.7), ('A',1.): (.9,.9,.9), ('B',0.1): (.1,.2,.3), ('B',1.): (.95,.85,math.nan)}
    return pd.DataFrame([dict(opt=o, lr=lr, seed=s, train_loss=1., valid_loss=1-a, accuracy=a, seconds=1., diverged=math.isnan(a),
                              batches=20, losses=[2.]*20 if o=='A' else [4.,2.]*10) 
                         for (o,lr),accs in acc.items() for s,a in enumerate(accs)])

def test_table():
    t = compare_table(frame())
    assert isinstance(t, pd.DataFrame) and list(t.index)==['A','B'] and list(t.columns)==['0.1','1']
    assert t.loc['A','0.1'].split()==['0.600','±','0.100','*'] and t.loc['B','0.1'].split()==['0.200','±','0.100']
    assert t.loc['A','1'].split()==['0.900','±','0.000','*']
    assert '1 of 3 diverged' in t.loc['B','1'] and '*' not in t.loc['B','1']

def test_table_of_losses_marks_the_lowest():
    t = compare_table(frame(), 'valid_loss')
    assert t.loc['A','0.1'].split()==['0.400','±','0.100','*'] and '*' not in t.loc['B','0.1']

def test_table_of_one_seed_has_no_spread():
    df = frame()
    assert '±' not in compare_table(df[df.seed==0]).to_string()

def test_unknown_metric():
    with pytest.raises(ValueError, match="Invalid metric: 'f1'"): compare_table(frame(), 'f1')

def test_plot_metric():
    ax = plt.subplots()[1]
    assert plot_metric(frame(), ax=ax) is ax
    assert ax.get_xscale()=='log' and ax.get_xlabel()=='learning rate' and ax.get_ylabel()=='accuracy'
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['A','B']
    means = [c.lines[0].get_ydata() for c in ax.containers]
    assert np.allclose(means[0], [.6,.9]) and np.allclose(means[1], [.2,.9])
    low,high = [o[:,1] for o in ax.containers[0].lines[2][0].get_segments()][0]
    assert (low,high)==pytest.approx((.5,.7))
    plt.close('all')

def test_plot_losses():
    ax = plt.subplots()[1]
    assert plot_losses(frame(), ax=ax) is ax
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['A, lr 1','B, lr 1 (diverged)']
    a,b = [o.get_ydata() for o in ax.get_lines()]
    assert np.allclose(a, 2) and b[0]==pytest.approx(4) and b[1]==pytest.approx((4*.9+2)/1.9) and len(b)==20
    plt.close('all')

def test_plot_losses_at_a_rate():
    ax = plot_losses(frame(), lr=0.1)
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['A','B']
    with pytest.raises(ValueError, match='Invalid lr: 5'): plot_losses(frame(), lr=5)
    plt.close('all')

# What is where

def test_all_has_what_a_user_types():
    names = {}
    exec('from adamod_fastai.all import *', names)
    assert {'compare','compare_table','plot_metric','plot_losses','known_opts','AdaMod','FusedOptimizer','ClippedFraction'} <= set(names)
    assert not [o for o in names if o=='main' or o.endswith(('_dls','_learner'))]

# The data

def test_digits():
    from sklearn.datasets import load_digits
    dls = digits_dls()
    x = torch.cat([dls.train_ds.tensors[0], dls.valid_ds.tensors[0]])
    assert len(x)==1797 and len(dls.train)==22 and len(dls.vocab)==dls.c==10
    key = lambda o: sorted(o.flatten(1).mul(16).round().int().tolist())
    assert key(x)==sorted(load_digits().data.astype(int).tolist())
    xb,yb = dls.train.one_batch()
    assert xb.shape==(64,1,8,8) and yb.shape==(64,) and 0 <= xb.min() and xb.max()==1

def test_text_targets_are_the_next_characters():
    from pydoc_data.topics import topics
    dls,text = text_dls(),'\n'.join(topics.values())
    for dl in dls:
        x,y = dl.one_batch()
        decode = lambda o: ''.join(dls.vocab[i] for i in o)
        for xb,yb in zip(x[:5], y[:5]): assert len(xb)==32 and decode(xb)+decode(yb)[-1] in text and torch.equal(xb[1:], yb[:-1])
    assert len(dls.train)==60 and len({tuple(o.tolist()) for x,_ in dls.train for o in x}) > 900
    train,valid = [''.join(dls.vocab[i] for i in ds.tensors[0].flatten()) for ds in (dls.train_ds,dls.valid_ds)]
    assert text.startswith(train+valid) and len(valid) > 0.09*len(text) and len(text)-len(train+valid) <= 32

def test_transformer_does_not_see_ahead():
    learn = text_learner()
    model = learn.model.eval()
    x = learn.dls.one_batch()[0][:2]
    changed = x.clone()
    changed[:,20:] = (changed[:,20:]+1) % learn.dls.c
    with torch.no_grad(): a,b = model(x),model(changed)
    assert torch.allclose(a[:,:20], b[:,:20], atol=1e-5) and not torch.allclose(a[:,20:], b[:,20:], atol=1e-2)

def test_the_small_transformer_is_that_of_torch():
    "The same weights in torch's own post-norm layers give the same"
    learn = transformer_learner(n_layers=3)
    model,d = learn.model.eval(),32
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(d, 2, 128, dropout=0., batch_first=True), 3).train()
    names = ['self_attn.in_proj_','self_attn.out_proj.','norm1.','linear1.','linear2.','norm2.']
    with torch.no_grad():
        for layer,ws in zip(encoder.layers, zip(*model.layers), strict=True):
            for o,w in zip((f'{o}{k}' for o in names for k in ('weight','bias')), ws, strict=True): layer.get_parameter(o).copy_(w)
        x = learn.dls.one_batch()[0]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        want = encoder(model.emb[x]*d**0.5 + model.pos, mask=mask, is_causal=True) @ model.head.T + model.bias
        assert x.shape==(16,16) and torch.allclose(model(x), want, atol=1e-4)

@pytest.mark.parametrize('n_layers', [2,8,12])
def test_the_small_transformer_has_16_tensors(n_layers):
    ps = list(transformer_learner(n_layers=n_layers).model.parameters())
    matrices = [w for p in ps if p.dim()==3 for w in p.data]
    assert len(ps)==16 and len(matrices)==4*n_layers
    for w in matrices: assert w.abs().max()==pytest.approx((6/sum(w.shape))**0.5, rel=0.1)
    assert len({tuple(w.flatten()[:5].tolist()) for w in matrices})==len(matrices)
    far,near = [transformer_learner(pos_std=o).model.pos.std().item() for o in (None,0.02)]
    assert far==pytest.approx((2/48)**0.5, rel=0.1) and near==pytest.approx(0.02, rel=0.1)

def test_the_small_transformer_validates_on_blocks_from_all_of_the_last_tenth():
    dls,whole = transformer_learner().dls,text_dls(16, 16)
    seen,last = [{tuple(o.tolist()) for x,_ in o.valid for o in x} for o in (dls,whole)][0],whole.valid_ds.tensors[0]
    places = [i for i,o in enumerate(last) if tuple(o.tolist()) in seen]
    assert sum(len(x) for x,_ in dls.valid)==512 and places[0] < 10 and places[-1] > 0.85*len(last)
    assert len(dls.train)==40

def test_digits_are_learned():
    assert compare(digits_learner, 'Adam', 1e-2, seeds=1, n_epoch=2).accuracy[0] > 0.8

# The command

env = {**{k:v for k,v in os.environ.items() if k not in ('DISPLAY','MPLBACKEND')}, 'PYTHONIOENCODING':'utf-8'}
command = [sys.executable, '-c', 'from adamod_fastai.compare import main; main()']

def run(args, cwd): return subprocess.run(command+args, cwd=cwd, env=env, capture_output=True, text=True, encoding='utf-8', timeout=300)

bad_args = {'unknown optimizer': (['--opts','AdaMod,Adamod'], "'Adamod'"), 'unknown task': (['--task','images'], "'images'"),
            'unknown schedule': (['--schedule','cosine'], "'cosine'"), 'unreadable rate': (['--lrs','1e-3,fast'], "'fast'"),
            'negative rate': (['--lrs=-1'], "'-1'"), 'no epochs': (['--epochs','0'], "'0'"), 'half a seed': (['--seeds','1.5'], "'1.5'"),
            'out is a file': (['--out','taken'], "'taken'"), 'out in a file': (['--out','taken/new'], 'taken'),
            'unknown option': (['--rate','1'], '--rate'),
            'no jobs': (['--jobs','0'], "'0'"), 'warm-up of one cycle': (['--task','digits','--warmup','0.1'], 'one_cycle'),
            'unknown memory': (['--memory','long'], "'long'"), 'both ways': (['--lower','--higher'], '--higher'),
            'no such file': (['--task','my_file.py:get_learner'], "no file 'my_file.py'"),
            'no such module': (['--task','nowhere.at_all:get'], "'nowhere'"),
            'no such function': (['--task','adamod_fastai.tasks:learner'], "no function 'learner' in 'adamod_fastai.tasks'"),
            'a file with a mistake': (['--task','digits,taken.py:get'], 'SyntaxError')}

taken = ['taken','taken.py']

class Result:
    def __init__(self, returncode, stdout, stderr): self.returncode,self.stdout,self.stderr = returncode,stdout,stderr

@pytest.fixture
def here(capfd, monkeypatch):
    "The command in this process, in the folder `cwd`"
    path,modules = list(sys.path),set(sys.modules)
    def run(args, cwd):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        try: code = main(args) or 0
        except SystemExit as e: code = e.code or 0
        return Result(code, *capfd.readouterr())
    yield run
    sys.path[:] = path
    for o in set(sys.modules)-modules:
        if 'my_' in o or o == 'sub': sys.modules.pop(o)

@pytest.mark.slow
@pytest.mark.parametrize('name', bad_args)
def test_command_refuses(here, tmp_path, name):
    for o in taken: (tmp_path/o).write_text('mine is')
    args,text = bad_args[name]
    res = here(args, tmp_path)
    assert res.returncode==2 and res.stdout==''
    assert len(res.stderr.splitlines())==1 and res.stderr.startswith('adamod-compare: ') and text in res.stderr
    assert sorted(o for o in os.listdir(tmp_path) if o != '__pycache__')==taken and (tmp_path/'taken').read_text()=='mine is'

@pytest.mark.slow
def test_command(tmp_path, here):
    args = '--task digits --opts Adam,AdaMod --lrs 1e-2,1e-1 --epochs 1 --seeds 2 --schedule flat --out res'.split()
    res = run(args, tmp_path)
    assert (res.returncode,res.stderr)==(0,'')
    out = tmp_path/'res'
    assert sorted(os.listdir(out))==['digits_accuracy.png','digits_losses.png','losses.csv','results.csv']
    for o in os.listdir(out): assert os.path.join('res', o) in res.stdout.splitlines()[-1]
    for o in out.glob('*.png'): assert o.read_bytes()[:8]==b'\x89PNG\r\n\x1a\n'
    runs = rows(out/'results.csv')
    assert {(o['opt'],float(o['lr']),o['seed']) for o in runs} == {(o,lr,s) for o in ('Adam','AdaMod') for lr in (.01,.1) for s in '01'}
    assert len(runs)==8 and {o['batches'] for o in runs}=={'22'} and {(o['schedule'],o['n_epoch']) for o in runs}=={('flat','1')}
    acc = np.array([float(o['accuracy']) for o in runs if (o['opt'],float(o['lr']))==('Adam',.01)])
    line = next(o for o in res.stdout.splitlines() if o.startswith('Adam '))
    assert f'{acc.mean():.3f} ± {acc.std(ddof=1):.3f}' in line
    before = (out/'results.csv').read_bytes()
    again = here([*args, '--jobs', '1'], tmp_path)
    assert again.stdout==res.stdout and (out/'results.csv').read_bytes()==before
    low = here([*args, '--metric', 'accuracy', '--lower'], tmp_path).stdout
    worst = lambda text: [k for k in ('Adam ','AdaMod') if next(o for o in text.splitlines() if o.startswith(k))[:30].count('*')]
    assert len(worst(low))==1 and worst(low) != worst(res.stdout)
    assert 'valid_loss, mean' in here([*args, '--metric', 'valid_loss'], tmp_path).stdout and (out/'digits_valid_loss.png').exists()

@pytest.mark.slow
def test_command_alone_runs_two_tasks(tmp_path, here):
    res = here(['--seeds','1','--epochs','1','--opts','Adam,AdaMod,AdaMod-1000'], tmp_path)
    assert (res.returncode,res.stderr)==(0,'')
    runs = pd.read_csv(tmp_path/'adamod-compare'/'results.csv')
    assert sorted(set(zip(runs.task, runs.schedule)))==[('digits_learner','one_cycle'),('transformer_learner','flat')]
    assert len(runs)==2*3*3 and sorted(runs[runs.task=='transformer_learner'].lr.unique())==[1e-3,3e-3,1e-2]
    assert set(runs[runs.opt=='AdaMod'].opt_func)=={'AdaMod'} and set(runs[runs.opt=='AdaMod-1000'].opt_func)=={'AdaMod(len_memory=1000)'}
    assert set(runs[runs.opt!='Adam'].memory)=={0}
    tables = res.stdout.split('\n\n')
    assert len(tables)==5 and tables[0].startswith('digits, one_cycle') and tables[2].startswith('transformer, flat')
    for o in tables[1],tables[3]: assert [k.split()[0] for k in o.splitlines()]==['lr','Adam','AdaMod','AdaMod-1000']
    pictures = [f'{a}_{b}.png' for a in ('digits','transformer') for b in ('accuracy','losses')]
    assert sorted(o.name for o in (tmp_path/'adamod-compare').glob('*.png'))==pictures

def test_command_help(here):
    res = here(['--help'], '.')
    options = res.stdout[:res.stdout.index('examples:')].split('\n  --')[1:]
    assert res.returncode==0 and len(options)==13
    for o in options: assert o.count('default') == (0 if o.startswith('lower') else 1), o
    assert 'adamod-compare --task my_file.py:get_learner' in res.stdout

my_file = """
from fastai.basics import *
from my_data import dls
class Odd(Exception): pass
def loss(a, b): return (a-b).abs().mean()
def get_learner(opt_func): return Learner(dls(), nn.Linear(3,1), loss_func=loss, opt_func=opt_func, metrics=[mae, loss])
def no_learner(opt_func): return 3
def raises(opt_func): raise ValueError('of mine')
def dies(opt_func): import os; os._exit(9)
"""
my_data = """
import torch
from torch.utils.data import TensorDataset
from fastai.basics import *
def dls():
    x = torch.linspace(-1, 1, 3*48).view(-1,3).sin()
    ds = TensorDataset(x, x.sum(1, keepdim=True))
    return DataLoaders(DataLoader(ds, bs=8, shuffle=True), DataLoader(ds, bs=8))
"""

@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    d = tmp_path_factory.mktemp('mine')
    (d/'sub').mkdir()
    for o in d,d/'sub':
        (o/'my_file.py').write_text(my_file)
        (o/'my_data.py').write_text(my_data)
    return d

few = '--opts Adam,SGD --lrs 1e-2,1e-1 --epochs 1 --seeds 2 --jobs 2'.split()

@pytest.mark.parametrize('task', ['my_file.py:get_learner','sub/my_file.py:get_learner','my_file:get_learner','sub.my_file:get_learner'])
def test_command_compares_on_my_own_task(mine, tmp_path, here, task):
    if task.startswith('sub.'): (mine/'sub'/'my_file.py').write_text(my_file.replace('my_data','sub.my_data'))
    res = here(['--task',task,*few,'--out',str(tmp_path)], mine)
    assert (res.returncode,res.stderr)==(0,'')
    runs = rows(tmp_path/'results.csv')
    assert len(runs)==8 and {o['task'] for o in runs}=={'get_learner'} and {o['schedule'] for o in runs}=={'one_cycle'}
    assert res.stdout.startswith(f'{task}, one_cycle, 1 epochs: mae, ')
    best = min(('Adam','SGD'), key=lambda k: sum(float(o['mae']) for o in runs if (o['opt'],float(o['lr']))==(k,.01)))
    first = next(o for o in res.stdout.splitlines() if o.startswith(best))
    assert '*' in first[:30]
    assert len(list(tmp_path.glob('*get_learner_mae.png')))==1

@pytest.mark.parametrize('task,code,text', [('my_file.py:no_learner',2,'returns 3, it must return a Learner'),
    ('my_file:dies',2,'seed 0 died (exit code 9)'),
                                                            ('my_file.py:missing',2,"no function 'missing'")])
def test_command_says_what_is_wrong_with_my_task(mine, tmp_path, here, task, code, text):
    res = here(['--task',task,*few,'--out',str(tmp_path)], mine)
    assert res.returncode==code and res.stdout=='' and text in res.stderr and len(res.stderr.splitlines())==1

def test_a_mistake_in_my_task_is_shown_where_it_is(mine, tmp_path, here):
    with pytest.raises(ValueError, match='of mine') as e: here(['--task','my_file.py:raises',*few,'--out',str(tmp_path)], mine)
    assert 'in raises' in str(e.value.__cause__)

def test_command_runs_a_file_that_changed_anew(tmp_path, here):
    def task(text):
        (tmp_path/'my_file.py').write_text(text)
        res = here(['--task','my_file.py:get_learner','--opts','Adam','--lrs','.1','--epochs','1','--seeds','1'], tmp_path)
        assert res.returncode==0
        return len(rows(tmp_path/'adamod-compare'/'results.csv'))
    (tmp_path/'my_data.py').write_text(my_data)
    assert [task(o) for o in (my_file, my_file+'\nunused = 1', my_file.replace('.mean()','.sum()'))]==[1,1,2]

@pytest.mark.slow
@pytest.mark.skipif(sys.platform=='win32', reason='sends SIGINT')
@pytest.mark.parametrize('jobs', ['1','2'])
def test_command_interrupted(tmp_path, jobs):
    "The handler is set, because a shell's background job ignores SIGINT"
    args = ['--seeds','1','--opts','Adam,AdaMod','--epochs','2','--jobs',jobs]
    p = subprocess.Popen(command+args, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         start_new_session=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    path,start = tmp_path/'adamod-compare'/'results.csv',time.time()
    while not path.exists() and time.time()-start < 120: time.sleep(0.1)
    os.killpg(p.pid, signal.SIGINT) # as a terminal does: all of its processes
    out,err = p.communicate(timeout=120)
    assert p.returncode==130 and out=='' and len(err.splitlines())==1 and 'interrupted' in err
    with pytest.raises(ProcessLookupError): os.killpg(p.pid, 0)
    before = rows(path)
    assert 1 <= len(before) < 12
    res = run(args, tmp_path)
    after = rows(path)
    assert (res.returncode,res.stderr,len(after))==(0,'',12)
    assert {(o['opt'],o['lr'],o['seconds']) for o in before} <= {(o['opt'],o['lr'],o['seconds']) for o in after}

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
    assert len(pd.read_csv(tmp_path/'results.csv')) == 2
    assert compare(Tiny(), **once, memory=0.1).seconds[0] == fitting.seconds[0]

def test_several_memories_are_lines_of_their_own(tmp_path):
    df = compare(Tiny(), 'Adam,AdaMod', 0.1, seeds=1, n_epoch=2, memory='own,0.1,2.5', out=tmp_path)
    assert df.opt.tolist() == ['Adam','AdaMod','AdaMod, memory 10%','AdaMod, memory 250%']
    assert df.memory.tolist() == [0,0,0.1,2.5]
    again = compare(Tiny(), 'Adam,AdaMod', 0.1, seeds=1, n_epoch=2, memory=[2.5], out=tmp_path)
    assert again.seconds.tolist() == df.seconds.iloc[[0,3]].tolist()

def test_a_memory_is_that_fraction_of_the_run():
    lengths = []
    def see(learn): return SeeMemory(lengths)
    compare(Tiny(), 'AdaMod', 0.1, seeds=1, n_epoch=5, memory=[0.2,2], cbs=see)
    n = 5*len(tiny_dls().train)
    assert lengths == pytest.approx([0.2*n,2*n])

class SeeMemory(Callback):
    order = 70
    def __init__(self, lengths): self.lengths = lengths
    def before_train(self):
        if self.epoch==0: self.lengths.append(1/(1-self.opt.hypers[0]['beta3']))

@pytest.mark.parametrize('warmup', [0.25,0.5])
def test_warmup_rises_linearly_and_stays(warmup):
    get = Tiny()
    df = compare(get, 'Adam', 0.1, seeds=1, n_epoch=10, schedule='flat', warmup=warmup)
    assert df.opt[0] == f'Adam, warm-up {100*warmup:g}%'
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
    with pytest.raises(ValueError, match="warmup: 0.1.*'flat', not 'one_cycle'"): compare(Tiny(), 'Adam', 0.1, warmup=0.1)

def test_loss_rise_is_the_sum_of_all_rises():
    df = compare(Tiny(), 'SGD', 0.1, seeds=1, n_epoch=3)
    weights = [np.array([0.9**(i-j) for j in range(i+1)]) for i in range(len(df.losses[0]))]
    smooth = [np.average(df.losses[0][:len(o)], weights=o) for o in weights]
    assert df.loss_rise[0] == pytest.approx(sum(max(0, b-a) for a,b in zip(smooth, smooth[1:])), rel=1e-4)

@pytest.mark.slow
@pytest.mark.parametrize('get,n', [(densenet_learner,1198), (cancer_learner,285)])
def test_the_other_tasks_train(get, n):
    learn = get(known_opts['Adam'])
    assert len(learn.dls.valid_ds) == n and len(learn.dls.train_ds)+n in (1797,569)
    df = compare(get, 'Adam', 1e-2, seeds=1, n_epoch=2)
    assert df.accuracy[0] > 0.8

def test_no_row_is_in_both_parts():
    for get in densenet_learner,cancer_learner,digits_learner:
        both = get().dls.train_ds,get().dls.valid_ds
        train,valid = [{tuple(torch.cat([o.flatten().double() for o in row[:-1]]).tolist()) for row in ds} for ds in both]
        assert not train & valid

@pytest.mark.parametrize('memory', [0,-1,math.nan,math.inf,'much'])
def test_bad_memory(memory):
    with pytest.raises(ValueError, match=f'memory: {memory!r}'): compare(Tiny(), 'AdaMod', 0.1, memory=memory)

# --- side by side

@pytest.fixture
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

same = 'opt lr seed losses train_loss valid_loss mae memory warmup diverged'.split()

@pytest.mark.parametrize('jobs', [1,2,5])
def test_a_run_does_not_depend_on_jobs(tmp_path, one_thread, jobs):
    want = compare(Tiny(), **grid)
    df = compare(Tiny(), **grid, jobs=jobs, out=tmp_path)
    for o in same: assert df[o].tolist()==want[o].tolist(), o
    runs = rows(tmp_path/'results.csv')
    assert sorted(int(o['run']) for o in runs)==list(range(8)) and len(rows(tmp_path/'losses.csv'))==8*N_BATCHES

@pytest.mark.slow
def test_a_run_does_not_depend_on_how_a_process_starts(monkeypatch, one_thread):
    args = dict(opts='AdaMod', lrs=1e-2, seeds=2, n_epoch=1)
    want = compare(digits_learner, **args)
    forked = compare(digits_learner, **args, jobs=2)
    monkeypatch.setattr('adamod_fastai.runs._can_fork', lambda: False)
    spawned = compare(digits_learner, **args, jobs=2)
    for df in forked,spawned: assert df.losses.tolist()==want.losses.tolist() and df.accuracy.tolist()==want.accuracy.tolist()
    with pytest.raises(ValueError, match='^Invalid jobs: 2, .*importable'): compare(lambda f: digits_learner(f), **args, jobs=2)

def test_jobs_are_processes_of_one_thread(one_thread):
    torch.set_num_threads(2)
    class See(Callback):
        def before_fit(self): self.learn.metrics = [ValueMetric(lambda: torch.get_num_threads(), 'threads'), ValueMetric(os.getpid, 'pid')]
        order = 49
    def run(jobs): return compare(Tiny(), 'Adam', [.1,.2], seeds=2, n_epoch=1, cbs=lambda learn: See(), jobs=jobs)
    one,two,none = run(1),run(2),run(None)
    assert set(one.threads)==set(two.threads)=={1.} and set(none.threads)=={2.} and torch.get_num_threads()==2
    assert set(one.pid)==set(none.pid)=={os.getpid()} and len(set(two.pid))==2 and os.getpid() not in set(two.pid)

class Fail(Callback):
    def __init__(self, f): self.f = f
    def before_batch(self):
        if self.iter==3 and self.opt.hypers[0]['lr']==0.2: self.f()

def children(): return [p for p in multiprocessing.active_children() if p.is_alive()]

def raising(e): raise e
class OddError(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')

@pytest.mark.parametrize('fail,error,text', [
    (lambda: os.kill(os.getpid(), 9), ChildProcessError, 'tiny: Adam, lr 0.2, seed 0 died .exit code -9'),
    (lambda: os._exit(3), ChildProcessError, 'exit code 3'), (lambda: raising(IndexError('of mine')), IndexError, 'of mine'),
    (lambda: raising(OddError(1,2)), RuntimeError, r'OddError: [^\0]*1 and 2'),
    (lambda: raising(KeyboardInterrupt()), KeyboardInterrupt, '')])
def test_a_process_that_fails_is_told_and_the_rest_is_kept(tmp_path, fail, error, text):
    args = dict(opts='Adam', lrs=[.1,.2,.3], seeds=1, n_epoch=1, schedule='flat', out=tmp_path, jobs=2)
    with pytest.raises(error, match=text) as e: compare(Tiny(), **args, cbs=lambda learn: Fail(fail))
    if error is IndexError: assert 'self.f()' in str(e.value.__cause__)
    assert not children()
    done = {o['lr'] for o in rows(tmp_path/'results.csv')} if (tmp_path/'results.csv').exists() else set()
    assert '0.2' not in done
    assert len(compare(Tiny(), **args))==3

@pytest.mark.parametrize('jobs', [0,-1,1.5,'many'])
def test_bad_jobs(tmp_path, jobs):
    with pytest.raises(ValueError, match=f'^Invalid jobs: {jobs!r}'): compare(Tiny(), **grid, jobs=jobs, out=tmp_path/'new')
    assert not (tmp_path/'new').exists()

# --- a folder belongs to one

holder = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_compare import Tiny, compare, grid
from fastai.callback.core import Callback
class Wait(Callback):
    def before_batch(self):
        if self.opt.hypers[0]['lr'] == .3 and self.iter == 3: print('waiting', flush=True); time.sleep(600)
compare(Tiny(), 'Adam', [.2,.3], seeds=1, n_epoch=1, schedule='flat', out=sys.argv[1], cbs=lambda learn: Wait(), jobs=int(sys.argv[3]))
"""

@pytest.mark.slow
@pytest.mark.parametrize('jobs', [1,2])
def test_two_comparisons_never_share_a_folder(tmp_path, jobs):
    args = [sys.executable, '-c', holder, str(tmp_path/'res'), os.path.dirname(__file__), str(jobs)]
    p = subprocess.Popen(args, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while 'waiting' not in p.stdout.readline(): assert p.poll() is None
    try:
        with pytest.raises(ValueError, match='^Invalid out: another comparison is writing'): compare(Tiny(), **grid, out=tmp_path/'res')
    finally: p.kill()
    p.wait()
    df = compare(Tiny(), **grid, out=tmp_path/'res')
    assert len(df)==8 and not children()
    assert len({o['run'] for o in rows(tmp_path/'res'/'results.csv')})==len(rows(tmp_path/'res'/'results.csv')) in (8,9)
    compare(Tiny(), **grid, out=tmp_path/'res')

def test_a_folder_is_let_go_of_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt): compare(Tiny(stop=1), **grid, out=tmp_path)
    (tmp_path/'sub').mkdir()
    (tmp_path/'sub'/'results.csv').write_text('a,b\n1,2\n')
    for _ in range(2):
        with pytest.raises(ValueError, match='not written by'): compare(Tiny(), **grid, out=tmp_path/'sub')
    assert len(compare(Tiny(), **grid, out=tmp_path))==8

@pytest.mark.parametrize('out', [3, '/proc/new'])
def test_an_out_that_is_no_folder(out):
    if out == '/proc/new' and sys.platform != 'linux': return
    with pytest.raises(ValueError, match='^Invalid out: .* cannot be used as a folder'): compare(Tiny(), **grid, out=out)

# --- what a run is

once = dict(opts='Adam', lrs=0.1, seeds=1, n_epoch=1)
def made_by(code, name='get', **names):
    exec(code, names := {'tiny': tiny, '__name__': '__main__', **names})
    return names[name]
def tiny(opt_func, bs=8): return Learner(tiny_dls(), torch.nn.Linear(3,1), loss_func=MSELossFlat(), opt_func=opt_func, metrics=mae)

base_code = 'n = 1\ndef helper(x=1): return x*2\nclass A:\n    def f(self): return 3\ndef get(f, m=4): return tiny(f)\n' \
            'def use(): return n,helper,A\n' \
            'def get(f, m=4, use=use):\n    n,helper,A\n    return tiny(f)'
@pytest.mark.parametrize('old,new', [('n = 1','n = 5'), ('x*2','x*5'), ('x*2','x+2'), ('return 3','return 5'), ('m=4','m=5'),
                                     ('tiny(f)','tiny(f, 8)'),
                                     ('return n,helper,A','return helper,n,A')])
def test_a_function_that_changed_under_its_name_is_another(tmp_path, old, new):
    assert old in base_code
    for code,n in (base_code,1),(base_code,1),(base_code.replace(old, new),2),(base_code,2):
        compare(made_by(code), **once, out=tmp_path)
        assert len(rows(tmp_path/'results.csv'))==n

def test_lambdas_and_closures_are_told_apart(tmp_path):
    def with_mom(mom): return lambda p, **kw: Adam(p, mom=mom, **kw)
    two = [lambda p, **kw: Adam(p, mom=0.9, **kw), lambda p, **kw: Adam(p, mom=0.5, **kw)]
    opts = [*two, with_mom(0.9), with_mom(0.5), partial(with_mom(0.1), sqr_mom=0.9)]
    for _ in range(2):
        for o in opts: compare(Tiny(), {'mine': o}, 0.1, seeds=1, n_epoch=1, out=tmp_path)
        runs = rows(tmp_path/'results.csv')
        assert len(runs)==5 and len({o['code'] for o in runs})==5

def test_arrays_and_files_are_part_of_a_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    n = lambda: len(rows(tmp_path/'results.csv'))
    for i,w in enumerate([torch.ones(3), torch.ones(3), torch.zeros(3), np.zeros(3)]):
        compare(partial(lambda opt_func, w: tiny(opt_func), w=w), **once, out=tmp_path)
        assert n()==[1,1,2,3][i]
    for i,o in enumerate([1,1,2]):
        (tmp_path/'my_helpers.py').write_text(f'x = {o}')
        sys.modules.pop('my_helpers', None)
        code = 'import my_helpers\ndef get(f): return my_helpers.x and tiny(f)'
        compare(made_by(code), **once, out=tmp_path)
        assert n()==[4,4,5][i]

def test_what_cannot_be_compared_is_told(tmp_path):
    dls = tiny_dls()
    def get(opt_func): return Learner(dls, torch.nn.Linear(3,1), loss_func=MSELossFlat(), opt_func=opt_func, metrics=mae)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compare(get, **once, out=tmp_path)
        for _ in range(2): compare(digits_learner, **once, out=tmp_path) # installed
        for _ in range(2): compare(tiny, **once, out=tmp_path)           # not, but all of it is compared
    with pytest.warns(UserWarning, match='1 of 1 runs were in .* already; whether what their DataLoaders held') as w:
        compare(get, **once, out=tmp_path)
    assert len(w)==1 and w[0].filename==__file__

def test_what_is_installed_is_known_by_its_name(tmp_path):
    compare(partial(digits_learner, bs=32), {'mine': partial(AdaMod, len_memory=10)}, 0.1, seeds=1, n_epoch=1, out=tmp_path)
    row, = rows(tmp_path/'results.csv')
    assert (row['code'],row['task'],row['opt_func'])==('','digits_learner(bs=32)','AdaMod(len_memory=10)')

def test_results_from_before_the_code_was_kept_are_read(tmp_path):
    want = compare(digits_learner, **once, out=tmp_path)
    pd.read_csv(tmp_path/'results.csv', dtype=str, keep_default_na=False).drop(columns='code').to_csv(tmp_path/'results.csv', index=False)
    df = compare(digits_learner, **{**once, 'seeds': 2}, out=tmp_path)
    assert df.seconds[0]==want.seconds[0] and len(rows(tmp_path/'results.csv'))==2
    compare(tiny, **once, out=tmp_path)
    pd.read_csv(tmp_path/'results.csv', dtype=str, keep_default_na=False).drop(columns='code').to_csv(tmp_path/'results.csv', index=False)
    with pytest.warns(UserWarning, match='1 of 1 runs were in .*; whether the code of their functions is the same cannot be seen'):
        compare(tiny, **once, out=tmp_path)
    assert len(rows(tmp_path/'results.csv'))==3

# --- a comparison that is none

shared = torch.nn.Linear(3,1)
def no_runs(tmp_path): return not (tmp_path/'results.csv').exists()
def learner(opt_func, metrics=mae, model=None):
    return Learner(tiny_dls(), model or torch.nn.Linear(3,1), loss_func=MSELossFlat(), opt_func=opt_func, metrics=metrics)

@pytest.mark.parametrize('get,text', [
    (lambda f: None, 'returns None'), (lambda f: tiny_dls(), 'returns DataLoaders'), (lambda f: learner(Adam), 'does not use the opt_func'),
    *[(lambda f, o=o: learner(f, ValueMetric(lambda: 1., o)), f'metric is called {o!r}') for o in ('lr','opt','seed','losses','code')],
    (lambda f: learner(f, [mae,mae]), "two metrics are called 'mae'"), (3, '3')])
@pytest.mark.parametrize('jobs', [None,2])
def test_refused_before_the_first_batch(tmp_path, get, text, jobs):
    with pytest.raises(ValueError, match='^Invalid get_learner: ') as e: compare(get, **grid, out=tmp_path, jobs=jobs)
    assert text in str(e.value) and no_runs(tmp_path)

def test_the_same_model_again_is_refused(tmp_path):
    model = torch.nn.Linear(3,1)
    for get in (lambda f: learner(f, model=model)),(lambda f: learner(f, model=torch.nn.Sequential(model, torch.nn.ReLU()))):
        with pytest.raises(ValueError, match='^Invalid get_learner: .*trained before'): compare(get, **grid, out=tmp_path)
    assert len(rows(tmp_path/'results.csv'))==1

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

# --- lower is better

def fastai_metrics():
    from fastai import metrics as m
    low = [m.mae, m.mse, m.rmse, m.exp_rmspe, m.msle, m.error_rate, m.BrierScore(), m.BrierScoreMulti(),
           m.HammingLoss(), m.HammingLossMulti(), m.Perplexity()]
    high = [m.accuracy, m.accuracy_multi, m.top_k_accuracy, m.foreground_acc, m.APScoreBinary(), m.APScoreMulti(),
            m.BalancedAccuracy(), m.CohenKappa(),
            m.F1Score(), m.F1ScoreMulti(), m.FBeta(2), m.Jaccard(), m.MatthewsCorrCoef(), m.Precision(), m.Recall(), m.RecallMulti(),
            m.RocAuc(), m.RocAucBinary(),
            m.R2Score(), m.ExplainedVariance(), m.PearsonCorrCoef(), m.SpearmanCorrCoef(), m.Dice(), m.DiceMulti(), m.JaccardCoeff(),
            m.CorpusBLEUMetric(vocab_sz=5)]
    name = lambda o: mk_metric(o).name
    more = [(k,True) for k in 'valid_loss train_loss loss_rise mean_absolute_error max_error log_loss zero_one_loss wer RMSE'.split()]
    return [(name(o),True) for o in low] + [(name(o),False) for o in high] + more + [('glossary',False), ('terror',False)]

@pytest.mark.parametrize('name,low', fastai_metrics())
def test_which_metrics_are_better_when_low(name, low):
    df = frame().rename(columns={'accuracy': name})
    df = df.loc[:,~df.columns.duplicated(keep='last')]
    starred = lambda **kw: [o for o in 'AB' if '*' in compare_table(df, name, **kw).loc[o,'0.1']]
    assert starred()==['B' if low else 'A'] and starred(lower=True)==['B'] and starred(lower=False)==['A']

def test_the_pictures_know_it_too():
    df = frame().rename(columns={'accuracy': 'mae'})
    labels = lambda **kw: [o.get_text() for o in plot_losses(df, **kw).get_legend().get_texts()]
    assert labels()==['A, lr 0.1','B, lr 0.1'] and labels(lower=False)==['A, lr 1','B, lr 1 (diverged)']
    assert plot_metric(df.assign(mae=10**df.mae.mul(5)), 'mae').get_yscale()=='log'
    assert plot_metric(df.assign(mae=10**df.mae.mul(5)), 'mae', lower=False).get_yscale()=='linear'
    plt.close('all')

# --- a memory that fits the run

def test_a_default_that_changed_is_another_run(tmp_path):
    "The default memory was one of 1000 batches when neither `hypers` nor `code` was kept"
    args = dict(opts='AdaMod,AdaMod-1000,Adam', lrs=.1, seeds=1, n_epoch=1, out=tmp_path)
    want = compare(digits_learner, **args)
    assert 'fit_memory=True' in want.hypers[0] and 'fit_memory=False' in want.hypers[1]
    old = pd.read_csv(tmp_path/'results.csv', dtype=str, keep_default_na=False).drop(columns=['hypers','code'])
    old.assign(seconds=-1.).to_csv(tmp_path/'results.csv', index=False)
    df = compare(digits_learner, **args)
    assert (df.seconds==-1.).tolist()==[False,True,True]

def test_one_gets_the_memory_of_a_user():
    lengths = []
    compare(Tiny(), 'AdaMod,AdaMod-1000', 0.1, seeds=1, n_epoch=5, cbs=lambda learn: SeeMemory(lengths))
    assert lengths == pytest.approx([0.15*5*N_BATCHES, 1000])
