#!/usr/bin/env python
"""What training gives with parameters in bfloat16 and no float32 copy: rounded to nearest, stochastically, and with Kahan summation.

    python benchmarks/bfloat16.py [--json FILE] [--steps N] [--seeds N]

A network of two hidden layers learns scikit-learn's digits. The learning rates are those of the table, constant, without weight decay.
`optimi` stores what rounding has lost in two more bytes per parameter; it steps by Adam's rule, as AdaMod does
when it averages over one batch, alone and in `Lookahead`. `loss` is the mean of the last 100 batches, `accuracy`
that of the validation set; both are means of the seeds.
"""
import argparse, json, warnings
from functools import partial
from statistics import mean, stdev

warnings.filterwarnings('ignore')

import optimi
import torch
from fastai.optimizer import Lookahead
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from adamod_fastai.optimizer import AdaMod
from step_time import machine

adam = dict(mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.)
theirs = dict(betas=(0.9,0.99), eps=1e-5)
def in_lookahead(params, lr): return Lookahead(AdaMod(params, lr, len_memory=1, **adam))
WAYS = {'float32':                         (torch.float32,  partial(AdaMod, len_memory=1, **adam)),
        'bfloat16, to nearest':            (torch.bfloat16, partial(AdaMod, len_memory=1, bf16_stochastic_round=False, **adam)),
        'bfloat16, stochastic':            (torch.bfloat16, partial(AdaMod, len_memory=1, **adam)),
        'Lookahead, float32':              (torch.float32,  in_lookahead),
        'Lookahead, bfloat16, stochastic': (torch.bfloat16, in_lookahead),
        'optimi, float32':                 (torch.float32,  partial(optimi.Adam, **theirs)),
        'optimi, bfloat16, Kahan':         (torch.bfloat16, partial(optimi.Adam, kahan_sum=True, **theirs))}
LRS = 1e-3,1e-4,1e-5

def data():
    x,y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x,y = torch.tensor(x, dtype=torch.float32)[order]/16,torch.tensor(y)[order]
    return x[:1400],y[:1400],x[1400:],y[1400:]

def train(way, lr, seed, steps):
    x,y,valid_x,valid_y = data()
    dtype,opt_func = WAYS[way]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).to(dtype)
    opt,losses = opt_func(list(model.parameters()), lr=lr),[]
    for _ in range(steps):
        i = torch.randint(len(x), (64,))
        loss = cross_entropy(model(x[i].to(dtype)).float(), y[i])
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    with torch.no_grad(): right = (model(valid_x.to(dtype)).argmax(1)==valid_y).float().mean().item()
    return mean(losses[-100:]),right

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', metavar='FILE', help='write machine and measurements to FILE')
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for lr in LRS:
        for way in WAYS:
            losses,rights = zip(*(train(way, lr, seed, args.steps) for seed in range(args.seeds)))
            rows.append(dict(way=way, lr=lr, loss=round(mean(losses), 4), loss_std=round(stdev(losses), 4),
                             accuracy=round(mean(rights), 4), accuracy_std=round(stdev(rights), 4)))
            row = rows[-1]
            print(f"{way:32}{lr:8}  loss {row['loss']:.4f} ± {row['loss_std']:.4f}  accuracy {row['accuracy']:.3f}", flush=True)
    if args.json:
        with open(args.json, 'w') as f:
            json.dump(dict(machine=machine('cpu'), steps=args.steps, seeds=args.seeds, rows=rows), f, indent=1)
            f.write('\n')

if __name__=='__main__': main()
