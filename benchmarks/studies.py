"""The runs of the tutorials on where AdaMod beats Adam, on depth and on long runs: `python benchmarks/studies.py [STUDY ...]`

Without a name it makes all the studies below: some twenty hours on one core; `JOBS=4` makes four runs in parallel. Runs are kept in
benchmarks/runs, so they can be interrupted, and their tables in nbs/results. The runs of the tables that are there are not in the
repository: in a clone a study trains all of its runs anew. `diamonds`, `mnist`, `mnist1d` and `facts` need data that three
packages carry, see tasks.py and held_back.py, and `program` and those of translation what translation_data.py makes.
"""
import sys, warnings
from functools import partial

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import pandas as pd
from fastai.optimizer import Adam, RAdam, SGD, ranger
from adamod_fastai.all import AdaMod, DiffMod
from adamod_fastai.compare.tasks import digits_learner, transformer_learner

from chosen_on import cancer_learner, densenet_learner, text_learner
from held_back import held_back
from kept import compare, copy_tables, results
from looking import looking
from tasks import long_learner, new_tasks
from translation import inverse_sqrt, translation_learner

opts = dict(AdaMod=AdaMod, DiffMod=DiffMod, Adam=Adam, RAdam=RAdam, ranger=ranger, SGD=partial(SGD, mom=0.9))
all_tasks = {**new_tasks, **held_back, 'digits': (digits_learner, 5), 'cancer': (cancer_learner, 8),
             'transformer': (partial(transformer_learner, pos_std=0.02), 5), 'densenet': (densenet_learner, 8),
             'text': (text_learner, 5)}
seeds = 5

def nth_lr(k): return float(f'{1+2*(k%2)}e{k//2}')  # half a decade apart: ..., 1e-3, 3e-3, 1e-2, ...

def scores(df):
    "Mean over the seeds of the first metric at each learning rate, -inf where a run diverged"
    metric = next(o for o in ('accuracy','r2_score') if o in df)
    return df.assign(score=df[metric].where(~df.diverged)).groupby('lr').score.agg(lambda o: o.mean(skipna=False)).fillna(float('-inf'))

def around_best(run, most=9):
    """Run one seed at each decade; then all seeds at the best decade and half a decade to both sides of it, and on to the side of the best,
    or of one within a point of it, until these are inside; the same around another decade whose one seed is better than all means so far.
    The best learning rate, as `nth_lr` counts"""
    decades,means = range(-8, 1, 2),{}
    first = scores(run([nth_lr(k) for k in decades], seeds=1))
    first = {k:first[nth_lr(k)] for k in decades}
    while left := {k:v for k,v in first.items() if k not in means}:
        k = max(left, key=left.get)
        if means and left[k] <= max(means.values()): break
        ks = [k-1,k,k+1]
        while True:
            got = scores(run([nth_lr(o) for o in ks], seeds=seeds))
            means.update({o:got[nth_lr(o)] for o in ks})
            near = max(means[o] for o in ks)-0.01
            if   len(ks) < most and means[ks[ 0]] > near: ks.insert(0, ks[0]-1)
            elif len(ks) < most and means[ks[-1]] > near: ks.append(ks[-1]+1)
            else: break
    return max(means, key=means.get)

def table(task, *schedules):
    "Each optimizer of the table around its best learning rate, and above Adam's"
    get_learner,n_epoch = all_tasks[task]
    for schedule in schedules:
        run = partial(compare, get_learner, n_epoch=n_epoch, schedule=schedule, out=f'table/{task}')
        best = {}
        for name,f in {**opts, **looking}.items():
            best[name] = around_best(partial(run, {name: f}))
            print(task, schedule, name, flush=True)
        above = [nth_lr(best['Adam']+i) for i in range(3)]
        run({k:opts[k] for k in ('AdaMod','Adam','RAdam')}, above, seeds=seeds)

def again(task):
    "Five new seeds of AdaMod and Adam, at the learning rates that are best for the first five"
    get_learner,n_epoch = all_tasks[task]
    for schedule in 'one_cycle','flat':
        for name in 'AdaMod','Adam':
            run = partial(compare, get_learner, {name: opts[name]}, n_epoch=n_epoch, schedule=schedule, out=f'table/{task}')
            run([nth_lr(around_best(run))], seeds=2*seeds)
    print('again', task, flush=True)

