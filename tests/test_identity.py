"When a stored run is reused: a number is never that of something else, and what is the same is found again"
import importlib, json, os, subprocess, sys
from functools import partial
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.learner import Metric
from fastai.optimizer import Adam

from adamod_fastai.compare import compare
from adamod_fastai.optimizer import AdaMod
from comparisons import tiny, tiny_dls

once = dict(opts='Adam', lrs=0.1, seeds=1, n_epoch=4)

class Cells:
    "A notebook: cells that are run one after the other, with `mae(**kwargs)` to compare and give the metric"
    def __init__(self, out): self.out,self.names = out,dict(__name__='__main__')
    def run(self, *cells):
        self.names.update(COMMON)
        for o in cells: exec(compile(o, '<cell>', 'exec'), self.names)
        return self
    def mae(self, **kwargs):
        f = self.names['get_learner']
        df = compare(f, **{**once, **kwargs}, cbs=self.names.get('cbs'), out=self.out)
        return df.mae.tolist()
    def fresh(self, **kwargs):
        out,self.out = self.out,None
        try: return self.mae(**kwargs)
        finally: self.out = out

exec(COMMON_TEXT := """
import types, torch, numpy as np, pandas as pd
from argparse import Namespace
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, L, Learner, MSELossFlat, mae as mae_, nn
from torch.utils.data import TensorDataset
from comparisons import tiny, tiny_dls
""", COMMON := {})

def stored(out): return len(list((Path(out)/'runs').glob('*.json')))

def is_seen(out, cells, *changed):
    "After the cells `changed` the numbers are those of a comparison that keeps nothing, and not those of before"
    nb = Cells(out).run(*cells)
    before = nb.mae()
    nb.run(*changed)
    after = nb.mae()
    assert after == nb.fresh() != before

def is_found(out, cells, again=None):
    "The cells, run `again` as they are there, train nothing"
    first = Cells(out).run(*cells).mae()
    n = stored(out)
    assert Cells(out).run(*(again or cells)).mae() == first and stored(out) == n

# --- never wrong: what acts at once

late = """
class Late(Callback):
    def __init__(self, k=None): self.k = k
    def before_batch(self):
        if self.training and self.epoch >= 3: self.learn.xb = (self.xb[0]*{0},)
def cbs(learn): return Late()
"""
plain = 'def get_learner(opt_func): return tiny(opt_func)'
scaled = 'def get_learner(opt_func): return Learner(tiny_dls(), Scaled(), loss_func=MSELossFlat(), opt_func=opt_func, metrics=mae_)'
model = """
def scale(z): return z*{0}
class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
    def forward(self, x): return self.layer(scale(x))
"""

of_dls = 'def get_learner(opt_func):\n    learn = tiny(opt_func)\n    learn.dls = dls\n    return learn'

def test_data_loaders_that_are_rebuilt_with_another_batch_size(tmp_path):
    is_seen(tmp_path, ['dls = tiny_dls()', of_dls], 'dls = tiny_dls()\ndls = DataLoaders(*(o.new(bs=4) for o in dls.loaders))')

def test_a_table_never_mixes_two_batch_sizes(tmp_path):
    nb = Cells(tmp_path).run('dls = tiny_dls()', of_dls)
    nb.mae()
    nb.run('dls = DataLoaders(*(o.new(bs=4) for o in tiny_dls().loaders))')
    more = dict(lrs=[0.1,0.2], seeds=2)
    assert nb.mae(**more) == nb.fresh(**more)

@pytest.fixture
def module(tmp_path, monkeypatch):
    "Write a module of one's own, and import it, or load it anew"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    before = set(sys.modules)
    def write(name, text, load=True):
        (tmp_path/f'{name}.py').write_text(text)
        importlib.invalidate_caches()
        if load: return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)
    yield write
    for o in set(sys.modules)-before: sys.modules.pop(o)

def test_a_setting_of_a_module(tmp_path, module):
    module('my_cfg', 'bs = 8\n')
    sized = of_dls.replace('= dls', '= DataLoaders(*(o.new(bs=my_cfg.bs) for o in learn.dls.loaders))')
    is_seen(tmp_path/'out', ['import my_cfg', sized], 'my_cfg.bs = 4')

