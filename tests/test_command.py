"The console command `adamod-compare`"
import os, signal, subprocess, sys, time
from functools import partial

import numpy as np, pandas as pd, pytest

from adamod_fastai.compare import main
from adamod_fastai.compare.command import split_tasks
from adamod_fastai.compare.report import file_name
from adamod_fastai.compare.sweep import watched
from comparisons import command, ended, env, rows, run, runs, without_progress
from new_process import python

bad_args = {'unknown optimizer': (['--opts','AdaMod,Adamod'], "'Adamod'"), 'unknown task': (['--task','images'], "'images'"),
            'unknown schedule': (['--schedule','cosine'], "'cosine'"), 'unreadable rate': (['--lrs','1e-3,fast'], "'fast'"),
            'negative rate': (['--lrs=-1'], "'-1'"), 'no epochs': (['--epochs','0'], "'0'"), 'half a seed': (['--seeds','1.5'], "'1.5'"),
            'out is a file': (['--out','taken'], "'taken'"), 'out in a file': (['--out','taken/new'], 'taken'),
            'unknown option': (['--rate','1'], '--rate'),
            'no jobs': (['--jobs','0'], "'0'"), 'warmup of one cycle': (['--task','digits','--warmup','0.1'], 'one_cycle'),
            'unknown memory': (['--memory','long'], "'long'"), 'both ways': (['--lower','--higher'], '--higher'),
            'no such file': (['--task','my_file.py:get_learner'], "no file 'my_file.py'"),
            'no such module': (['--task','nowhere.at_all:get'], "'nowhere'"),
            'no such function': (['--task','adamod_fastai.compare.tasks:learner'], "no function 'learner' in 'adamod"),
            'a file with a mistake': (['--task','digits,taken.py:get'], 'SyntaxError')}

taken = ['taken','taken.py']

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
    assert sorted(os.listdir(out))==['digits_accuracy.png','digits_losses.png','losses.csv','results.csv','runs']
    for o in out.glob('*.[cp]*'): assert os.path.join('res', o.name) in res.stdout.splitlines()[-1]
    for o in out.glob('*.png'): assert o.read_bytes()[:8]==b'\x89PNG\r\n\x1a\n'
    table = rows(out/'results.csv')
    assert {(o['opt'],float(o['lr']),o['seed']) for o in table} == {(o,lr,s) for o in ('Adam','AdaMod') for lr in (.01,.1) for s in '01'}
    assert len(table)==8 and {o['batches'] for o in table}=={'22'} and {(o['schedule'],o['n_epoch']) for o in table}=={('flat','1')}
    acc = np.array([float(o['accuracy']) for o in table if (o['opt'],float(o['lr']))==('Adam',.01)])
    line = next(o for o in res.stdout.splitlines() if o.startswith('Adam '))
    assert f'{acc.mean():.3f} ± {acc.std(ddof=1):.3f}' in line
    before = (out/'results.csv').read_bytes()
    again = here([*args, '--jobs', '1'], tmp_path)
    assert again.stdout==res.stdout and (out/'results.csv').read_bytes()==before and again.stderr=="Found 8 of 8 runs in 'res'\n"
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
    assert 'memory' not in runs # none but the optimizers' own
    tables = res.stdout.split('\n\n')
    assert len(tables)==5 and tables[0].startswith('digits, one_cycle') and tables[2].startswith('transformer, flat')
    for o in tables[1],tables[3]: assert [k.split()[0] for k in o.splitlines()]==['lr','Adam','AdaMod','AdaMod-1000']
    pictures = [f'{a}_{b}.png' for a in ('digits','transformer') for b in ('accuracy','losses')]
    assert sorted(o.name for o in (tmp_path/'adamod-compare').glob('*.png'))==pictures

def test_command_help(here):
    res = here(['--help'], '.')
    options = res.stdout[:res.stdout.index('examples:')].split('\n  --')[1:]
    assert res.returncode==0 and len(options)==14
    for o in options: assert o.count('(default') == (0 if o.startswith('lower') else 1), o
    assert 'adamod-compare --task my_file.py:get_learner' in res.stdout

