"""The runs of the pages "On what was not tuned for", "How deep?" and "A long run": `python benchmarks/studies.py [STUDY ...]`

The studies are `tasks`, `new`, `deep`, `old`, `long`: all of them without a name, some ninety minutes on one core. What is in
nbs/results already is not run again, so they can be interrupted. `new` needs data that two packages carry, see tasks.py.
"""
import sys, warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import pandas as pd
import torch
from fastai.optimizer import Adam, RAdam, SGD, ranger
from adamod_fastai.all import AdaMod, compare

from tasks import long_learner, new_tasks

out = Path(__file__).parent.parent/'nbs/results'
opts = dict(AdaMod=AdaMod, Adam=Adam, RAdam=RAdam, ranger=ranger, SGD=partial(SGD, mom=0.9))
seeds = 5

def rate(k): return float(f'{1+2*(k%2)}e{k//2}')  # half a decade apart: ..., 1e-3, 3e-3, 1e-2, ...

def scores(df):
    "Mean over the seeds of the first metric at each rate, nothing where a run diverged"
    metric = next(o for o in ('accuracy','r2_score') if o in df)
    return df.assign(score=df[metric].where(~df.diverged)).groupby('lr').score.agg(lambda o: o.mean(skipna=False)).fillna(float('-inf'))

def around_best(run, most=9):
    "Run a seed at each decade; then all at the best and half a decade to both sides, and on until the best and all within a point of it are inside"
    decades = range(-8, 1, 2)
    first = scores(run([rate(k) for k in decades], seeds=1))
    best = max(decades, key=lambda k: first[rate(k)])
    ks = [best-1,best,best+1]
    while len(ks) < most:
        got = scores(run([rate(k) for k in ks], seeds=seeds))
        got = [got[rate(k)] for k in ks]
        if   got[ 0] > max(got)-0.01: ks.insert(0, ks[0]-1)
        elif got[-1] > max(got)-0.01: ks.append(ks[-1]+1)
        else: return
    run([rate(k) for k in ks], seeds=seeds)

def table(tasks):
    for task,(get_learner,n_epoch) in tasks.items():
        for schedule in 'one_cycle','flat':
            for name,f in opts.items():
                around_best(partial(compare, get_learner, {name: f}, n_epoch=n_epoch, schedule=schedule, out=out/'table'/task))
                print(task, schedule, name, flush=True)

def long():
    lens = {f'AdaMod, {n} batches': partial(AdaMod, len_memory=n) for n in (1000,10_000)}
    for schedule in 'flat','one_cycle':
        for lr in 3e-3,1e-2,1e-3:
            compare(long_learner, {'AdaMod': AdaMod, **lens, 'Adam': Adam}, lr, seeds=1, n_epoch=10, schedule=schedule, out=out/'long')

if __name__ == '__main__':
    torch.set_num_threads(1)
    studies = dict(new=partial(table, new_tasks), long=long)
    for o in sys.argv[1:] or studies: studies[o]()