def test_a_helper_that_is_edited_and_loaded_again(tmp_path, module):
    text = 'from fastai.basics import *\nfrom comparisons import *\n'+model
    module('my_model', text.format(1))
    nb = Cells(tmp_path/'out').run('from my_model import *', scaled)
    before = nb.mae()
    module('my_model', text.format(3))
    nb.run('from my_model import *', scaled)
    assert nb.mae() == nb.fresh() != before

def test_a_helper_that_autoreload_has_loaded_again(tmp_path, module):
    "It puts the new code into the function that is there; the cells stay as they are"
    autoreload = pytest.importorskip('IPython.extensions.autoreload')
    text = 'from fastai.basics import *\nfrom comparisons import *\n'+model
    module('my_model', text.format(1))
    nb,reloader = Cells(tmp_path/'out').run('from my_model import *', scaled),autoreload.ModuleReloader()
    reloader.check(True)
    before = nb.mae()
    module('my_model', text.format(3), load=False)
    os.utime(tmp_path/'my_model.py', (2**31,2**31))
    reloader.check(True)
    assert nb.mae() == nb.fresh() != before

def test_a_label_in_a_data_file(tmp_path):
    data = pd.DataFrame(np.sin(np.arange(48*4)).reshape(48, 4))
    data.to_csv(tmp_path/'data.csv', index=False)
    read = f"""
def get_learner(opt_func):
    x = torch.tensor(pd.read_csv({str(tmp_path/'data.csv')!r}).values, dtype=torch.float)
    ds = TensorDataset(x[:,:3], x[:,3:])
    return Learner(DataLoaders(DataLoader(ds, bs=8, shuffle=True), DataLoader(ds, bs=8)), nn.Linear(3,1), loss_func=MSELossFlat(),
                   opt_func=opt_func, metrics=mae_)
"""
    nb = Cells(tmp_path/'out').run(read)
    before = nb.mae()
    data.iloc[40,3] = 5.
    data.to_csv(tmp_path/'data.csv', index=False)
    assert nb.mae() == nb.fresh() != before

@pytest.mark.parametrize('package', ['adamod_fastai','fastai','torch'])
def test_another_version_of_a_package_makes_other_runs(tmp_path, monkeypatch, package, capfd):
    nb = Cells(tmp_path).run(plain)
    nb.mae()
    from importlib.metadata import version
    for o in list(sys.modules.values()):
        if getattr(o, '__name__', '').startswith('adamod_fastai') and getattr(o, 'version', None) is version:
            monkeypatch.setattr(o, 'version', lambda k: version(k)+'.1'*(k==package))
    nb.mae()
    assert stored(tmp_path)==2 and package in capfd.readouterr().err

process = """
import sys
sys.path[:0] = sys.argv[1:3]
from comparisons import tiny
from fastai.basics import *
from adamod_fastai.compare import compare
import my_model
from my_model import *
def get_learner(opt_func): return Learner(tiny_dls(), Scaled(), loss_func=MSELossFlat(), opt_func=opt_func, metrics=mae)
if sys.argv[3]: Path(my_model.__file__).write_text(sys.argv[3])
print(compare(get_learner, 'Adam', .1, seeds=1, n_epoch=1, out='out').mae[0], compare(get_learner, 'Adam', .1, seeds=1, n_epoch=1).mae[0])
"""

@pytest.mark.slow
def test_a_file_that_is_edited_between_its_import_and_the_comparison(tmp_path):
    text = 'from fastai.basics import *\nfrom comparisons import *\n'+model
    (tmp_path/'my_model.py').write_text(text.format(1))
    def run(edit=''):
        args = [sys.executable, '-W', 'ignore', '-c', process, str(tmp_path), str(Path(__file__).parent), edit]
        res = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
        kept,fresh = res.stdout.split()
        assert kept==fresh
        return kept
    assert run(edit=text.format(30)) != run() # the second begins with the edited file

# --- never wrong: what acts only from the third epoch on

