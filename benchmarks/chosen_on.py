"""Tasks on which AdaMod's defaults were chosen, beside the two of the package, each a `get_learner` for `compare`

| | data | a run on one core |
|---|---|---|
| `densenet_learner` | 599 of scikit-learn's digits, the other 1198 to validate | 20 seconds |
| `cancer_learner` | scikit-learn's breast cancer data: 569 rows, half of them to validate | a second |
| `text_learner` | the manual that CPython carries for its own `help`, by characters | half a minute |
"""
import math
from functools import lru_cache

import pandas as pd
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, accuracy, default_device
from fastai.tabular.core import Categorify, CategoryBlock, Normalize, TabularPandas
from fastai.tabular.model import TabularModel, get_emb_sz

from adamod_fastai.all import AdaMod
from adamod_fastai.compare.tasks import TensorDL, digits_dls, text_dls

def learner(dls, model, opt_func, **kwargs):
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=opt_func, **{'metrics': accuracy, **kwargs})

def densenet():
    "torchvision's, with three blocks of three layers and without strides at first: the images are small"
    from torchvision.models import DenseNet
    m = DenseNet(growth_rate=8, block_config=(3,3,3), num_init_features=16, bn_size=2, num_classes=10)
    m.features.conv0,m.features.pool0 = nn.Conv2d(1, 16, 3, padding=1, bias=False),nn.Identity()
    return m

def densenet_learner(opt_func=AdaMod, bs=32, **kwargs):
    "A small DenseNet on a third of the digits, so that there is something left to gain"
    return learner(digits_dls(bs, 599), densenet(), opt_func, **kwargs)

@lru_cache(None)
def cancer():
    "Thirty measurements: the ten mean ones are cut into tenths and become categories, the others stay numbers"
    from sklearn.datasets import load_breast_cancer
    df = load_breast_cancer(as_frame=True).frame
    cats,conts = [[o for o in df.columns[:-1] if o.startswith('mean')==is_cat] for is_cat in (True,False)]
    df[cats] = df[cats].apply(pd.qcut, q=10, labels=False)
    idxs = torch.randperm(len(df), generator=torch.Generator().manual_seed(42)).tolist()
    splits = idxs[:len(df)//2],idxs[len(df)//2:]
    return TabularPandas(df, [Categorify,Normalize], cats, conts, 'target', CategoryBlock(), splits=splits)

def cancer_dls(bs=16):
    def tensors(to):
        cols = (to.cats,torch.long),(to.conts,torch.float),(to.ys.iloc[:,0],torch.long)
        return TensorDataset(*(torch.tensor(o.values, dtype=d) for o,d in cols))
    train,valid = map(tensors, (cancer().train,cancer().valid))
    train_dl = TensorDL(train, bs=bs, shuffle=True, drop_last=True, n_inp=2)
    return DataLoaders(train_dl, TensorDL(valid, bs=len(valid), n_inp=2), device=default_device())

def cancer_learner(opt_func=AdaMod, bs=16, **kwargs):
    "fastai's tabular model with one hidden layer of 32"
    return learner(cancer_dls(bs), TabularModel(get_emb_sz(cancer()), len(cancer().cont_names), 2, [32]), opt_func, **kwargs)

class Transformer(nn.Module):
    "A causal post-norm transformer of torch's own layers, which all begin with the same weights"
    def __init__(self, n_vocab, seq_len=32, d=64, n_layers=8, n_heads=4):
        super().__init__()
        self.emb,self.pos = nn.Embedding(n_vocab, d),nn.Parameter(torch.randn(seq_len, d)*0.02)
        layer = nn.TransformerEncoderLayer(d, n_heads, 4*d, dropout=0., batch_first=True)
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.head = nn.Linear(d, n_vocab)
        self.register_buffer('mask', torch.full((seq_len,seq_len), -math.inf).triu(1))

    def forward(self, x): return self.head(self.layers(self.emb(x) + self.pos, mask=self.mask, is_causal=True))

def text_learner(opt_func=AdaMod, bs=16, seq_len=32, n_batches=60, **kwargs):
    "A transformer of 8 layers, 64 wide and without dropout, that predicts the next character"
    dls = text_dls(bs, seq_len, n_batches)
    return learner(dls, Transformer(dls.c, seq_len), opt_func, **kwargs)
