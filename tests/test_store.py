"What a run is, how it is kept, and when it is found again"
import csv, json, os, subprocess, sys, time
from functools import partial
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.learner import Metric
from fastai.optimizer import Adam

from adamod_fastai.compare import compare
from adamod_fastai.optimizer import AdaMod
from adamod_fastai.runs import _settings
from adamod_fastai.own import _Own
from adamod_fastai.store import _Results
from adamod_fastai.tasks import digits_learner
from comparisons import N_BATCHES, Tiny, children, grid, rows, tiny, tiny_dls

once = dict(opts='Adam', lrs=0.1, seeds=1, n_epoch=1)

def lines(out): return [json.loads(o) for o in (Path(out)/'runs.jsonl').read_text(encoding='utf-8').splitlines()]

# --- keeping and resuming

def test_a_line_of_json_for_each_run(tmp_path):
    df = compare(Tiny(), **grid, out=tmp_path)
    kept = lines(tmp_path)
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
    kept = lines(tmp_path)
    assert len(kept)==3 and {o['seed'] for o in kept}=={0} and len(rows(tmp_path/'results.csv'))==3
    assert capfd.readouterr().err == ''
    get = Tiny()
    df = compare(get, **grid, out=tmp_path)
    assert capfd.readouterr().err == f'3 of 8 runs were in {str(tmp_path)!r} already\n'
    assert len(get.made)==8-3 and lines(tmp_path)[:3]==kept and len(rows(tmp_path/'results.csv'))==8
    for o in 'opt lr seed losses train_loss valid_loss mae'.split(): assert df[o].tolist()==want[o].tolist(), o

def test_interrupted_inside_a_run_keeps_no_part_of_it(tmp_path):
    class Stop(Callback):
        def before_batch(self):
            if self.iter==3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compare(Tiny(), **once, out=tmp_path, cbs=lambda learn: Stop())
    assert os.listdir(tmp_path) == ['.lock']

@pytest.mark.parametrize('cut', [1,2,7,300])
def test_partial_last_line(tmp_path, cut):
    want = compare(Tiny(), **grid, out=tmp_path)
    path,get = tmp_path/'runs.jsonl',Tiny()
    path.write_bytes(path.read_bytes()[:-cut])
    df = compare(get, **grid, out=tmp_path)
    assert len(get.made)==(cut > 1) and df.losses.tolist()==want.losses.tolist() and df.mae.tolist()==want.mae.tolist()
    assert len(lines(tmp_path))==len(rows(tmp_path/'results.csv'))==8

def test_killed_before_the_first_line_was_whole(tmp_path):
    (tmp_path/'runs.jsonl').write_text('{"task": "ti')
    assert len(compare(Tiny(), **grid, out=tmp_path))==len(lines(tmp_path))==8

def test_tables_that_a_killed_comparison_did_not_write_are_written(tmp_path):
    compare(Tiny(), **grid, out=tmp_path)
    want = (tmp_path/'results.csv').read_text()
    half = want.splitlines()[:4]
    (tmp_path/'results.csv').write_text('\n'.join(half)+'\n')
    os.utime(tmp_path/'results.csv', (1,1))
    compare(Tiny(), **grid, out=tmp_path)
    assert (tmp_path/'results.csv').read_text()==want

def test_losses_are_read_back_to_the_last_bit(tmp_path):
    a,b = [compare(Tiny(), 'Adam', [1/3], seeds=1, n_epoch=3, out=tmp_path) for _ in range(2)]
    assert a.losses[0]==b.losses[0] and a.lr[0]==b.lr[0]==1/3 and a.valid_loss[0]==b.valid_loss[0] and a.seconds[0]==b.seconds[0]

def test_every_line_is_json_even_of_a_run_that_diverged(tmp_path):
    a,b = [compare(Tiny(), 'SGD', 1e25, seeds=1, n_epoch=20, out=tmp_path) for _ in range(2)]
    def refuse(name): raise ValueError(name)
    for o in (tmp_path/'runs.jsonl').read_text().splitlines(): json.loads(o, parse_constant=refuse)
    assert np.isnan([b.mae[0], b.valid_loss[0], b.loss_rise[0], b.losses[0][-1]]).all() and len(a.losses[0])==len(b.losses[0])