def test_a_callback_in_another_cell_that_acts_late(tmp_path):
    is_seen(tmp_path, [late.format(1), plain], late.format(2))

def test_a_module_of_a_module_that_acts_late(tmp_path, module):
    module('my_factor', 'def factor(): return 1\n')
    module('my_late', 'from fastai.basics import *\nimport my_factor\n'+late.format('my_factor.factor()'))
    nb = Cells(tmp_path/'out').run('from my_late import cbs', plain)
    before = nb.mae()
    module('my_factor', 'def factor(): return 2\n')
    assert nb.mae() == nb.fresh() != before

def test_a_function_made_twice_with_another_number(tmp_path):
    make = 'def make(n):\n'+'\n'.join(f'    {o}' for o in late.format('n').strip().split('\n'))+'\n    return cbs'
    is_seen(tmp_path, [make, 'cbs = make(1)', plain], 'cbs = make(2)')

def test_a_patch_of_fastai_that_acts_late(tmp_path):
    patch = 'from fastcore.basics import patch\n@patch\ndef factor(self:Learner): return {}'
    is_seen(tmp_path, [patch.format(1), late.format('self.learn.factor()'), plain], patch.format(2))
    from fastai.learner import Learner
    del Learner.factor,Learner._orig_factor # what `patch` has replaced

def test_a_callback_that_is_made_again_with_another_number(tmp_path):
    "The number acts only after the trial's three epochs; what training changes in the callback does not count"
    stop = 'from fastai.callback.tracker import EarlyStoppingCallback\nstop = EarlyStoppingCallback(patience={}, min_delta=10.)\n' \
           'def cbs(learn): return stop'
    nb = Cells(tmp_path).run(stop.format(4), plain)
    many = dict(n_epoch=12)
    before = nb.mae(**many)
    for _ in range(2): assert nb.mae(**many) == before and stored(tmp_path) == 1
    nb.run(stop.format(8))
    assert nb.mae(**many) == nb.fresh(**many) != before

def test_two_functions_that_change_places(tmp_path):
    make = 'def make(n):\n    def f(x): return (x+n)*n\n    return f\na,b = make(1),make(3)'
    both = late.replace('return Late()', 'return Late(fs)').replace('*{0}', '*self.k[0](1)/self.k[1](2)')
    is_seen(tmp_path, [make, 'fs = [a,b]', both, plain], 'fs = [b,a]')

def test_functions_of_one_name_in_the_task_and_in_the_optimizer(tmp_path):
    "Neither hides the other"
    make = 'def make(n):\n    def f(x): return x*n\n    return f\na,b = make(1),make(1)'
    opt = 'def opt(params, lr, **kw): return Adam(params, lr=b(lr), **kw)'
    nb = Cells(tmp_path).run(make, late.format('a(1)'), plain, opt)
    before = nb.mae(opts={'mine': nb.names['opt']})
    nb.run('a = make(2)')
    after = nb.mae(opts={'mine': nb.names['opt']})
    assert after == nb.fresh(opts={'mine': nb.names['opt']}) != before

