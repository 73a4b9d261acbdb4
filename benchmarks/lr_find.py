"""What `lr_find` suggests for each optimizer, and how well `fit_one_cycle` trains at that: `python benchmarks/lr_find.py [TASK ...]`

A row in nbs/results/lr_find/TASK.csv for each optimizer and seed; stored runs are not repeated.
"""
import sys, warnings
from pathlib import Path

import pandas as pd
import torch
from fastai.basics import Adam, noop
from fastai.callback.schedule import SuggestionMethod
from fastai.torch_core import no_random

from adamod_fastai.all import *
from adamod_fastai.compare.tasks import *

from chosen_on import cancer_learner, densenet_learner

three = {k: known_opts[k] for k in ('Adam','AdaMod','AdaMod-1000')}
tasks = dict(digits=(digits_learner, 5, known_opts), cancer=(cancer_learner, 8, three), densenet=(densenet_learner, 8, three))

def quiet(get_learner, opt_func, seed):
    learn = get_learner(opt_func)
    learn.logger = noop
    learn.remove_cb(learn.progress)
    learn.dls.train.rng.seed(seed)
    return learn

def run(get_learner, n_epoch, opt_func, seed):
    "The suggested learning rate, and what training with it reaches"
    with no_random(seed): lr = quiet(get_learner, opt_func, seed).lr_find(show_plot=False, suggest_funcs=SuggestionMethod.Valley).valley
    with no_random(seed):
        learn = quiet(get_learner, opt_func, seed)
        learn.fit_one_cycle(n_epoch, lr)
    _,valid_loss,accuracy = learn.recorder.values[-1]
    return dict(lr=lr, valid_loss=valid_loss, accuracy=accuracy)

def main(names):
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    for name in names or tasks:
        get_learner,n_epoch,opts = tasks[name]
        path = Path(f'nbs/results/lr_find/{name}.csv')
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = pd.read_csv(path).to_dict('records') if path.exists() else []
        done = {(o['opt'],o['seed']) for o in rows}
        for seed in range(5):
            for opt,opt_func in opts.items():
                if (opt,seed) in done: continue
                rows.append(dict(task=name, opt=opt, seed=seed, **run(get_learner, n_epoch, opt_func, seed)))
                pd.DataFrame(rows).round(6).to_csv(path, index=False)

if __name__ == '__main__': main(sys.argv[1:])