my_file = """
import time
from fastai.basics import *
from my_data import dls
class Odd(Exception): pass
def loss(a, b): return (a-b).abs().mean()
def get_learner(opt_func): return Learner(dls(), nn.Linear(3,1), loss_func=loss, opt_func=opt_func, metrics=[mae, loss])
def no_learner(opt_func): return 3
def raises(opt_func): raise ValueError('of mine')
def dies(opt_func):
    import multiprocessing, os
    if multiprocessing.parent_process(): os._exit(9)
    return get_learner(opt_func)
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
    assert res.stdout.startswith(f'{task}, one_cycle, 1 epoch: mae, ')
    best = min(('Adam','SGD'), key=lambda k: sum(float(o['mae']) for o in runs if (o['opt'],float(o['lr']))==(k,.01)))
    first = next(o for o in res.stdout.splitlines() if o.startswith(best))
    assert '*' in first[:30]
    assert len(list(tmp_path.glob('*get_learner*mae.png')))==1

@pytest.mark.parametrize('task,code,text', [('my_file.py:no_learner',2,'returns 3. It must return a Learner.'),
    ('my_file:dies',2,'A process died in one of the runs dies: '),
                                                            ('my_file.py:missing',2,"no function 'missing'")])
def test_command_says_what_is_wrong_with_my_task(mine, tmp_path, here, task, code, text):
    res = here(['--task',task,*few,'--out',str(tmp_path)], mine)
    assert res.returncode==code and res.stdout=='' and text in res.stderr and len(res.stderr.splitlines())==1

def test_a_mistake_in_my_task_is_shown_where_it_is(mine, tmp_path, here):
    with pytest.raises(ValueError, match='of mine') as e: here(['--task','my_file.py:raises',*few,'--out',str(tmp_path)], mine)
    assert 'raises' in [o.name for o in e.traceback]

def test_command_runs_a_file_that_changed_anew(tmp_path, here):
    def task(text):
        (tmp_path/'my_file.py').write_text(text)
        res = here(['--task','my_file.py:get_learner','--opts','Adam','--lrs','.1','--epochs','1','--seeds','1'], tmp_path)
        assert res.returncode==0
        return len(rows(tmp_path/'adamod-compare'/'results.csv'))
    (tmp_path/'my_data.py').write_text(my_data)
    assert [task(o) for o in (my_file, my_file+'\nunused = 1', my_file.replace('.mean()','.sum()'))]==[1,1,2]

slow_file = my_file+"""
def slow(a, b):
    if Path('slow').exists(): time.sleep(0.03)
    return loss(a, b)