# what a late callback may have its number from: how it is written, and how it is then changed
numbers = {'a global': (['N = 1'], 'N', 'N = 2'), 'a list': (['l = [1,[1]]'], 'l[1][0]', 'l = [1,[2]]'),
    'a dict': (['cfg = dict(n=1)'], "cfg['n']", 'cfg = dict(n=2)'),
    'a dict that is changed': (['cfg = dict(n=1)'], "cfg['n']", "cfg['n'] = 2"),
    'a namespace': (['cfg = SimpleNamespace(n=1)'], 'cfg.n', 'cfg.n = 2'),
    'of argparse': (['cfg = Namespace(n=1)'], 'cfg.n', 'cfg.n = 2'),
    'a class of settings': (['class CFG: n = 1'], 'CFG.n', 'class CFG: n = 2'),
    'one that is changed': (['class CFG: n = 1'], 'CFG.n', 'CFG.n = 2'),
    'a dataclass': (['@dataclass\nclass C:\n    n: int = 1'], 'C().n', '@dataclass\nclass C:\n    n: int = 2'),
    'a default': (['def f(n=1): return n'], 'f()', 'def f(n=2): return n'),
    'a keyword': (['def f(*, n=1): return n'], 'f()', 'def f(*, n=2): return n'),
    'a helper of a helper': (['def g(): return 1', 'def f(): return g()'], 'f()', 'def g(): return 2'),
    'a cached function': (['@lru_cache(None)\ndef f(): return 1'], 'f()', '@lru_cache(None)\ndef f(): return 2'),
    'a static method': (['class M:\n    @staticmethod\n    def f(): return 1'], 'M.f()',
                        'class M:\n    @staticmethod\n    def f(): return 2'),
    'a property': (['N = 1', 'class M:\n    @property\n    def f(self): return N'], 'M().f', 'N = 2'),
    'an array': (['x = np.ones(3)'], 'float(x[0])', 'x = np.ones(3)*2'),
    'a tensor': (['x = torch.ones(3)'], 'x[0]', 'x = torch.ones(3)*2'),
    'an array of objects': (['x = np.array([1,"a"], dtype=object)'], 'x[0]', 'x = np.array([2,"a"], dtype=object)'),
    'a data frame': (['df = pd.DataFrame(dict(a=[1]))'], 'int(df.a[0])', 'df = pd.DataFrame(dict(a=[2]))'),
    'an object of mine': (['class C:\n    def __init__(self, n): self.n = n', 'c = C(1)'], 'c.n', 'c = C(2)'),
    'a list of functions': (['def f(): return 1', 'fs = [f]'], 'fs[0]()', 'def f(): return 2\nfs = [f]'),
    'a partial': (['def f(n): return n', 'p = partial(f, 1)'], 'p()', 'p = partial(f, 2)'),
    'a method of an object': (['class C:\n    def __init__(self, n): self.n = n\n    def f(self): return self.n', 'm = C(1).f'],
                              'm()', 'm = C(2).f'),
    "a function's attribute": (['def f(): return f.n', 'f.n = 1'], 'f()', 'f.n = 2'),
    'a lambda': (['f = lambda: 1'], 'f()', 'f = lambda: 2'),
    'a path': (['p = Path("1")'], 'int(p.name)', 'p = Path("2")'),
    'a base class': (['class A: n = 1', 'class B(A): pass'], 'B.n', 'A.n = 2'),
    'deep inside': (['N = 1'], '[(lambda: N)() for _ in range(2)][1]', 'N = 2'), 'a set': (['s = {1}'], 'max(s)', 's = {2}'),
    'an enum': (['class E(Enum): n = 1'], 'E.n.value', 'class E(Enum): n = 2')}

@pytest.mark.parametrize('name', numbers)
def test_a_number_that_acts_late_wherever_it_is(tmp_path, name):
    cells,number,changed = numbers[name]
    is_seen(tmp_path, [*cells, late.format(number), plain], changed)

@pytest.mark.parametrize('name', numbers)
def test_a_number_that_acts_at_once_wherever_it_is(tmp_path, name):
    cells,number,changed = numbers[name]
    is_seen(tmp_path, [*cells, model.format(number), scaled], changed)

@pytest.mark.parametrize('name', numbers)
def test_a_number_is_found_again_wherever_it_is(tmp_path, name):
    cells,number,_ = numbers[name]
    is_found(tmp_path, [*cells, late.format(number), plain])

def test_closures_lambdas_and_partials_are_told_apart(tmp_path):
    def with_mom(mom): return lambda p, **kw: Adam(p, mom=mom, **kw)
    def held(x): return lambda opt_func: (x, tiny(opt_func))[1]
    opts = [lambda p, **kw: Adam(p, mom=0.9, **kw), lambda p, **kw: Adam(p, mom=0.5, **kw), with_mom(0.9), with_mom(0.5),
            partial(with_mom(0.1), sqr_mom=0.9)]
    gets = [lambda f: tiny(f), lambda f: tiny(f, 8), held(1), held(2), held(np.ones(3)), held(np.zeros(3)), held(torch.ones(3)),
            held(torch.zeros(3)), partial(tiny, bs=8), partial(tiny, bs=4), partial(tiny, bs=np.array(8))]
    for _ in range(2):
        for o in opts: compare(tiny, {'mine': o}, 0.1, seeds=1, n_epoch=1, out=tmp_path/'opts')
        assert stored(tmp_path/'opts')==5
        for o in gets: compare(o, **once, out=tmp_path/'gets')
        assert stored(tmp_path/'gets')==len(gets)

