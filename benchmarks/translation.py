"""Translation, the kind of task that AdaMod's paper trained without warmup: a post-norm transformer from English to German

    python benchmarks/translation_data.py         # the pairs, once
    python benchmarks/studies.py translation      # the comparison
    python benchmarks/translation_rates.py        # what AdaMod changes, layer by layer

Five seeds are trained together in one model, as in `long_learner`: each has its own initial weights and batches, and an optimizer that
treats each weight by itself trains each of them as if it were alone, in a third of the time.
"""
import math, sys
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from fastai.basics import DataLoaders, Learner, Metric, default_device
from fastai.callback.schedule import ParamScheduler

from tasks import TensorDL

PAD,BOS,EOS = 0,1,2

def file(name):
    "The file `name` among those that translation_data.py makes"
    path = Path(sys.modules[__name__].__file__).parent/'pairs'/name
    if not path.exists(): raise FileNotFoundError(f'There is no {path}. Run python benchmarks/translation_data.py, which makes it.')
    return path

@lru_cache(None)
def pieces():
    from sentencepiece import SentencePieceProcessor
    return SentencePieceProcessor(model_file=str(file('pieces.model')))

@lru_cache(None)
def pairs(split):
    "The pairs of a `split`, train or valid, whose sentences have at most 16 tokens each"
    df = pd.read_csv(file('pairs.tsv'), sep='\t', keep_default_na=False)
    df = df[df.split==split]
    df = df.assign(source=pieces().encode(df.en.tolist()), target=pieces().encode(df.de.tolist()))
    df = df[(df.source.str.len() <= 16) & (df.target.str.len() <= 16)]
    return df.sort_values('target', key=lambda o: o.str.len(), kind='stable', ignore_index=True)

def padded(rows, before=(), after=()):
    return nn.utils.rnn.pad_sequence([torch.tensor([*before,*o,*after]) for o in rows], batch_first=True, padding_value=PAD)

@lru_cache(None)
def data(split):
    df = pairs(split)
    return TensorDataset(padded(df.source, after=[EOS]), padded(df.target, before=[BOS]), padded(df.target, after=[EOS]))

class PairDL(TensorDL):
    "Random batches of pairs, padded to their longest sentence; the sentences of a batch are of about the same length"
    def do_batch(self, b): return tuple(o[:,:(o!=PAD).sum(1).max()] for o in super().do_batch(b))
    def shuffle_fn(self, idxs):
        n,n_all,many = len(idxs),len(self.dataset),50*self.bs
        idxs = [o for _ in range(0, n, n_all) for o in self.rng.sample(range(n_all), n_all)][:n]
        length = (self.dataset.tensors[-1] != PAD).sum(1).tolist()
        batches = []
        for i in range(0, n, many):
            some = sorted(idxs[i:i+many], key=length.__getitem__)
            batches += [self.rng.sample(o, len(o)) for o in (some[j:j+self.bs] for j in range(0, len(some), self.bs))]
        return [o for b in self.rng.sample(batches, len(batches)) for o in b]

def sinusoids(n, d):
    angles = torch.arange(n)[:,None]/10_000**(torch.arange(0, d, 2)/d)
    return torch.stack([angles.sin(),angles.cos()], -1).flatten(1)

