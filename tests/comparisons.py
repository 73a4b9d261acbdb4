"Small comparisons that several tests share"
import csv, json, multiprocessing, os, re, subprocess, sys, time
from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.metrics import mae

N_BATCHES = 6

class Runs(Callback):
    "Keeps in the task `of` the Learners that are trained in runs, and interrupts like Ctrl-C before run number `of.stop`"
    def __init__(self, of): self.of = of
    def before_fit(self):
        if hasattr(self.learn, 'first_batches'): return # a trial
        if len(self.of.made)==self.of.stop: raise KeyboardInterrupt
        if self.learn not in self.of.made: self.of.made.append(self.learn) # `fine_tune` fits twice

class Tiny:
    "Linear regression in 6 batches an epoch, which keeps the Learners of its runs in `made`"
    __name__ = 'tiny'
    def __init__(self, stop=None, dls=None): self.made,self.stop,self.dls = [],stop,dls
    def __getstate__(self): return dict(made=[], stop=None, dls=None) # what it made so far is no part of what identifies a run
    def __call__(self, opt_func):
        model = torch.nn.Sequential(torch.nn.Linear(3,1), torch.nn.Dropout(0.1))
        return Learner(self.dls or tiny_dls(), model, loss_func=MSELossFlat(), opt_func=opt_func, metrics=mae, cbs=Runs(self))

def tiny_dls():
    x = torch.linspace(-1, 1, 3*8*N_BATCHES).view(-1,3).sin()
    ds = TensorDataset(x, x.sum(1, keepdim=True))
    return DataLoaders(DataLoader(ds, bs=8, shuffle=True), DataLoader(ds, bs=8))

def rows(path):
    with open(path, newline='') as f: return list(csv.DictReader(f))

def runs(out):
    "What is stored in the folder `out`, the oldest first"
    files = sorted((Path(out)/'runs').glob('*.json'), key=lambda o: o.stat().st_mtime_ns)
    return [json.loads(o.read_text(encoding='utf-8')) for o in files]

grid = dict(opts=['Adam','SGD'], lrs=[1e-2,1e-1], seeds=2, n_epoch=1)

def tiny(opt_func, bs=8): return Learner(tiny_dls(), torch.nn.Linear(3,1), loss_func=MSELossFlat(), opt_func=opt_func, metrics=mae)

def children(): return [p for p in multiprocessing.active_children() if p.is_alive()]

env = {**{k:v for k,v in os.environ.items() if k not in ('DISPLAY','MPLBACKEND')}, 'PYTHONIOENCODING':'utf-8'}
command = [sys.executable, '-c', 'from adamod_fastai.compare import main; main()']

def without_progress(err): return re.sub(r'(?m)^\d+ of \d+ runs are done\n', '', err) # which a slow machine tells

def run(args, cwd): return subprocess.run(command+args, cwd=cwd, env=env, capture_output=True, text=True, encoding='utf-8', timeout=300)

def ended(group, seconds=10):
    "Is no process of the process `group` left, at the latest some seconds after it was ended?"
    until = time.time()+seconds
    while time.time() < until:
        try: os.killpg(group, 0)
        except ProcessLookupError: return True
        time.sleep(0.1)
    return False
