"Runs in parallel: processes of this machine, and executors that one brings"
import multiprocessing, os, signal, subprocess, sys, threading, time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cloudpickle, pytest, torch
from fastai.callback.core import Callback
from fastai.metrics import ValueMetric

from adamod_fastai.compare import compare
from adamod_fastai.compare.tasks import digits_learner
from comparisons import N_BATCHES, Tiny, children, ended, env, grid, rows, runs, tiny

# --- in parallel

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

def test_functions_that_no_other_process_can_import(one_thread):
    args = dict(opts='AdaMod', lrs=1e-2, seeds=2, n_epoch=1)
    want = compare(digits_learner, **args)
    df = compare(lambda f: digits_learner(f), **args, jobs=2)
    assert df.losses.tolist()==want.losses.tolist() and df.accuracy.tolist()==want.accuracy.tolist()

def test_what_cannot_be_sent_is_refused():
    lock = threading.Lock()
    with pytest.raises(ValueError, match='^Invalid get_learner, opts or cbs: they cannot be sent to another process'):
        compare(lambda f: (lock, tiny(f))[1], **grid, jobs=2)

modules = {'my_cfg': 'import threading\nfrom functools import lru_cache\nlock = threading.Lock()\nbs = 8\n'
                     'class Unused:\n    def __reduce__(self): raise SystemExit\nnothing = Unused()\n'
                     'import my_data\n@lru_cache(None)\ndef size(): return bs\n',
           'my_data': 'import my_cfg\nfrom comparisons import *\ndef data():\n    import my_cfg as cfg\n'
                      '    return DataLoaders(*(o.new(bs=cfg.bs) for o in tiny_dls().loaders))\ndef other(): return my_cfg.lock\n'}

def test_modules_are_sent_as_they_are_loaded(tmp_path, monkeypatch, one_thread):
    "With what was set in them, also if they import each other, and whatever their files say by now"
    monkeypatch.syspath_prepend(tmp_path)
    for k,v in modules.items(): (tmp_path/f'{k}.py').write_text(v)
    import my_cfg, my_data
    try:
        my_cfg.bs = 4
        for k in modules: (tmp_path/f'{k}.py').write_text('raise ImportError')
        def get_learner(opt_func):
            learn = tiny(opt_func)
            learn.dls = my_data.data()
            assert my_cfg.size() == 4
            return learn
        want,df = [compare(get_learner, **grid, jobs=o) for o in (1,2)]
    finally:
        for k in modules: sys.modules.pop(k)
    assert df.losses.tolist()==want.losses.tolist() and set(df.batches)=={2*N_BATCHES}
    assert not cloudpickle.list_registry_pickle_by_value()

def test_a_worker_that_makes_something_else_refuses(monkeypatch):
    "As where a notebook has changed torch itself"
    mse = torch.nn.functional.mse_loss
    monkeypatch.setattr(torch.nn.functional, 'mse_loss', lambda *args, **kwargs: 2*mse(*args, **kwargs))
    with pytest.raises(ChildProcessError, match='^A worker makes something else than this process: first losses'):
        compare(tiny, **grid, jobs=2)

def test_a_task_that_is_random_is_not_refused():
    def get_learner(opt_func):
        import random
        learn = tiny(opt_func)
        learn.model.weight.data.fill_(random.SystemRandom().random())
        return learn
    assert len(compare(get_learner, **grid, jobs=2))==8

def test_workers_have_the_folder_and_the_environment_of_now(tmp_path, monkeypatch):
    def get_learner(opt_func):
        assert os.environ['SIZE']==Path('size.txt').read_text()
        return tiny(opt_func)
    for o in '84':
        (tmp_path/o).mkdir()
        monkeypatch.chdir(tmp_path/o)
        monkeypatch.setenv('SIZE', o)
        Path('size.txt').write_text(o)
        assert len(compare(get_learner, **grid, jobs=2))==8

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