def deep(n_layers, n_batches=400, lrs=(3e-4,6e-4,1e-3,2e-3,3e-3,6e-3,1e-2)):
    run = partial(compare, partial(transformer_learner, n_layers=n_layers, n_batches=n_batches//4, pos_std=0.02), lrs=lrs, seeds=seeds,
                  n_epoch=4, schedule='flat', out=f'deep/{n_layers}' + ('' if n_batches==400 else f'_{n_batches}'))
    run(dict(AdaMod=AdaMod, Adam=Adam, RAdam=RAdam))
    run(dict(AdaMod=AdaMod), memory=[0.3,1])
    run(dict(Adam=Adam), warmup=[0.1,0.3,0.5])
    print('deep', n_layers, n_batches, flush=True)

def long():
    lens = {f'AdaMod, {n} batches': partial(AdaMod, len_memory=n) for n in (1000,10_000)}
    others = {k:opts[k] for k in ('Adam','RAdam','ranger')}
    for schedule,lrs in dict(flat=[3e-4,1e-3,3e-3,1e-2], one_cycle=[1e-3,2e-3,3e-3,5e-3,1e-2,3e-2]).items():
        compare(long_learner, {'AdaMod': AdaMod, **lens, **others}, lrs, seeds=1, n_epoch=10, schedule=schedule, out='long')
        print('long', schedule, flush=True)

def translation(n_epoch=2, lrs=(1e-3,3e-3,1e-2), schedule='flat', names=None, warmup=[0.1,0.3,0.5], cbs=None, where='constant',
                seeds=1):
    "1000 batches in each epoch, five seeds trained together: `names` of the optimizers, and Adam with each `warmup`"
    all_opts = {**opts, 'AdaMod-1000': partial(AdaMod, len_memory=1000), **looking}
    run = partial(compare, translation_learner, seeds=seeds, n_epoch=n_epoch, schedule=schedule, cbs=cbs, out=f'translation/{where}')
    run({o: all_opts[o] for o in names or all_opts if o != 'SGD'}, lrs)
    if warmup: run(dict(Adam=Adam), lrs, warmup=warmup)
    print('translation', where, flush=True)

translations = dict(
    translation=translation,
    translation_again=partial(translation, names=['AdaMod','Adam','RAdam'], lrs=[1e-3], seeds=2),
    translation_again_high=partial(translation, names=['Lookahead(AdaMod)','AdaMod','DiffMod','Lookahead(Adam)'], lrs=[3e-3],
                                   warmup=[0.5], seeds=2),
    translation_low=partial(translation, lrs=[3e-4], warmup=None),
    translation_one_cycle=partial(translation, schedule='one_cycle', warmup=None, where='one_cycle'),
    translation_inverse_sqrt=partial(translation, cbs=inverse_sqrt, warmup=None, where='inverse_sqrt'),
    translation_long=partial(translation, n_epoch=10, lrs=[1e-3], where='long',
                             names=['AdaMod','Adam','RAdam','ranger','AdaMod-1000','DiffMod','Lookahead(AdaMod)']),
    translation_long_high=partial(translation, n_epoch=10, lrs=[3e-3], warmup=[0.3,0.5], where='long',
                                  names=['Lookahead(AdaMod)','AdaMod','DiffMod','AdaMod-1000','ranger']),
    translation_long_low=partial(translation, n_epoch=10, names=['AdaMod','Adam'], lrs=[3e-4], warmup=None, where='long'),
    translation_long_one_cycle=partial(translation, n_epoch=10, names=['AdaMod','Adam','DiffMod'], schedule='one_cycle', warmup=None,
                                       where='long_one_cycle'),
    translation_longest=partial(translation, n_epoch=40, names=['AdaMod','AdaMod-1000','Adam','RAdam'], lrs=[1e-3], warmup=[0.3],
                                where='longest'),
    translation_longest_high=partial(translation, n_epoch=40, names=['AdaMod','DiffMod','ranger','Lookahead(AdaMod)'], lrs=[3e-3],
                                     warmup=[0.3,0.5], where='longest'),
    translation_longest_highest=partial(translation, n_epoch=40, names=['AdaMod','DiffMod'], lrs=[1e-2], warmup=[0.3,0.5], where='longest'),
    translation_longest_one_cycle=partial(translation, n_epoch=40, names=['AdaMod','Adam'], lrs=[3e-3], schedule='one_cycle', warmup=None,
                                          where='longest_one_cycle'))

def facts():
    "What the tasks are, into tasks.csv; `nothing` is the baseline: always the most frequent answer of the training set"
    kinds = dict(digits='images', densenet='images', cancer='table', transformer='text', wine='table', diabetes='table, regression',
                 diamonds='table, regression', mnist='images', source='text', text='text', mnist1d='curves', program='text')
    rows = []
    for name,(get_learner,n_epoch) in all_tasks.items():
        learn = get_learner(Adam)
        train,valid = [o.dataset.tensors[-1].flatten() for o in learn.dls.loaders]
        chosen_on = '' if name in (*new_tasks,*held_back) else 'made' if name=='transformer' else 'yes'
        rows.append(dict(task=name, kind=kinds[name], chosen_on=chosen_on,
            train=len(learn.dls.train.dataset), batches=len(learn.dls.train)*n_epoch, batch=learn.dls.train.bs,
            weights=sum(p.numel() for p in learn.model.parameters()),
            nothing=0. if 'regression' in kinds[name] else (valid==train.mode().values).float().mean().item()))
    pd.DataFrame(rows).to_csv(results/'table/tasks.csv', index=False)

if __name__ == '__main__':
    studies = {'facts': facts, 'long': long, **translations, **{t: partial(table, t, 'one_cycle', 'flat') for t in all_tasks},
               **{f'{t}_again': partial(again, t) for t in all_tasks},
               **{f'deep_{n}': partial(deep, n) for n in (2,4,8,12,16)},
               'deep_16_1600': partial(deep, 16, 1600, (3e-4,6e-4,1e-3,2e-3))}
    for o in sys.argv[1:] or studies:
        studies[o]()
        for folder in 'table','deep','long','translation': copy_tables(folder)
