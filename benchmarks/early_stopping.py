#!/usr/bin/env python
"""How soon a fit stops that is stopped early, by the averaging length: `python benchmarks/early_stopping.py`

Each fit may have 1000 epochs (30 of `fit_one_cycle`), and stops when the loss of the validation set has not fallen for `patience` epochs.
`announced` averages over 15% of these, `patience` over at most as many epochs as the patience, `sure`, the default of AdaMod, over
15% of the epochs that are sure: those so far and the patience. A row is a fit, in nbs/results/early_stopping.csv: a quarter of an hour."""
import csv, warnings
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import torch
from fastai.basics import Adam, set_seed
from fastai.callback.all import *
from adamod_fastai.all import *
from adamod_fastai.compare.tasks import digits_learner, transformer_learner

from chosen_on import cancer_learner

class Announced(MemoryLength):
    "15% of the epochs that are announced"
    n_epochs = property(lambda self: self.learn.n_epoch)

class Patience(Announced):
    "15% of the epochs that are announced, and no more than the patience"
    n_epochs = property(lambda self: min(self.learn.n_epoch, self.early_stopping.patience/self.pct))

LENGTHS = {'Adam': (Adam,[]), 'announced': (AdaMod,[Announced]), 'patience': (AdaMod,[Patience]), 'sure': (AdaMod,[])}
FITS = [*product([digits_learner,cancer_learner], ['fit'], [1000], [(3,0.),(6,0.),(3,0.002)], [1e-3,1e-2]),
        *product([transformer_learner], ['fit'], [1000], [(3,0.)], [1e-3,3e-3]),
        *product([digits_learner,cancer_learner], ['fit_one_cycle'], [30], [(3,0.)], [1e-3,1e-2])]

def fit(get_learner, schedule, n_epoch, patience, min_delta, lr, length, seed):
    "The number of epochs, and the accuracy at the end"
    opt_func,cbs = LENGTHS[length]
    set_seed(seed)
    learn = get_learner(opt_func, cbs=cbs)
    stop = EarlyStoppingCallback(patience=patience, min_delta=min_delta)
    with learn.no_bar(), learn.no_logging(), redirect_stdout(StringIO()): getattr(learn, schedule)(n_epoch, lr, cbs=stop)
    return len(learn.recorder.values), learn.recorder.values[-1][2]

def main(n_seeds=3):
    torch.set_num_threads(1)
    path = Path(__file__).resolve().parent.parent/'nbs'/'results'/'early_stopping.csv'
    with path.open('w', newline='') as f:
        out = csv.writer(f, lineterminator='\n')
        out.writerow('task schedule patience min_delta lr length seed epochs accuracy'.split())
        for (get_learner,schedule,n,(patience,delta),lr),length,seed in product(FITS, LENGTHS, range(n_seeds)):
            epochs,accuracy = fit(get_learner, schedule, n, patience, delta, lr, length, seed)
            out.writerow([get_learner.__name__.removesuffix('_learner'),schedule,patience,delta,lr,length,seed,epochs,round(accuracy, 5)])
            f.flush()

if __name__ == '__main__': main()