def raising(e): raise e
class OddError(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')

@pytest.mark.parametrize('fail,error,text', [
    (lambda: os.kill(os.getpid(), 9), ChildProcessError, 'A process died in one of the runs tiny: .*lr 0.2, seed 0'),
    (lambda: os._exit(3), ChildProcessError, 'lr 0.2, seed 0'), (lambda: raising(IndexError('of mine')), IndexError, 'of mine'),
    (lambda: raising(OddError(1,2)), (RuntimeError,OddError), '1 and 2'),
    (lambda: raising(KeyboardInterrupt()), KeyboardInterrupt, None)])
def test_a_process_that_fails_is_told_and_the_rest_is_kept(tmp_path, fail, error, text):
    args = dict(opts='Adam', lrs=[.1,.2,.3], seeds=1, n_epoch=1, schedule='flat', out=tmp_path, jobs=2)
    with pytest.raises(error, match=text) as e: compare(Tiny(), **args, cbs=lambda learn: Fail(fail))
    if error is IndexError: assert 'in raising' in str(e.value.__cause__)
    assert not children()
    done = {o['lr'] for o in rows(tmp_path/'results.csv')} if (tmp_path/'results.csv').exists() else set()
    assert '0.2' not in done
    assert len(compare(Tiny(), **args))==3

def test_the_runs_that_were_going_on_as_a_process_died_are_named(tmp_path):
    class DieOrWait(Callback):
        def before_batch(self):
            if self.opt.hypers[0]['lr'] not in (.2,.3,.4): return # a trial
            if self.opt.hypers[0]['lr']!=.3:
                (tmp_path/'waiting').touch()
                time.sleep(60)
            while not (tmp_path/'waiting').exists(): time.sleep(0.01)
            os.kill(os.getpid(), 9)
    both = 'tiny: Adam, lr 0.2, seed 0; tiny: Adam, lr 0.3, seed 0'
    with pytest.raises(ChildProcessError, match=f'^A process died in one of the runs {both}. Try fewer'):
        compare(Tiny(), 'Adam', [.2,.3,.4], seeds=1, n_epoch=1, schedule='flat', jobs=2, cbs=lambda learn: DieOrWait())
    assert not children()

@pytest.mark.parametrize('jobs', [0,-1,1.5,'many'])
def test_bad_jobs(tmp_path, jobs):
    with pytest.raises(ValueError, match=f'^Invalid jobs: {jobs!r}'): compare(Tiny(), **grid, jobs=jobs, out=tmp_path/'new')
    assert not (tmp_path/'new').exists()

# --- executors

def assert_same(df, want):
    for o in same: assert df[o].tolist()==want[o].tolist(), o

@pytest.mark.parametrize('make', [lambda: ThreadPoolExecutor(3), lambda: ProcessPoolExecutor(2, multiprocessing.get_context('fork'))])
def test_a_run_does_not_depend_on_the_executor(one_thread, make, tmp_path):
    want = compare(tiny, **grid)
    with make() as executor: df = compare(lambda f: tiny(f), **grid, executor=executor, out=tmp_path)
    assert_same(df.assign(task=want.task), want)
    assert len(rows(tmp_path/'results.csv'))==8

class Job:
    "What some clusters hand back: no future, it is asked whether it is done"
    def __init__(self, f, *args): self.f,self.args,self.asked = f,args,0
    __hash__ = None
    def cancel(self): self.f = None
    def done(self):
        self.asked += 1
        return self.asked > 2
    def result(self):
        if self.args[1][1]['lr']==0.2: raise OSError('the node is gone')
        return self.f(*self.args)
class Cluster:
    def __init__(self, kind=Job): self.kind,self.jobs = kind,[]
    def submit(self, f, *args):
        self.jobs.append(self.kind(f, *args))
        return self.jobs[-1]

def test_an_executor_needs_no_futures_and_the_run_that_it_lost_is_named(tmp_path):
    args = dict(opts='Adam', seeds=1, n_epoch=1, out=tmp_path)
    want = compare(tiny, **{**args, 'out': None}, lrs=[.1,.3])
    assert_same(compare(tiny, **args, lrs=[.1,.3], executor=Cluster()), want)
    with pytest.raises(ChildProcessError, match='^The run tiny: Adam, lr 0.2, seed 0 was lost: OSError: the node is gone$'):
        compare(tiny, **args, lrs=[.2,.4], executor=Cluster())
    assert {o['lr'] for o in rows(tmp_path/'results.csv')}=={'0.1','0.3','0.4'}

def test_a_task_that_fails_in_this_process_sends_nothing():
    cluster = Cluster()
    with pytest.raises(ValueError, match='of mine'): compare(lambda f: raising(ValueError('of mine')), **grid, executor=cluster)
    assert not cluster.jobs

def test_what_is_not_done_is_taken_back():
    class Waiting(Job):
        "Waits without end, unless it is lost"
        def done(self): return self.args[1][1]['lr']==0.2
    cluster = Cluster(Waiting)
    with pytest.raises(ChildProcessError, match='was lost'):
        compare(tiny, 'Adam', [.1,.2,.3], seeds=1, n_epoch=1, executor=cluster)
    assert len(cluster.jobs)==3 and all(o.f is None for o in cluster.jobs if not o.done())

class Here:
    "Does it at once, in this process"
    def submit(self, f, *args):
        res = Future()
        res.set_result(f(*args))
        return res

def test_an_executor_does_runs_of_one_thread(one_thread):
    torch.set_num_threads(2)
    class See(Callback):
        order = 49
        def before_fit(self): self.learn.metrics = [ValueMetric(torch.get_num_threads, 'threads')]
    df = compare(Tiny(), 'Adam', .1, seeds=2, n_epoch=1, cbs=lambda learn: See(), executor=Here())
    assert set(df.threads)=={1.} and torch.get_num_threads()==2

def test_a_process_checks_once_what_it_makes(tmp_path):
    def n_made(seeds):
        file = tmp_path/f'{seeds}'
        def get_learner(opt_func):
            with open(file, 'a') as f: f.write('.')
            return tiny(opt_func)
        compare(get_learner, 'Adam', .1, seeds=seeds, n_epoch=1, executor=Here())
        return len(file.read_text())
    assert n_made(3) == n_made(1)+2

@pytest.mark.parametrize('args,text', [(dict(executor=3), '^Invalid executor: 3'),
                                       (dict(executor=Cluster(), jobs=2), '^Invalid jobs: 2. With an executor')])
def test_bad_executors(tmp_path, args, text):
    with pytest.raises(ValueError, match=text): compare(Tiny(), **grid, **args, out=tmp_path/'new')
    assert not (tmp_path/'new').exists()

# --- in threads and in processes of others

def test_two_threads_do_not_disturb_each_other(one_thread):
    def drawing(seed):
        df = compare(tiny, 'Adam', [.1,.2,.3], seeds=1+seed, n_epoch=2, jobs=1)
        return df.losses.tolist()
    want = [drawing(o) for o in (1,2)]
    with ThreadPoolExecutor(2) as pool: assert list(pool.map(drawing, (1,2)))==want
    assert torch.get_num_threads()==1

def in_a_pool(jobs):
    try: return compare(tiny, 'Adam', .1, seeds=2, n_epoch=1, jobs=jobs).losses.tolist()
    except ValueError as e: return str(e)

@pytest.mark.parametrize('pool', [lambda ctx: ctx.Pool(1), lambda ctx: ProcessPoolExecutor(1, ctx)])
def test_in_the_process_of_a_pool(one_thread, pool):
    want = in_a_pool(1)
    with pool(multiprocessing.get_context('fork')) as p: one,two = p.map(in_a_pool, [1,2])
    assert one==want and two == 'Invalid jobs: 2. It must be 1 in a process that was started by multiprocessing.'

# --- what is left behind

waits = """
import multiprocessing, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from comparisons import tiny
from adamod_fastai.compare import compare
def cbs(learn):
    if not multiprocessing.parent_process(): return
    Path('waiting').touch()
    time.sleep(600)
for o in sys.argv[2:]:
    if not os.fork():
        os.setsid()
        os.chdir(o)
        Path('pid').write_text(str(os.getpid()))
        compare(tiny, 'Adam', [.1,.2], seeds=1, n_epoch=1, out='out', jobs=2)
        compare(tiny, 'Adam', [.1,.2], seeds=1, n_epoch=1, out='out', jobs=2, cbs=cbs)
for _ in sys.argv[2:]: print(*os.wait(), flush=True)
"""
SIGNALS = [signal.SIGINT,signal.SIGTERM,signal.SIGKILL]

@pytest.fixture(scope='module')
def waiting(tmp_path_factory):
    "For each signal a folder, in which a process of its own waits for those that do its second comparison; and what ended how"
    folders = {o: tmp_path_factory.mktemp('waiting') for o in SIGNALS}
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', waits, os.path.dirname(__file__), *folders.values()], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    until = time.time()+120
    while not all((o/'waiting').exists() for o in folders.values()) and time.time() < until: time.sleep(0.05)
    yield folders,p.stdout
    p.kill()
    p.wait()

@pytest.mark.slow
@pytest.mark.skipif(sys.platform=='win32', reason='sends signals')
@pytest.mark.parametrize('sig', SIGNALS)
def test_whatever_ends_it_no_process_is_left_and_what_is_done_is_kept(waiting, sig):
    folders,told = waiting
    pid = int((folders[sig]/'pid').read_text())
    os.kill(pid, sig)
    ended_pid,status = map(int, told.readline().split())
    assert ended_pid == pid and status != 0
    assert ended(pid)
    assert len(runs(folders[sig]/'out'))==2

# --- Dask, with a scheduler and workers of their own

@pytest.fixture(scope='module')
def dask(tmp_path_factory):
    "The address of a scheduler, and a function that starts a worker"
    pytest.importorskip('distributed')
    d,started = tmp_path_factory.mktemp('dask'),[]
    def start(*args):
        p = subprocess.Popen([sys.executable, '-W', 'ignore', '-m', 'dask', *args, '--no-dashboard'], cwd=d, env=env,
                             stdout=subprocess.DEVNULL, stderr=(d/f'{len(started)}.log').open('w'))
        started.append(p)
        return p
    start('scheduler', '--host', '127.0.0.1', '--port', '0', '--scheduler-file', 'scheduler.json')
    path,until = d/'scheduler.json',time.time()+60
    while not path.exists() and time.time() < until: time.sleep(0.1)
    from distributed import Client
    with Client(scheduler_file=str(path), set_as_default=False) as client:
        yield client.scheduler.address,lambda: start('worker', client.scheduler.address, '--nthreads', '1', '--no-nanny')
    for o in started: o.kill()
    for o in started: o.wait()

@pytest.fixture(scope='module')
def worker(dask): return dask[1]()

dask_args = '--task my_file.py:get_learner --opts Adam,SGD --lrs 1e-3,1e-2,1e-1 --epochs 1 --seeds 2'.split()

@pytest.mark.slow
def test_dask_with_a_worker_killed_in_the_middle_gives_the_same_to_the_bit(tmp_path, dask, worker, here):
    "Its workers have none of the files of the task"
    address,start = dask
    mine = 'import time\nfrom my_data import *\ndef get_learner(opt_func):\n    time.sleep(.2)\n    return tiny(opt_func)\n'
    (tmp_path/'my_file.py').write_text(mine)
    (tmp_path/'my_data.py').write_text(f'import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom comparisons import tiny\n')
    assert here([*dask_args, '--jobs', '1', '--out', 'here'], tmp_path).returncode==0
    killed,there = start(),tmp_path/'there'
    def kill():
        until = time.time()+120
        while time.time() < until and len(runs(there)) < 4: time.sleep(0.05)
        killed.kill()
        done.append(len(runs(there)))
    done,killer = [],threading.Thread(target=kill)
    killer.start()
    res = here([*dask_args, '--dask', address, '--out', 'there'], tmp_path)
    killer.join()
    assert res.returncode==0 and 'get_learner, one_cycle' in res.stdout, res.stderr
    def kept(out): return sorted([{**o, 'seconds': 0} for o in runs(tmp_path/out)], key=str)
    assert kept('there')==kept('here') and len(kept('here'))==12 and 4 <= done[0] < 12
    smaller = 'learn = tiny(opt_func)\n    learn.dls.loaders[0] = learn.dls.train.new(bs=4)\n    return learn'
    (tmp_path/'my_file.py').write_text(mine.replace('return tiny(opt_func)', smaller)) # the worker that is left has had the old one
    args = dask_args[:2]+'--opts Adam --lrs 1e-3 --epochs 1 --seeds 1'.split()
    assert here([*args, '--dask', address, '--out', 'new'], tmp_path).returncode==0
    assert [o['batches'] for o in rows(tmp_path/'new'/'results.csv')]==[str(2*N_BATCHES)]

@pytest.mark.slow
def test_dask_from_python_takes_functions_of_a_notebook(dask, worker, one_thread):
    distributed,(address,_) = pytest.importorskip('distributed'),dask
    want = compare(digits_learner, 'AdaMod', 1e-2, seeds=2, n_epoch=1)
    notebook = dict(digits_learner=digits_learner, __name__='__main__')
    exec('def get_learner(opt_func): return digits_learner(opt_func)', notebook)
    with distributed.Client(address, set_as_default=False) as client:
        df = compare(notebook['get_learner'], 'AdaMod', 1e-2, seeds=2, n_epoch=1, executor=client.get_executor(pure=False))
    assert df.losses.tolist()==want.losses.tolist() and df.accuracy.tolist()==want.accuracy.tolist()

@pytest.mark.parametrize('address', ['tcp://127.0.0.1:1','nowhere'])
@pytest.mark.slow
def test_no_dask_is_there(tmp_path, address, here):
    pytest.importorskip('distributed')
    res = here(['--dask', address], tmp_path)
    assert res.returncode==2 and res.stdout=='' and res.stderr.startswith(f'adamod-compare: Invalid dask: {address!r}. ')
    assert res.stderr.count('\n')==1
    assert not (tmp_path/'adamod-compare').exists()

script = """
import warnings; warnings.filterwarnings('ignore')
import torch
torch.compile(lambda x: x*2)(torch.ones(4))
from adamod_fastai.all import *
from adamod_fastai.compare.tasks import digits_learner
def get_learner(opt_func): return digits_learner(opt_func)
print(len(compare(get_learner, 'Adam', [1e-3], seeds=2, n_epoch=1, jobs=2)))
"""

@pytest.mark.slow
def test_a_script_without_a_guard_also_after_a_compilation(tmp_path):
    "torch then has threads, before the first gradient, that no process forked from it gets over"
    (tmp_path/'run.py').write_text(script)
    res = subprocess.run([sys.executable,'-W','ignore','run.py'], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert res.stdout.split()[-1:] == ['2'], res.stderr[-1500:]
