"""Alternatives to the paper's average, on four tasks: `python benchmarks/ideas.py [TASK ...]`, into nbs/results/ideas

`follow_lr` is the option of AdaMod: the average is rescaled with the learning rate, so that it does not contain the schedule.
`grow` needs no length: after the first `start` batches it averages over everything so far.
`noise` gets longer when the adaptive rates of a tensor change more from batch to batch.
"""
import sys
from functools import partial

import torch
from fastai.optimizer import step_stat, weight_decay

from adamod_fastai.all import *
from adamod_fastai.compare.tasks import *

from chosen_on import cancer_learner, densenet_learner, text_learner
from kept import compare, copy_tables

def average_grow(p, rate, step, beta3, lr_avg=None, start=10, **kwargs):
    return average_lr(p, rate, beta3=1-1/max(start, step), lr_avg=lr_avg)

def average_noise(p, rate, step, lr, beta3, lr_avg=None, noise=None, first_noise=None, prev_rate=None, most=100, **kwargs):
    shape = rate/lr
    if prev_rate is None: prev_rate = shape.clone()
    new = (shape-prev_rate).abs().mean()/shape.mean()
    if step == 2: noise = first_noise = new
    if step > 2: noise = torch.lerp(noise, new, 0.1)
    length = most if step < 2 else (most*noise/first_noise).clamp(1, most)
    new = average_lr(p, rate, beta3=1-1/length, lr_avg=lr_avg)
    return {**new, 'noise': noise, 'first_noise': first_noise, 'prev_rate': prev_rate.copy_(shape)}

def optimizer(*average):
    def f(params, lr, mom=0.9, sqr_mom=0.99, beta3=0.999, eps=1e-5, wd=0.01):
        cbs = [weight_decay, average_grads, step_stat, *average, rate_step]
        return ModOptimizer(params, cbs, lr=lr, mom=mom, sqr_mom=sqr_mom, beta3=beta3, eps=eps, wd=wd)
    return f

ideas = dict(grow=optimizer(adaptive_rate, average_grow, clip_rate), noise=optimizer(adaptive_rate, average_noise, clip_rate))
follow = dict(follow_lr=partial(AdaMod, len_memory=1000, follow_lr=True)) # averaging over 15%, what AdaMod does by default
decades = [1e-4,1e-3,1e-2,1e-1]
# learning rates with fit_one_cycle, and with fit
tasks = dict(digits=(digits_learner, 5, decades, decades), cancer=(cancer_learner, 8, decades, decades),
             densenet=(densenet_learner, 8, decades[1:], decades[1:]), text=(text_learner, 5, [3e-4,1e-3,3e-3], [3e-3]))

if __name__ == '__main__':
    torch.set_num_threads(1)
    for o in sys.argv[1:] or tasks:
        get_learner,n_epoch,lrs,flat = tasks[o]
        args = dict(seeds=5, n_epoch=n_epoch, out=f'ideas/{o}')
        compare(get_learner, follow, lrs, memory=0.15, **args) # the same as the paper's average where the learning rate is constant
        compare(get_learner, ideas, lrs, **args)
        compare(get_learner, ideas, flat, schedule='flat', **args)
        copy_tables(args['out'])