@pytest.mark.parametrize('name', ['a\rb','a\nb','a,"b"','ä\u2028b'])
def test_any_name_can_be_kept(tmp_path, name):
    for n in 1,2:
        df = compare(Tiny(), {name: Adam}, 0.1, seeds=n, n_epoch=1, out=tmp_path)
        assert df.opt.tolist()==[name]*n and len(lines(tmp_path))==n
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

def test_ten_thousand_runs_are_looked_up_in_a_second(tmp_path):
    base = {**dict.fromkeys(_settings, ''), 'n_epoch': 5, 'memory': 0., 'hypers': 'mom=0.9, '*9}
    settings = [{**base, 'opt': f'o{i}', 'lr': 10.**-j, 'seed': s}
                for i in range(100) for j in range(10) for s in range(10)]
    result = dict(metrics=dict(train_loss=1/3, valid_loss=2/3, accuracy=0.5), seconds=1.5, diverged=False, loss_rise=0.1, batches=110,
                  losses=[round(1/(i+3), 6) for i in range(110)])
    with open(tmp_path/'runs.jsonl', 'w') as f: f.writelines(json.dumps({**o, **result})+'\n' for o in settings)
    results = _Results(tmp_path)
    results.lock.release()
    start = time.process_time()
    results = _Results(tmp_path)
    try: assert all(results.find(o) for o in settings) and len(results.runs)==10_000
    finally: results.lock.release()
    assert time.process_time()-start < 1

@pytest.mark.parametrize('change', [dict(n_epoch=2), dict(schedule='flat'), dict(lrs=0.2), dict(seeds=2), dict(cbs=lambda learn: None),
                                    dict(opts={'Adam': partial(Adam, mom=0.5)})])
def test_other_settings_never_mix(tmp_path, change):
    get = Tiny()
    compare(get, **once, out=tmp_path)
    df = compare(get, **{**once, **change}, out=tmp_path)
    assert len(get.made)==2 and len(df)==change.get('seeds', 1) and len(lines(tmp_path))==2
    compare(get, **once, out=tmp_path)
    assert len(get.made)==2

def test_other_task_never_mixes(tmp_path):
    a,b = Tiny(),Tiny()
    b.__name__ = 'other'
    for get in a,b: compare(get, **once, out=tmp_path)
    assert len(a.made)==len(b.made)==1

def test_a_default_that_changed_is_another_run(tmp_path):
    want = compare(Tiny(), 'AdaMod,AdaMod-1000', .1, seeds=1, n_epoch=1, out=tmp_path)
    assert 'fit_memory=True' in want.hypers[0] and 'fit_memory=False' in want.hypers[1]
    text = (tmp_path/'runs.jsonl').read_text()
    (tmp_path/'runs.jsonl').write_text(text.replace('fit_memory=True', 'fit_memory=3'))
    get = Tiny()
    compare(get, 'AdaMod,AdaMod-1000', .1, seeds=1, n_epoch=1, out=tmp_path)
    assert len(get.made)==1 and len(lines(tmp_path))==3

@pytest.mark.parametrize('name', ['results.csv','runs.jsonl'])
def test_results_of_something_else_are_not_touched(tmp_path, name):
    (tmp_path/name).write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match='^Invalid out: .* was not written by compare'): compare(Tiny(), **grid, out=tmp_path)
    assert (tmp_path/name).read_text()=='{"a": 1}\n' and set(os.listdir(tmp_path)) <= {name,'.lock'}

# --- a folder belongs to one

