"Runs side by side: processes of this machine, and executors that one brings"
import multiprocessing, os, sys, threading

import pytest, torch
from fastai.callback.core import Callback
from fastai.metrics import ValueMetric

from adamod_fastai.compare import compare
from adamod_fastai.tasks import digits_learner
from comparisons import N_BATCHES, Tiny, children, grid, rows

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
    notebook = compare(lambda f: digits_learner(f), **args, jobs=2)  # a function that no other process can import
    assert notebook.losses.tolist()==want.losses.tolist()
    lock = threading.Lock()
    with pytest.raises(ValueError, match='^Invalid get_learner: another process cannot be sent'):
        compare(lambda f: (lock, digits_learner(f))[1], **args, jobs=2)

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
    (lambda: os.kill(os.getpid(), 9), ChildProcessError, 'A process died in the run tiny: Adam, lr 0.2, seed 0 .exit code -9.$'),
    (lambda: os._exit(3), ChildProcessError, 'exit code 3'), (lambda: raising(IndexError('of mine')), IndexError, 'of mine'),
    (lambda: raising(OddError(1,2)), RuntimeError, r'OddError: [^\0]*1 and 2'),
    (lambda: raising(KeyboardInterrupt()), KeyboardInterrupt, None)])
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