def get_slow_learner(opt_func): return Learner(dls(), nn.Linear(3,1), loss_func=slow, opt_func=opt_func, metrics=mae)
"""

@pytest.mark.slow
@pytest.mark.skipif(sys.platform=='win32', reason='sends SIGINT')
@pytest.mark.parametrize('jobs', ['1','2'])
def test_command_interrupted(tmp_path, here, jobs):
    "The handler is set, because a shell's background job ignores SIGINT"
    args = ['--task','my_file.py:get_slow_learner','--seeds','2','--opts','Adam,AdaMod','--epochs','1','--jobs',jobs]
    (tmp_path/'my_file.py').write_text(slow_file)
    (tmp_path/'my_data.py').write_text(my_data)
    (tmp_path/'slow').touch()
    p = subprocess.Popen(command+args, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         start_new_session=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    path,start = tmp_path/'adamod-compare'/'results.csv',time.time()
    while not runs(tmp_path/'adamod-compare') and time.time()-start < 120: time.sleep(0.05)
    os.killpg(p.pid, signal.SIGINT) # as a terminal does: all of its processes
    out,err = p.communicate(timeout=120)
    err = without_progress(err)
    assert p.returncode==130 and out=='' and len(err.splitlines())==1 and 'interrupted' in err
    assert ended(p.pid)
    before = rows(path)
    assert 1 <= len(before) < 12
    (tmp_path/'slow').unlink()
    res = here(args, tmp_path)
    after = rows(path)
    assert (res.returncode,res.stderr,len(after))==(0,f"Found {len(before)} of 12 runs in 'adamod-compare'\n",12)
    assert {(o['opt'],o['lr'],o['seconds']) for o in before} <= {(o['opt'],o['lr'],o['seconds']) for o in after}

# --- files that are alike

one_file = 'from comparisons import *\n' \
           'def get_learner(opt_func):\n    learn = tiny(opt_func)\n    learn.dls = data()\n    return learn\n'
data = 'import torch\nfrom pathlib import Path\nscale = float((Path(__file__).parent/"data.txt").read_text())\n' \
       'def data():\n    x = torch.linspace(-1, 1, 144).view(-1,3).sin()\n    ds = TensorDataset(x, scale*x.sum(1, keepdim=True))\n' \
       '    return DataLoaders(DataLoader(ds, bs=8, shuffle=True), DataLoader(ds, bs=8))\n'

def maes(res): return [next(k for k in o.splitlines() if k.startswith('Adam ')).split()[1] for o in res.stdout.split('\n\n')[1:-1:2]]

def test_two_files_alike_but_for_their_data_are_two_tasks(tmp_path, here, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    for o,scale in dict(a=1, b=100).items():
        (tmp_path/o).mkdir()
        (tmp_path/o/'task.py').write_text(one_file+data)
        (tmp_path/o/'data.txt').write_text(str(scale))
    args = '--opts Adam --lrs 1e-2 --epochs 1 --seeds 1 --out res'.split()
    both = maes(here(['--task','a/task.py:get_learner,b/task.py:get_learner',*args], tmp_path))
    alone = [maes(here(['--task',f'{o}/task.py:get_learner',*args,'--out',f'res_{o}'], tmp_path))[0] for o in 'ab']
    assert both==alone and float(both[1]) > 20*float(both[0])
    assert len({o['made'] for o in rows(tmp_path/'res'/'results.csv')})==2

def test_two_files_that_import_what_has_one_name_do_not_go_together(tmp_path, here):
    for o in 'ab':
        (tmp_path/o).mkdir()
        (tmp_path/o/'task.py').write_text('from my_data import get_learner\n')
        (tmp_path/o/'my_data.py').write_text(f'def get_learner(opt_func): return {o!r}\n')
    res = here(['--task','a/task.py:get_learner,b/task.py:get_learner'], tmp_path)
    assert res.returncode==2 and len(res.stderr.splitlines())==1
    assert "Invalid task: 'b/task.py:get_learner'" in res.stderr and 'my_data is ' in res.stderr

# --- what one sees

todo = [(0,dict(task='tiny', opt='Adam', lr=0.1, seed=i)) for i in range(3)]
def done(): return ((o,{}) for o in todo)

def test_without_a_terminal_there_is_a_line_now_and_then(capfd):
    assert [o for o,_ in watched(done(), todo, every=0)]==todo
    assert capfd.readouterr().err.splitlines()==[f'{i} of 3 runs are done' for i in (1,2,3)]
    assert [o for o,_ in watched(done(), todo)]==todo and capfd.readouterr()==('','')

@pytest.mark.parametrize('n', [1,2])
def test_the_bar_names_what_is_trained_from_the_first_run_on(monkeypatch, n):
    from fastprogress import fastprogress
    shown = []
    class Bar(fastprogress.ProgressBar):
        def __init__(self, *args, **kwargs): super().__init__(*args, **{**kwargs, 'display': True})
        def on_update(self, val, text): shown.append((val,self.comment))
    monkeypatch.setattr('adamod_fastai.compare.sweep.IN_NOTEBOOK', True)
    monkeypatch.setattr('adamod_fastai.compare.sweep.progress_bar', Bar)
    list(watched(done(), todo, n))
    names = [f'tiny: Adam, lr 0.1, seed {i}' for i in range(3)]
    assert dict(shown)=={i: '; '.join(names[i:i+n]) for i in range(4)}

class NoTerminal:
    "A standard output that is only written to"
    def write(self, s): pass

@pytest.mark.parametrize('out', [None, NoTerminal()])
def test_a_standard_output_that_is_no_file(tmp_path, monkeypatch, out):
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    main(['--task','comparisons:tiny',*few,'--out',str(tmp_path/'res')])
    assert len(rows(tmp_path/'res/results.csv'))==8

@pytest.mark.slow
@pytest.mark.skipif(sys.platform=='win32', reason='has pipes of its own')
def test_a_pipe_that_closes(mine, tmp_path):
    args = ['--task','my_file.py:get_learner',*few,'--jobs','1','--out',str(tmp_path)]
    p = subprocess.Popen([*command, *args], cwd=mine, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.close()
    assert p.stderr.read()=='' and p.wait()==141 and len(rows(tmp_path/'results.csv'))==8

@pytest.mark.slow
def test_the_package_run_as_a_module_is_the_command():
    code = "import runpy; runpy.run_module('adamod_fastai.compare', run_name='__main__', alter_sys=True)"
    res = python(code, '--help')
    assert res.returncode==0 and res.stdout.startswith('usage: adamod-compare')

# --- the paths of tasks

def test_two_tasks_never_share_a_picture():
    specs = ['a/b.py:f', 'a_b.py:f', 'a b.py:f', 'a-b.py:f', 'a.b:f', 'x'*300+'.py:f', 'y'+'x'*300+'.py:f', 'ä.py:f', 'a/b/c.py:f',
             'a/b_c.py:f']
    names = [file_name(o) for o in specs]
    assert len(set(names))==len(specs) and max(map(len, names)) < 100
    assert file_name('digits')=='digits' and file_name('my_file.py:get_learner')=='my_file.py_get_learner'

def test_a_long_path(tmp_path, here):
    folder = tmp_path/('long'*20)/('path'*20)/('of'*40)
    folder.mkdir(parents=True)
    (folder/'my_file.py').write_text(my_file)
    (folder/'my_data.py').write_text(my_data)
    res = here(['--task',f'{folder.relative_to(tmp_path)}/my_file.py:get_learner',*few], tmp_path)
    assert (res.returncode,res.stderr)==(0,'') and len(list((tmp_path/'adamod-compare').glob('*.png')))==2

def test_the_table_is_printed_before_anything_is_drawn(mine, tmp_path, here, monkeypatch, capfd):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('adamod_fastai.compare.command.draw', full)
    with pytest.raises(OSError, match='No space left'): here(['--task','my_file.py:get_learner',*few,'--out',str(tmp_path)], mine)
    assert 'Adam ' in capfd.readouterr().out

@pytest.mark.parametrize('text,want', [('digits,transformer',['digits','transformer']), ('a,b.py:f',['a,b.py:f']),
    ('digits, a,b.py:f',['digits','a,b.py:f']), ('b.py:f,b.py:f',['b.py:f']), ('c.py:f,a,b.py:f',['c.py:f','a,b.py:f'])])
def test_a_comma_in_a_path(tmp_path, monkeypatch, text, want):
    monkeypatch.chdir(tmp_path)
    for o in 'a,b.py','b.py','c.py': (tmp_path/o).touch()
    assert split_tasks(text)==want

def test_a_task_file_that_changes_the_folder(tmp_path, here):
    (tmp_path/'my_file.py').write_text(my_file+'import os\nos.makedirs("else", exist_ok=True)\nos.chdir("else")\n')
    (tmp_path/'my_data.py').write_text(my_data)
    res = here(['--task','my_file.py:get_learner',*few,'--out','res'], tmp_path)
    assert res.returncode==0 and len(rows(tmp_path/'res/results.csv'))==8 and not os.listdir(tmp_path/'else')

@pytest.mark.parametrize('top,text', [('import sys; sys.exit("bye")', 'SystemExit: bye'),
                                      ('raise ValueError("of mine")', 'ValueError: of mine')])
def test_a_task_file_that_ends_python(tmp_path, here, top, text):
    (tmp_path/'my_file.py').write_text(top)
    res = here(['--task','my_file.py:get_learner',*few], tmp_path)
    assert res.returncode==2 and len(res.stderr.splitlines())==1 and text in res.stderr

def test_a_task_file_that_reads_arguments_gets_none_of_ours(tmp_path, here):
    (tmp_path/'my_file.py').write_text('import argparse\np = argparse.ArgumentParser()\np.add_argument("--n", type=int, default=3)\n'
                                       'assert p.parse_args().n == 3\n'+my_file)
    (tmp_path/'my_data.py').write_text(my_data)
    assert here(['--task','my_file.py:get_learner',*few], tmp_path).returncode==0

@pytest.mark.slow
def test_one_seed_has_no_standard_deviation(here, tmp_path):
    head = here('--task digits --opts Adam --lrs 1e-2 --epochs 1 --seeds 1'.split(), tmp_path).stdout.splitlines()[0]
    assert head=='digits, one_cycle, 1 epoch: accuracy, of one seed, * best of each learning rate'