holder = """
import sys, time
sys.path.insert(0, sys.argv[2])
from comparisons import Tiny
from adamod_fastai.compare import compare
from fastai.callback.core import Callback
class Wait(Callback):
    def before_batch(self):
        if self.opt.hypers[0]['lr'] == .3 and self.iter == 3: print('waiting', file=sys.__stdout__, flush=True); time.sleep(600)
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
    p.communicate() # until no process has its output any more
    assert len(compare(Tiny(), **grid, out=tmp_path/'res'))==8 and not children()
    assert len(lines(tmp_path/'res')) in (8,9)

def test_a_folder_is_ones_own_while_it_is_open(tmp_path):
    with _Results(tmp_path):
        with pytest.raises(ValueError, match='^Invalid out: another comparison is writing'): compare(Tiny(), **once, out=tmp_path)
    assert len(compare(Tiny(), **once, out=tmp_path))==1

def test_a_folder_is_let_go_of_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt): compare(Tiny(stop=1), **grid, out=tmp_path)
    (tmp_path/'sub').mkdir()
    (tmp_path/'sub'/'runs.jsonl').write_text('1\n')
    for _ in range(2):
        with pytest.raises(ValueError, match='not written by'): compare(Tiny(), **grid, out=tmp_path/'sub')
    assert len(compare(Tiny(), **grid, out=tmp_path))==8

@pytest.mark.parametrize('out', [3, '/proc/new'])
def test_an_out_that_is_no_folder(out):
    if out == '/proc/new' and sys.platform != 'linux': return
    with pytest.raises(ValueError, match='^Invalid out: .* cannot be used as a folder'): compare(Tiny(), **grid, out=out)

# --- what a run is

@pytest.fixture
def module(tmp_path, monkeypatch):
    "Writes a module that is one's own, and loads it anew"
    monkeypatch.syspath_prepend(tmp_path)
    names,loaded = set(),set(sys.modules)
    def write(name, text):
        (tmp_path/f'{name}.py').write_text(text)
        names.add(name)
        for o in names: sys.modules.pop(o, None)
        import importlib
        importlib.invalidate_caches()
        return importlib.import_module(name)
    sys.dont_write_bytecode,before = True,sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = before
    for o in set(sys.modules)-loaded: sys.modules.pop(o)

my_data = 'import torch\nclass Data(torch.utils.data.Dataset):\n    def __len__(self): return 8\n    def __getitem__(self, i): return i*2\n'
my_task = 'import numpy as np, torch\nfrom comparisons import tiny\n{0}\nlabels = np.array(["a","b"], dtype=object)\n' \
          'odd = [torch.ones(3, dtype=torch.bfloat16), torch.ones(3).to_sparse(), torch.ones(3, device="meta")]\n' \
          'def get_learner(opt_func):\n    labels, odd\n    {1}\n    return tiny(opt_func)\n'

@pytest.mark.parametrize('top,inside', [('from my_data import Data',''), ('','import my_data'), ('import my_between','')])
def test_an_edit_of_ones_own_sources_makes_another_run(tmp_path, module, top, inside):
    module('my_data', my_data)
    module('my_between', 'import my_data\n')
    out = tmp_path/'out'
    def n(data=my_data, task=my_task.format(top, inside)):
        module('my_data', data)
        compare(module('my_task', task).get_learner, **once, out=out)
        return len(lines(out))
    assert n() == n() == 1
    assert n(data=my_data.replace('i*2','i*3')) == 2
    assert n() == 2 and n(task=my_task.format(top, inside)+'other = 1\n') == 3

def test_an_edit_that_is_not_loaded_is_not_what_ran(tmp_path, module):
    task = module('my_task', my_task.format('',''))
    before = str(_Own(task.get_learner))
    (tmp_path/'my_task.py').write_text(my_task.format('x = 1',''))
    assert str(_Own(task.get_learner)) == before != str(_Own(module('my_task', my_task.format('x = 1','')).get_learner))

def test_two_files_alike_are_two_tasks(tmp_path, module):
    a,b = [module(o, my_task.format('','')).get_learner for o in ('my_a','my_b')]
    for o in a,b: compare(o, **once, out=tmp_path/'out')
    assert [o['file'] for o in lines(tmp_path/'out')]==['../my_a.py','../my_b.py']
    assert list(pd.read_csv(tmp_path/'out'/'results.csv').file)==['../my_a.py','../my_b.py']

def test_a_project_can_move_as_a_whole(tmp_path, module, capfd):
    text = my_task.format('','')
    compare(module('my_task', text).get_learner, **once, out=tmp_path/'out')
    moved = tmp_path/'else'
    moved.mkdir()
    (tmp_path/'out').rename(moved/'out')
    (tmp_path/'my_task.py').rename(moved/'my_task.py')
    sys.modules.pop('my_task')
    sys.path.insert(0, str(moved))
    try:
        import my_task as task
        compare(task.get_learner, **once, out=moved/'out')
    finally: sys.path.remove(str(moved))
    assert '1 of 1 runs' in capfd.readouterr().err

def test_closures_lambdas_and_partials_are_told_apart(tmp_path):
    def with_mom(mom): return lambda p, **kw: Adam(p, mom=mom, **kw)
    def held(x): return lambda opt_func: (x, tiny(opt_func))[1]
    opts = [lambda p, **kw: Adam(p, mom=0.9, **kw), lambda p, **kw: Adam(p, mom=0.5, **kw), with_mom(0.9), with_mom(0.5),
            partial(with_mom(0.1), sqr_mom=0.9)]
    gets = [lambda f: tiny(f), lambda f: tiny(f, 8), held(1), held(2), held(np.ones(3)), held(np.zeros(3)), held(torch.ones(3)),
            held(torch.zeros(3)),
            partial(tiny, bs=8), partial(tiny, bs=4), partial(tiny, bs=np.array(8))]
    for _ in range(2):
        for o in opts: compare(Tiny(), {'mine': o}, 0.1, seeds=1, n_epoch=1, out=tmp_path/'opts')
        assert len(lines(tmp_path/'opts'))==5
        for o in gets: compare(o, **once, out=tmp_path/'gets')
        assert len(lines(tmp_path/'gets'))==len(gets)

@pytest.mark.parametrize('values', [[np.zeros((2,3)),np.zeros((3,2)),np.zeros(6),np.zeros(6, int),np.zeros(12, np.float32)],
    [torch.ones(3), torch.zeros(3), torch.ones(3, dtype=torch.bfloat16), torch.ones(3).to_sparse(), torch.ones(3, device='meta')],
    [*(np.array(['a',o], dtype=object) for o in 'bc'), *(pd.DataFrame(dict(a=range(o))) for o in (99,98))]])
def test_values_are_told_apart_and_found_again(values):
    def hash_of(v): return str(_Own(partial(digits_learner, bs=v)))
    assert len({hash_of(o) for o in values})==len(values) and [hash_of(o) for o in values]==[hash_of(o) for o in values]

def test_a_value_that_cannot_be_saved_is_never_found(tmp_path):
    get = partial(lambda opt_func, lock: tiny(opt_func), lock=__import__('threading').Lock())
    for n in 1,2:
        compare(get, **once, out=tmp_path)
        assert len(lines(tmp_path))==n

notebook = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from adamod_fastai.own import _Own, _place
shell = InteractiveShell.instance()
sys.modules['__main__'] = shell.user_module
def cell(s): assert shell.run_cell(s).success
def show(): print('hash', _Own(get()), _place(get(), None))
def get(): return shell.user_ns['get_learner']
cells = ['n_hidden = 3', 'class Model:\\n    def forward(self, x): return x', 'def helper(): return Model', 'def other(): return 1',
         'def get_learner(opt_func): return helper(), n_hidden']
for o in cells: cell(o)
show()
for o,new in zip(cells, ['n_hidden = 4', cells[1]+'*2', cells[2]+' # the same', 'def other(): return 2', cells[4].replace('()', '( )')]):
    cell(new)
    show()
    cell(o)
show()
"""