values = [[np.zeros((2,3)),np.zeros((3,2)),np.zeros(6),np.zeros(6, int),np.zeros(12, np.float32)],
    [torch.ones(3), torch.zeros(3), torch.ones(3, dtype=torch.bfloat16), torch.ones(3).to_sparse(), torch.ones(3, device='meta')],
    [*(np.array(['a',o], dtype=object) for o in 'bc'), *(pd.DataFrame(dict(a=range(o))) for o in (99,98)), pd.Series([1]), pd.Series([2])],
    [torch.ones(3,4)[:,:1], torch.ones(3,4)[:1,:1], torch.ones(4,3).T, torch.zeros(0), torch.tensor(1.),
     torch.ones(2, dtype=torch.complex64), torch.tensor([True]),
     np.ones((3,4))[:,:1], np.ones((3,4))[:1,:1], np.array('2026-01-01', dtype='M8[D]'), np.array(['a'])],
    [1, 1., True, '1', b'1', [1], (1,), {1}, {1:1}, range(1), None, torch.float, np.float32(1), len, max]]

@pytest.mark.parametrize('values', values)
def test_values_are_told_apart_and_found_again(values):
    from adamod_fastai.compare.loaded_code import LoadedCode
    assert len({LoadedCode(o).values for o in values})==len(values)
    assert [LoadedCode(o).values for o in values]==[LoadedCode(o).values for o in values]

def test_what_does_not_let_itself_be_looked_into_is_no_error():
    from adamod_fastai.compare.loaded_code import LoadedCode
    class Closed:
        def __getstate__(self): raise TypeError('no')
    assert LoadedCode(Closed()).values == LoadedCode(Closed()).values

def test_a_list_that_is_in_itself_has_an_end():
    from adamod_fastai.compare.loaded_code import LoadedCode
    a = [1]
    a.append(a)
    assert LoadedCode(a).values == LoadedCode(a).values != LoadedCode([1,1]).values

# --- found again

def test_the_same_cells_again(tmp_path): is_found(tmp_path, [late.format(1), model.format(1), scaled])
def test_a_function_in_another_cell_with_a_comment(tmp_path):
    is_found(tmp_path, [model.format(1), scaled], ['# later\n'+scaled+'\nprint("done")', 'x = 1\n'+model.format(1)+'# scaled'])
def test_an_unrelated_function_that_changes(tmp_path):
    is_found(tmp_path, ['def other(): return 1', plain], ['def other(): return 2', plain])
def test_a_function_with_a_name_that_has_no_value_yet(tmp_path):
    make = """
def make():
    def get_learner(opt_func): return tiny(opt_func) if opt_func else later
    return get_learner
    later = 1
get_learner = make()
"""
    is_found(tmp_path, [make])
def test_a_dataset_without_an_end(tmp_path):
    endless = """
class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True: yield torch.full((3,), {0}), torch.zeros(1)
def get_learner(opt_func):
    learn = tiny(opt_func)
    learn.dls = DataLoaders(*(DataLoader(Endless(), bs=4, n=16) for _ in range(2)))
    return learn
"""
    is_found(tmp_path/'a', [endless.format(1.)])
    is_seen(tmp_path/'b', [endless.format(1.)], endless.format(2.))
def test_a_partial_of_data_loaders_called_twice(tmp_path):
    use = 'def f(opt_func, d):\n    learn = tiny(opt_func)\n    learn.dls = d\n    return learn\ndls = tiny_dls()'
    nb = Cells(tmp_path).run(use, 'get_learner = partial(f, d=dls)')
    nb.mae()
    nb.run('get_learner = partial(f, d=dls)').mae()
    assert stored(tmp_path)==1

