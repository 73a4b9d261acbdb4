"""The runs of the tutorial "Is there a last percent in SGD?": `python benchmarks/switch.py`

Fifty of them, a quarter of an hour on one core. They are kept in benchmarks/runs, their table in nbs/results."""
import warnings
from functools import partial

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import torch
from adamod_fastai.all import *

from chosen_on import densenet_learner
from kept import compare, copy_tables

def switch(learn, lr): return SwitchToSGD(lr)

def main(out='switch'):
    "Train a DenseNet with Adam, AdaMod, SGD and AdaMod followed by SGD"
    run = partial(compare, densenet_learner, seeds=5, n_epoch=12, out=out)
    run('Adam,AdaMod', lrs=[0.01,0.03])
    run('SGD', lrs=[0.1,0.3])
    for lr in 0.1,0.3: run({f'AdaMod, then SGD {lr}': AdaMod}, lrs=[0.01,0.03], cbs=partial(switch, lr=lr))

if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
    copy_tables('switch')
