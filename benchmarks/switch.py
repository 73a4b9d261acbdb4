"""The runs of the tutorial "Is there a last percent in SGD?": `python benchmarks/switch.py FOLDER`

Fifty of them, a quarter of an hour on one core.
What is in the folder already is not run again."""
import sys, warnings
from functools import partial

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import torch
from adamod_fastai.all import *
from adamod_fastai.tasks import *

def switch(learn, lr): return SwitchToSGD(lr)

def main(out):
    "Train a DenseNet with Adam, AdaMod, SGD and AdaMod followed by SGD"
    run = partial(compare, densenet_learner, seeds=5, n_epoch=12, out=out)
    run('Adam,AdaMod', lrs=[0.01,0.03])
    run('SGD', lrs=[0.1,0.3])
    for lr in 0.1,0.3: run({f'AdaMod, then SGD {lr}': AdaMod}, lrs=[0.01,0.03], cbs=partial(switch, lr=lr))

if __name__ == '__main__':
    torch.set_num_threads(1)
    main(sys.argv[1])