def test_sums_that_differ_in_their_last_digits(tmp_path, capfd):
    nb = Cells(tmp_path).run(plain)
    want = nb.mae()
    file, = (tmp_path/'runs').glob('*.json')
    run = json.loads(file.read_text())
    run['made']['losses'] = [o*(1+1e-6) for o in run['made']['losses']]
    file.write_text(json.dumps(run))
    assert nb.mae()==want and 'Found 1 of 1' in capfd.readouterr().err
    run['made']['losses'] = [o*1.1 for o in run['made']['losses']]
    file.write_text(json.dumps(run))
    assert nb.mae()==want and capfd.readouterr().err=='1 stored run will be repeated, because these differ: first losses\n'

script = """
import sys
from comparisons import *
from adamod_fastai.all import *
N_HIDDEN,names = int(sys.argv[1]),{'a','b','c','d'}
def get_learner(opt_func): return tiny(opt_func, bs=N_HIDDEN) if 'a' in {'a','b','c',*names} else None
compare(get_learner, 'Adam', 0.1, seeds=SEEDS, n_epoch=1, out='out')
"""

@pytest.mark.slow
def test_more_seeds_in_a_script_find_the_runs_and_a_changed_argument_does_not(tmp_path):
    "In a new process each time, in which sets have another order"
    differ = '2 stored runs will be repeated, because these differ: get_learner()'
    for seeds,hidden,n,told in [(1,8,1,''), (2,8,2,"Found 1 of 2 runs in 'out'"), (2,4,4,differ)]:
        (tmp_path/'mine.py').write_text(script.replace('SEEDS', str(seeds)))
        res = subprocess.run([sys.executable, '-W', 'ignore', 'mine.py', str(hidden)], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, 'PYTHONPATH': f'{Path(__file__).parent}:{os.environ.get("PYTHONPATH", "")}'})
        assert res.returncode == 0 and told in res.stderr and stored(tmp_path/'out')==n, res.stderr

def test_a_project_that_moved(tmp_path, module, capfd):
    import shutil
    module('my_task', 'from comparisons import tiny\nbs = 8\ndef get_learner(opt_func): return tiny(opt_func, bs)\n')
    compare(sys.modules['my_task'].get_learner, **once, out=tmp_path/'out')
    moved = tmp_path/'else'
    moved.mkdir()
    for o in 'out','my_task.py': shutil.move(tmp_path/o, moved/o)
    sys.modules.pop('my_task')
    sys.path.insert(0, str(moved))
    try: compare(importlib.import_module('my_task').get_learner, **once, out=moved/'out')
    finally: sys.path.remove(str(moved))
    assert stored(moved/'out')==1 and '1 of 1 runs' in capfd.readouterr().err

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
    assert stored(tmp_path)==1

def test_what_is_installed_goes_by_its_version(tmp_path):
    from adamod_fastai.compare.tasks import digits_learner
    compare(partial(digits_learner, bs=32), {'mine': partial(AdaMod, len_memory=10)}, 0.1, seeds=1, n_epoch=1, out=tmp_path)
    file, = (tmp_path/'runs').glob('*.json')
    assert set(json.loads(file.read_text())['made']) == \
        {'Python','adamod_fastai','fastai','torch','model','optimizer','learner','data','arguments','losses','metrics'}

# --- what is said

def test_what_has_changed_is_said(tmp_path, capfd):
    tried = late.replace('>= 3', '>= 2')     # in an epoch that the trial has, too
    nb = Cells(tmp_path).run(tried.format(1), model.format(1), scaled)
    nb.mae()
    assert capfd.readouterr().err == ''
    def told(*cells):
        nb.run(*cells).mae()
        return capfd.readouterr().err.strip().partition('differ: ')[2].split(', ')
    assert told(tried.format(2)) == ['Late.before_batch()','first losses','first metrics']
    smaller = 'old_dls = tiny_dls\ndef tiny_dls(): return DataLoaders(*(o.new(bs=4) for o in old_dls().loaders))'
    assert told(smaller)[:1] == ['data']
    assert told(scaled.replace('Scaled()', 'Scaled().double().float()').replace('tiny_dls()', 'old_dls()')) [:2] == ['data','get_learner()']

