"Small comparisons that several tests share"
import csv, multiprocessing, os, subprocess, sys

import torch
from torch.utils.data import TensorDataset
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.metrics import mae

N_BATCHES = 6

class Tiny:
    "Linear regression in 6 batches an epoch; keeps the Learners it made, and interrupts like Ctrl-C when it is to make number `stop`"
    __name__ = 'tiny'
    def __init__(self, stop=None, dls=None): self.made,self.stop,self.dls = [],stop,dls
    def __getstate__(self): return {} # what it made so far is no part of what a run is
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

def tiny(opt_func, bs=8): return Learner(tiny_dls(), torch.nn.Linear(3,1), loss_func=MSELossFlat(), opt_func=opt_func, metrics=mae)

def children(): return [p for p in multiprocessing.active_children() if p.is_alive()]

env = {**{k:v for k,v in os.environ.items() if k not in ('DISPLAY','MPLBACKEND')}, 'PYTHONIOENCODING':'utf-8'}
command = [sys.executable, '-c', 'from adamod_fastai.compare import main; main()']

def run(args, cwd): return subprocess.run(command+args, cwd=cwd, env=env, capture_output=True, text=True, encoding='utf-8', timeout=300)