class Translators(nn.Module):
    """`n` seeds of a translator: post-norm encoder and decoder of `n_layers`, with one embedding for both languages and the output

    All weights of one kind are in one tensor, layers by seeds."""
    def __init__(self, n=5, n_vocab=1000, d=32, n_layers=6, n_heads=2, seq_len=32):
        super().__init__()
        self.n,self.n_heads,self.scale = n,n_heads,math.sqrt(d)
        self.emb = nn.Parameter(torch.randn(n, n_vocab, d)/self.scale)
        self.register_buffer('pos', sinusoids(seq_len, d))
        def weights(n_out, n_in):
            w = nn.Parameter(torch.empty(n_layers, n, n_out, n_in))
            for o in w.data.view(-1, n_out, n_in): nn.init.xavier_uniform_(o)
            return w
        def linear(n_in, n_out): return [weights(n_out, n_in),nn.Parameter(torch.zeros(n_layers, n, 1, n_out))]
        def norm(): return [nn.Parameter(f(n_layers, n, 1, d)) for f in (torch.ones,torch.zeros)]
        def attention(): return [*linear(d, d), *linear(d, 2*d), *linear(d, d), *norm()]
        def feed(): return [*linear(d, 4*d), *linear(4*d, d), *norm()]
        self.encoder = nn.ParameterList([*attention(), *feed()])
        self.decoder = nn.ParameterList([*attention(), *attention(), *feed()])

    @staticmethod
    def linear(x, w, b): return torch.baddbmm(b, x.flatten(1, 2), w.transpose(1, 2)).view(*x.shape[:3], -1)
    @staticmethod
    def norm(x, w, b): return torch.addcmul(b[:,None], F.layer_norm(x, x.shape[-1:]), w[:,None])

    def attend(self, x, seen, mask, qw, qb, kvw, kvb, ow, ob, nw, nb):
        heads = lambda o: o.flatten(0, 1).unflatten(-1, (self.n_heads,-1)).transpose(1, 2)
        q,(k,v) = self.linear(x, qw, qb),self.linear(seen, kvw, kvb).chunk(2, -1)
        o = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask).transpose(1, 2).reshape(x.shape)
        return self.norm(x + self.linear(o, ow, ob), nw, nb)

    def feed(self, x, w1, b1, w2, b2, nw, nb): return self.norm(x + self.linear(self.linear(x, w1, b1).relu(), w2, b2), nw, nb)

    def embed(self, x):
        n,n_vocab,d = self.emb.shape
        at = x + n_vocab*torch.arange(n, device=x.device)[:,None,None]
        return F.embedding(at, self.emb.view(-1, d))*self.scale + self.pos[:x.shape[-1]]

    def encode(self, source):
        "The encoder's output, seeds by sentences by tokens, and the mask of the tokens that are no padding"
        x,mask = self.embed(source),(source != PAD).flatten(0, 1)[:,None,None]
        for o in zip(*(p.unbind() for p in self.encoder)): x = self.feed(self.attend(x, x, mask, *o[:8]), *o[8:])
        return x,mask

    def decode(self, target, seen, mask):
        "Logits of what comes after each token of `target`"
        x,past = self.embed(target),torch.ones(target.shape[-1], target.shape[-1], dtype=torch.bool, device=target.device).tril()
        for o in zip(*(p.unbind() for p in self.decoder)):
            x = self.attend(self.attend(x, x, past, *o[:8]), seen, mask, *o[8:16])
            x = self.feed(x, *o[16:])
        return (x.flatten(1, 2) @ self.emb.transpose(1, 2)).view(*x.shape[:3], -1)

    def forward(self, source, target):
        each = lambda o: o.view(self.n, -1, o.shape[-1]) if self.training else o.expand(self.n, *o.shape)
        return self.decode(each(target), *self.encode(each(source)))

def losses(preds, target):
    "The loss of each seed: the mean over the tokens of its sentences"
    n = len(preds)
    target = target.reshape(n, -1) if preds.shape[1]*n == len(target) else target.flatten().expand(n, -1)
    loss = F.cross_entropy(preds.flatten(0, 2), target.flatten(), ignore_index=PAD, reduction='none').view(n, -1)
    return loss.sum(1)/(target != PAD).sum(1)

def sum_loss(preds, target): return losses(preds, target).sum()

class OfNetwork(Metric):
    "Mean of `measure` over all tokens of the validation set, for seed `i`"
    def __init__(self, measure, i): self.measure,self.i = measure,i
    @property
    def name(self): return f'{self.measure.__name__}_{self.i}'
    def reset(self): self.total,self.n = 0.,0
    def accumulate(self, learn):
        there = learn.y != PAD
        self.total += self.measure(learn.pred[self.i][there], learn.y[there]).sum().item()
        self.n += there.sum().item()
    @property
    def value(self): return self.total/self.n if self.n else None

def accuracy(preds, target): return preds.argmax(-1) == target
def nll(preds, target): return F.cross_entropy(preds, target, reduction='none')

def translation_learner(opt_func, n=5, bs=8, n_batches=1000): # 2 epochs: 2000 batches
    "`n` seeds of a translator, each on batches of 8 pairs"
    train,valid = data('train'),data('valid')
    dls = DataLoaders(PairDL(train, bs=bs*n, shuffle=True, drop_last=True, n=bs*n*n_batches, n_inp=2),
                      PairDL(valid, bs=64, n_inp=2), device=default_device())
    metrics = [OfNetwork(o, i) for o in (accuracy,nll) for i in range(n)]
    return Learner(dls, Translators(n), loss_func=sum_loss, opt_func=opt_func, metrics=metrics)

class InverseSqrt(ParamScheduler):
    "Linear warmup over the first tenth of the fit, then inverse-square-root decay"
    def __init__(self, start=0.1): self.start = start
    def before_fit(self):
        lr = self.opt.hypers[-1]['lr']
        self.scheds = {'lr': lambda pct: lr*min(pct/self.start, math.sqrt(self.start/max(pct, self.start)))}
        super().before_fit()

def inverse_sqrt(learn): return InverseSqrt()

@torch.no_grad()
def translate(model, sentences, i=0, longest=20):
    "The translations of English `sentences` by seed `i`, each time with the likeliest token"
    model.eval()
    device = model.emb.device
    x = padded([pieces().encode(o) for o in sentences], after=[EOS]).to(device).expand(model.n, -1, -1)
    seen,y = model.encode(x),torch.full((model.n, len(sentences), 1), BOS, device=device)
    for _ in range(longest): y = torch.cat([y, model.decode(y, *seen)[:,:,-1:].argmax(-1)], -1)
    ends = [o.index(EOS) if EOS in o else len(o) for o in y[i,:,1:].tolist()]
    return [pieces().decode(o[1:n+1]) for o,n in zip(y[i].tolist(), ends)]