def test_a_task_that_comes_out_otherwise_each_time_is_told_so(tmp_path, capfd):
    random = 'import random\nrng = random.SystemRandom()\ndef get_learner(opt_func):\n    learn = tiny(opt_func)\n' \
             '    learn.model.weight.data.fill_(rng.random())\n    return learn'
    nb = Cells(tmp_path).run(random)
    nb.mae()
    assert capfd.readouterr().err == ''
    nb.mae()
    err = capfd.readouterr().err
    assert 'get_learner makes something else each time it is called' in err and 'model' in err and stored(tmp_path)==2

# --- what a trial is

def test_a_trial_takes_a_bounded_number_of_batches_and_items(tmp_path):
    "However long the sets are"
    class Items(torch.utils.data.Dataset):
        seen = 0
        def __init__(self, n): self.n = n
        def __len__(self): return self.n
        def __getitem__(self, i):
            Items.seen += 1
            return torch.ones(3)*i,torch.ones(1)
    from fastai.basics import DataLoader, DataLoaders
    from adamod_fastai.compare.identity import identities
    def get(n):
        def get_learner(opt_func):
            learn = tiny(opt_func)
            learn.dls = DataLoaders(*(DataLoader(Items(n), bs=4) for _ in range(2)))
            return learn
        return get_learner
    def looked_at(n):
        Items.seen = 0
        identities(get(n), {'Adam': Adam, 'AdaMod': AdaMod})
        return Items.seen
    in_trials = 2*6*4 # two optimizers, three epochs with a batch to train and one to validate
    assert looked_at(100) == 2*100+in_trials and looked_at(10_000) == looked_at(100_000) == 2*500+in_trials

def test_the_sample_of_a_large_set_is_spread_over_it():
    from adamod_fastai.compare.identity import sample
    assert sample(500)==list(range(500)) and len(set(sample(501)))==len(set(sample(10**6)))==500
    assert max(sample(501))>=499 and max(sample(10**6)) > 0.99e6 and sample(10**6)[:100]==list(range(100))

def test_a_broken_task_is_told_before_any_process_starts(tmp_path, monkeypatch):
    def broken(opt_func): raise IndexError('of mine')
    with pytest.raises(IndexError, match='of mine') as e: compare(broken, 'Adam', [.1,.2], jobs=2, out=tmp_path)
    assert 'broken' in [o.name for o in e.traceback] and stored(tmp_path)==0

@pytest.mark.parametrize('metric', [lambda p,t: (p-t).abs().detach().numpy(), lambda p,t: 'good', lambda p,t: None])
@pytest.mark.parametrize('jobs', [None,2])
def test_a_metric_that_is_no_number_is_named(tmp_path, metric, jobs):
    def odd(p, t): return metric(p, t)
    def get_learner(opt_func):
        learn = tiny(opt_func)
        learn.metrics = odd
        return learn
    with pytest.raises(ValueError, match="^Invalid get_learner: .*metric 'odd'.* number"):
        compare(get_learner, **once, jobs=jobs, out=tmp_path)
    assert stored(tmp_path)==0

def test_a_metric_may_fail_on_one_batch(tmp_path):
    from fastai.metrics import AccumMetric
    def all_of_them(p, t):
        if len(p) < 48: raise ValueError('there are two classes')
        return 0.5
    def get_learner(opt_func):
        learn = tiny(opt_func)
        learn.metrics = AccumMetric(all_of_them)
        return learn
    assert compare(get_learner, **once, out=tmp_path).all_of_them.tolist()==[0.5]

def test_a_trial_saves_nothing_where_one_works(tmp_path, monkeypatch):
    from fastai.callback.progress import CSVLogger
    from fastai.callback.tracker import SaveModelCallback
    from adamod_fastai.compare.identity import identities
    monkeypatch.chdir(tmp_path)
    identities(tiny, {'Adam': Adam}, cbs=lambda learn: [CSVLogger(), SaveModelCallback()])
    assert not list(tmp_path.iterdir())
