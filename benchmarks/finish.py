#!/usr/bin/env python
"""What extra training gains after a fit with AdaMod: with SGD, with AdaMod, or as part of one longer fit.

    python benchmarks/finish.py [TASK ...]

A model is trained by AdaMod with `fit_one_cycle`. From there it trains as many epochs again with SGD and momentum, or with AdaMod, each
by `fit` and by `fit_one_cycle` at three learning rates. `one fit` is a single `fit_one_cycle` of twice the epochs. All arms of a seed
have the same initial weights, and the extra fits the same batches. A row is a run, in nbs/results/finish/TASK.csv;
what is there is not run again. The DenseNet takes half an hour on one core, the other two five minutes each."""
import copy, csv, sys, warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import torch
from fastai.basics import SGD, set_seed
from fastai.callback.all import *
from adamod_fastai.all import *
from adamod_fastai.compare.tasks import digits_learner, transformer_learner

from chosen_on import densenet_learner

TASKS = {'densenet': (densenet_learner, 12, 1e-2, (3e-3,1e-2,3e-2)), 'digits': (digits_learner, 5, 1e-2, (3e-3,1e-2,3e-2)),
         'transformer': (transformer_learner, 5, 3e-3, (1e-3,3e-3,1e-2))} # epochs and learning rate of the first fit, those of one long fit
EXTRA = {'SGD': (partial(SGD, mom=0.9), (1e-2,3e-2,1e-1)), 'AdaMod': (AdaMod, (1e-3,3e-3,1e-2))}
folder = Path(__file__).resolve().parent.parent/'nbs'/'results'/'finish'

def train(learn, schedule, n_epoch, lr, seed):
    "Fit from the batches of `seed`; the loss and the accuracy of the validation set"
    set_seed(seed)
    with learn.no_bar(), learn.no_logging(): getattr(learn, schedule)(n_epoch, lr)
    return [float(o) for o in learn.recorder.values[-1][1:3]]

def new_learner(get_learner, seed):
    set_seed(seed)
    return get_learner(AdaMod)

def runs(task, seed):
    "Each run of a seed: what it was trained with, the schedule, the learning rate, and what came out"
    get_learner,n,lr,long = TASKS[task]
    learn = new_learner(get_learner, seed)
    yield 'none','',0.,train(learn, 'fit_one_cycle', n, lr, seed)
    model,opt = copy.deepcopy((learn.model.state_dict(), learn.opt.state_dict()))
    for name,(opt_func,lrs) in EXTRA.items():
        for schedule in 'fit','fit_one_cycle':
            for lr in lrs:
                learn = new_learner(get_learner, seed)
                learn.model.load_state_dict(model)
                learn.opt_func = opt_func
                learn.create_opt()
                if opt_func is AdaMod: learn.opt.load_state_dict(opt)
                yield name,schedule,lr,train(learn, schedule, n, lr, seed+1000)
    for lr in long: yield 'one fit','fit_one_cycle',lr,train(new_learner(get_learner, seed), 'fit_one_cycle', 2*n, lr, seed)

def main(tasks, n_seeds=5):
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    for task in tasks or TASKS:
        path = folder/f'{task}.csv'
        done = [int(o['seed']) for o in csv.DictReader(path.open())] if path.exists() else []
        with path.open('a', newline='') as f:
            out = csv.writer(f, lineterminator='\n')
            if not done: out.writerow(['seed','extra','schedule','lr','loss','accuracy'])
            for seed in set(range(n_seeds))-set(done):
                out.writerows([seed,name,schedule,lr,*(round(o, 5) for o in res)] for name,schedule,lr,res in runs(task, seed))
                f.flush()

if __name__ == '__main__': main(sys.argv[1:])