@pytest.mark.slow
def test_in_a_notebook_the_cells_of_what_a_function_names_count(tmp_path):
    pytest.importorskip('IPython')
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', notebook], capture_output=True, text=True, timeout=120,
                         env={**os.environ, 'IPYTHONDIR': str(tmp_path)})
    first,*changed,last = [o.split()[1:] for o in res.stdout.splitlines() if o.startswith('hash ')]
    assert first[1]=='__main__' and first==last
    assert [o==first for o in changed]==[False,False,False,True,False] # one function is not named
    assert len({o[0] for o in changed})==5

def test_what_is_installed_is_known_by_its_name(tmp_path):
    compare(partial(digits_learner, bs=32), {'mine': partial(AdaMod, len_memory=10)}, 0.1, seeds=1, n_epoch=1, out=tmp_path)
    row, = lines(tmp_path)
    assert (row['code'],row['task'],row['opt_func'],row['file'])==('','digits_learner(bs=32)','AdaMod(len_memory=10)','adamod_fastai.tasks')
    assert str(_Own(torch.optim.AdamW)) != str(_Own(torch.optim.Adam)) # two packages may have an Adam each

cases = """
import json, linecache, sys, types
from adamod_fastai.own import _Own
from fastai.basics import *
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
main = types.ModuleType('__main__')
sys.modules['__main__'] = main
def run(cells):
    vars(main).update({k:v for k,v in globals().items() if k not in vars(main)})
    for i,o in enumerate(cells):
        file = f'<cell {hash(o)}>'
        linecache.cache[file] = len(o),None,[o],file
        exec(compile(o, file, 'exec'), vars(main))
    return str(_Own(main.get_learner))
res = {}
for name,(cells,edited) in json.loads(sys.argv[1]).items():
    changed = [edited if i==0 else o for i,o in enumerate(cells)]
    res[name] = run(cells) == run(cells) != run(changed)
print(json.dumps(res))
"""
get = 'def get_learner(opt_func): return '
edits = {'a default': (['N = 8', 'def get_learner(opt_func, n=N): return n'], 'N = 16'),
    "a helper's default": (['N = 8', 'def helper(*, n=N): return n', f'{get}helper()'], 'N = 16'),
    "a method's default": (['N = 8', 'class M:\n    def __init__(self, n=N): pass', f'{get}M()'], 'N = 16'),
    'a class of settings': (['class CFG:\n    n = 8', f'{get}CFG.n'], 'class CFG:\n    n = 16'),
    'a dataclass': (['@dataclass\nclass C:\n    n: int = 8', f'{get}C().n'], '@dataclass\nclass C:\n    n: int = 16'),
    'a cached helper': (['@lru_cache(None)\ndef dls(): return 1', f'{get}dls()'], '@lru_cache(None)\ndef dls(): return 2'),
    'a static method': (['class M:\n    @staticmethod\n    def f(): return 1', f'{get}M.f()'],
                        'class M:\n    @staticmethod\n    def f(): return 2'),
    'what a property names': (['N = 1', 'class M:\n    @property\n    def f(self): return N', f'{get}M().f'], 'N = 2'),
    'a list': (['sizes = [8,[4],2]', f'{get}sizes'], 'sizes = [8,[4,2]]'), 'a dict': (['cfg = dict(n=8)', f'{get}cfg'], 'cfg = dict(n=16)'),
    'a namespace': (['cfg = SimpleNamespace(n=8)', f'{get}cfg.n'], 'cfg = SimpleNamespace(n=16)'),
    'a path': (['p = Path("a")', f'{get}p'], 'p = Path("b")'), 'an array': (['x = np.zeros(3)', f'{get}x'], 'x = np.ones(3)'),
    'an object of mine': (['class Loss:\n    def __call__(self, a): return a', 'loss = Loss()', f'{get}loss'],
                          'class Loss:\n    def __call__(self, a): return 2*a'),
    'its attribute': (['N = 1', 'class C:\n    def __init__(self): self.n = N', 'c = C()', f'{get}c.n'], 'N = 2'),
    'a list of functions': (['def f(): return 1', 'metrics = [f]', f'{get}metrics'], 'def f(): return 2'),
    'a partial': (['N = 8', 'def f(n): return n', 'p = [partial(f, N)]', f'{get}p'], 'N = 16'),
    'a partial in a closure': (['N = 8', 'def f(n): return n', 'def make(f):\n    def g(opt_func): return f()\n    return g',
                                'get_learner = make(partial(f, N))'], 'N = 16'),
    "a function's attribute": (['N = 1', 'def f(): return f.n', 'f.n = N', f'{get}f()'], 'N = 2')}

