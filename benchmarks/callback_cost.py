#!/usr/bin/env python
"""What the callbacks add to a training batch, as a fraction of its time: `python benchmarks/callback_cost.py [--json FILE] [--rounds N]`

A round is ten batches, stepped by the fused AdaMod. After each batch every callback is called as a Learner calls it, and timed
by itself; at the end of the round its results are fetched. The fraction is of the time of the same ten batches, and the table
has the median over the rounds. It is processor time, so that a busy machine does not count.
"""
import argparse, json, os, tempfile, time, warnings
from functools import partial
from statistics import median
from types import SimpleNamespace

os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', tempfile.mkdtemp())
warnings.filterwarnings('ignore')

import torch
import torchvision
from torch import nn

from adamod_fastai.all import AdaMod, ClippedFraction, RateHistogram
from step_time import machine

def transformer():
    "Twelve layers of width 256 on tokens, and a linear layer that predicts the next"
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True), 12, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(1000, 256), layers, nn.Linear(256, 1000))

def images(): return torchvision.models.resnet18(num_classes=10),torch.randn(8, 3, 128, 128),torch.randint(10, (8,))
def tokens(): return transformer(),torch.randint(1000, (8,64)),torch.randint(1000, (8,64))

MODELS = {'resnet18, 8 images of 128×128': images, 'transformer, 8 texts of 64 tokens': tokens}
CBS = {f'{f.__name__}(every={n})': partial(f, every=n) for f in (ClippedFraction,RateHistogram) for n in (1,10)}
BATCHES = 10

def batch(model, x, y, opt):
    nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
    opt.step()
    opt.zero_grad()

def callback(f, model, opt):
    "A callback in the middle of a fit, so long that it does not warn that the average is longer"
    cb = f()
    cb.learn = SimpleNamespace(opt=opt, model=model, cbs=[], n_iter=10_000, n_epoch=1, train_iter=0)
    cb._training = True
    return cb

def fetch(cb):
    cb.check_measured()
    return cb.fractions if isinstance(cb, ClippedFraction) else cb.histograms

def timed(f, *args):
    start = time.thread_time()
    f(*args)
    return time.thread_time()-start

def measure(name, rounds):
    torch.manual_seed(0)
    model,x,y = MODELS[name]()
    opt = AdaMod(model.parameters(), lr=1e-4, fused=True)
    for _ in range(3): batch(model, x, y, opt)
    found = {k:[] for k in CBS}
    ms = []
    for _ in range(rounds):
        cbs,spent,times = {k:callback(f, model, opt) for k,f in CBS.items()},dict.fromkeys(CBS, 0),0
        for _ in range(BATCHES):
            times += timed(batch, model, x, y, opt)
            for k,cb in cbs.items(): spent[k] += timed(cb.after_step)
        for k,cb in cbs.items(): found[k].append((spent[k]+timed(fetch, cb))/times)
        ms.append(1000*times/BATCHES)
    n = sum(p.numel() for p in model.parameters())
    return [dict(model=name, params=n, batch_ms=round(median(ms), 1), callback=k, share=round(median(v), 4)) for k,v in found.items()]

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', metavar='FILE', help='write machine and measurements to FILE')
    parser.add_argument('--rounds', type=int, default=7, help='rounds, of which the median is taken')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [o for name in MODELS for o in measure(name, args.rounds)]
    for o in rows: print(f'{o["model"]:36}{o["batch_ms"]:8} ms  {o["callback"]:28}{o["share"]:.1%}')
    if args.json:
        with open(args.json, 'w') as f:
            json.dump(dict(machine=machine('cpu'), rounds=args.rounds, rows=rows), f, indent=1, ensure_ascii=False); f.write('\n')

if __name__=='__main__': main()
