#!/usr/bin/env python
"""What AdaMod changes where Adam fails, in translation: `python benchmarks/translation_rates.py`, into nbs/results/translation/rates

Adam and AdaMod at a learning rate of .003 without warmup, five seeds each. layers.csv has for each layer, averaged over the seeds: the
fraction of adaptive rates that are clipped, the effective rate as a fraction of Adam's, and how far a batch moves the weights, relative to
their size; histograms.csv the effective rates of all weights, curves.csv the loss of each seed. Stored runs are not repeated.

`python benchmarks/translation_rates.py examples` trains single seeds for longer, and writes their translations of a few sentences;
with `facts` it writes how many pairs there are, and the loss of the unigram baseline.
"""
import sys, warnings
from pathlib import Path

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import pandas as pd
import torch
from fastai.basics import Callback
from fastai.optimizer import Adam
from fastai.torch_core import no_random
from adamod_fastai.all import AdaMod, RateHistogram, adaptive_rate

from looking import lookahead_adamod
from translation import PAD, Translators, data, losses, pairs, translate, translation_learner

out = Path(__file__).parent.parent/'nbs/results/translation'
optimizers = dict(Adam=Adam, AdaMod=AdaMod)

def when(step): return step <= 20 or step % 5 == 0 and step <= 100 or step % 20 == 0

class Layers(Callback):
    "What is clipped, used and moved in each layer, and the loss of each seed"
    def before_fit(self): self.rows,self.losses,self.n_done = [],[],0

    def after_loss(self):
        if self.training: self.losses.append(losses(self.pred.detach(), self.y).tolist())

    def before_step(self):
        self.n_done += 1
        if when(self.n_done): self.before = [o.detach().clone() for o in self.model.parameters()]

    @torch.no_grad()
    def after_step(self):
        if not when(self.n_done): return
        sums = {}
        for (name,p),before,(_,_,s,h) in zip(self.model.named_parameters(), self.before, self.opt.all_params()):
            rate = adaptive_rate(p, **{**s, **h})['rate']
            used = (s['lr_avg']/rate).clamp(max=1) if 'lr_avg' in s else torch.ones_like(rate)
            whole = [used < 1, used, rate.log10(), (p-before).square(), before.square()]
            part,layers = name.partition('.')[0],[whole] if name=='emb' else zip(*whole)
            for i,o in enumerate(layers):
                new = torch.tensor([p.numel()/(1 if name=='emb' else len(p)), *(x.double().sum() for x in o)])
                sums[part,i] = sums.get((part,i), 0) + new
        for (part,i),(n,clipped,used,log,moved,size) in sums.items():
            self.rows.append(dict(batch=self.n_done, part=part, layer=i, clipped=clipped/n, used=used/n, rate=10**(log/n),
                                  moved=(moved/size)**0.5))

def fit(opt_func, lr, seed=0, n_epoch=2, cbs=None, **kwargs):
    with no_random(seed):
        learn = translation_learner(opt_func, **kwargs)
        learn.dls.train.rng.seed(seed)
        with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, lr, cbs=cbs)
    return learn

def rates(lr=3e-3):
    folder = out/'rates'
    folder.mkdir(parents=True, exist_ok=True)
    tables = dict(layers=[], histograms=[], curves=[])
    if all((folder/f'{o}.csv').exists() for o in tables): return
    for name,f in optimizers.items():
        layers,hist = Layers(),RateHistogram(every=20, bins=60)
        fit(f, lr, cbs=[layers,hist])
        tables['layers'].append(pd.DataFrame(layers.rows).astype({o: float for o in ('clipped','used','rate','moved')}))
        at = pd.DataFrame(hist.histograms, index=pd.Index(hist.steps, name='batch'))
        at = at.melt(var_name='bin', value_name='part', ignore_index=False)
        tables['histograms'].append(at[at.part > 0].reset_index())
        smooth = pd.DataFrame(layers.losses, columns=[f'loss_{i}' for i in range(5)]).ewm(alpha=0.1).mean()[9::10]
        tables['curves'].append(smooth.rename_axis('batch').reset_index())
        for k,v in tables.items(): v[-1].insert(0, 'opt', name)
        print('rates', name, flush=True)
    for k,v in tables.items(): pd.concat(v).to_csv(folder/f'{k}.csv', index=False, float_format='%.4g')

def examples(n_epoch=10, n=8):
    "One seed each, at its best learning rate but for five times as long, and its translations of `n` validation sentences"
    path = out/'examples.csv'
    df = pairs('valid').sample(n, random_state=0)
    rows = [dict(opt='', lr='', nll='', **{str(i): o for i,o in enumerate(df[k])}) for k in ('en','de')]
    for name,f,lr in ('Adam',Adam,1e-3),('AdaMod',AdaMod,1e-3),('Lookahead(AdaMod)',lookahead_adamod,3e-3):
        learn = fit(f, lr, n_epoch=n_epoch, n=1)
        nll = learn.recorder.values[-1][-1]
        rows.append(dict(opt=name, lr=lr, nll=f'{nll:.3f}', **{str(i): o for i,o in enumerate(translate(learn.model, df.en.tolist()))}))
        pd.DataFrame(rows).to_csv(path, index=False)
        print('examples', name, lr, nll, flush=True)

def facts():
    train,valid = [data(o).tensors[-1] for o in ('train','valid')]
    counts = torch.bincount(train[train != PAD], minlength=1000).double()+1
    there = valid[valid != PAD]
    pd.DataFrame([dict(train=len(train), valid=len(valid), weights=sum(p.numel() for p in Translators(1).parameters()),
        pieces=there.numel(), loss=-(counts/counts.sum()).log()[there].mean().item(),
        accuracy=(there==counts.argmax()).double().mean().item())]).to_csv(out/'facts.csv', index=False)

if __name__=='__main__':
    for o in sys.argv[1:] or ['rates']: dict(rates=rates, examples=examples, facts=facts)[o]()