def test_what_a_function_uses_counts_wherever_it_is(tmp_path):
    "An edit of one cell, after which all are run again"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', cases, json.dumps(edits)], capture_output=True, text=True, timeout=120)
    assert res.returncode == 0, res.stderr
    assert [k for k,v in json.loads(res.stdout).items() if not v] == []

def test_a_file_that_an_editor_has_saved_is_read(tmp_path):
    compare(Tiny(), **grid, out=tmp_path)
    kept,file = lines(tmp_path),tmp_path/'runs.jsonl'
    first,*rest = file.read_text(encoding='utf-8').splitlines()
    file.write_text('\n'.join([first,'',*rest]), encoding='utf-8')
    get = Tiny()
    compare(get, **{**grid, 'seeds': 3}, out=tmp_path)
    assert len(get.made)==4 and [json.loads(o) for o in file.read_text(encoding='utf-8').splitlines() if o][:8]==kept

script = """
import sys
from comparisons import *
from adamod_fastai.all import *
from functools import partial
HIDDEN = int(sys.argv[1])
def get_learner(opt_func): return tiny(opt_func, bs=HIDDEN)
if __name__ == '__main__':
    compare(get_learner, 'Adam', 0.1, seeds={seeds}, n_epoch=1, out='out')
"""

def test_more_seeds_beside_the_function_find_the_runs_and_a_changed_argument_does_not(tmp_path):
    for seeds,hidden,n,told in [(1,8,1,''), (2,8,2,'1 of 2 runs were'), (2,4,4,'2 of 2 runs are there of other code')]:
        (tmp_path/'mine.py').write_text(script.format(seeds=seeds))
        res = subprocess.run([sys.executable, '-W', 'ignore', 'mine.py', str(hidden)], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, 'PYTHONPATH': str(Path(__file__).parent)})
        assert res.returncode == 0 and told in res.stderr and len(lines(tmp_path/'out'))==n, res.stderr

class Mine(Metric):
    "Keeps something from its last run, as metrics do"
    def reset(self): self.n = 0
    def accumulate(self, learn): self.n += 1
    @property
    def value(self): return self.n

metrics = [Mine()]
def test_what_training_changes_is_found_again_in_one_process(tmp_path):
    def get_learner(opt_func):
        learn = tiny(opt_func)
        learn.metrics = metrics
        return learn
    for _ in range(2): compare(get_learner, **once, out=tmp_path)
    assert len(lines(tmp_path))==1

dls = tiny_dls()
def test_a_global_that_cannot_be_looked_into_is_named(tmp_path, capfd):
    def get_learner(opt_func): return Tiny(dls=dls)(opt_func)
    for _ in range(2): compare(get_learner, **once, out=tmp_path)
    assert len(lines(tmp_path))==1 and 'Not looked into: dls. Name another out if that changes' in capfd.readouterr().err

@pytest.mark.parametrize('body', ['[n for _ in range(2)]','(lambda: n)()','sum(n for _ in range(2))'])
def test_a_number_that_is_named_deep_inside_counts(body):
    "In what a cell of a notebook defines; Python 3.12 and 3.13 each see more of such names by themselves"
    import linecache
    from adamod_fastai.own import _Own
    file,source = '<a cell>',f'def get_learner(opt_func): return {body}\n'
    linecache.cache[file] = len(source),None,[source],file
    cell = dict(__name__='__main__', n=1)
    exec(compile(source, file, 'exec'), cell)
    def code(n):
        cell['n'] = n
        return str(_Own(cell['get_learner']))
    assert code(1)==code(1)!=code(2)
