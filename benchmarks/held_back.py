"""Two tasks that were kept aside until all defaults had been chosen, each a `get_learner` for `compare`: a fit takes a second or two

| | data | licence | installed by |
|---|---|---|---|
| `mnist1d_learner` | 5000 made-up curves of ten shapes (Greydanus, Kobak 2020) | Apache-2.0 | `pip install --no-deps mnist1d` |
| `program_learner` | 3000 messages of ten programs that Debian ships | the programs', in translation.csv | translation_data.py |
"""
from functools import lru_cache

import torch
from torch import nn
from torch.utils.data import TensorDataset
from fastai.basics import CrossEntropyLossFlat, accuracy
from fastai.layers import ConvLayer, Flatten

from tasks import _learner as learner, _split as split
from translation import data, pairs

@lru_cache(None)
def mnist1d():
    from mnist1d.data import get_dataset_args, make_dataset
    d = make_dataset(get_dataset_args())
    return [TensorDataset(torch.tensor(d[f'x{o}'], dtype=torch.float)[:,None], torch.tensor(d[f'y{o}'])) for o in ('','_test')]

def mnist1d_learner(opt_func): # 3 epochs: 300 batches
    "Three convolutions, without batch norm, that tell which of ten shapes a curve of 40 numbers has"
    convs = [ConvLayer(ni, 32, 5, stride=2, ndim=1, norm_type=None) for ni in (1,32,32)]
    model = nn.Sequential(*convs, Flatten(), nn.Linear(32*5, 10))
    return learner(mnist1d(), model, CrossEntropyLossFlat(), accuracy, opt_func, 32, n=32*100)

@lru_cache(None)
def programs(each=300):
    "`each` English messages of each of the ten packages that have most, as tokens; a third of them are for validation"
    df,x = pairs('train'),data('train').tensors[0]
    names = df.package.value_counts()[:10].index
    idxs = torch.tensor([i for o in names for i in df.index[df.package==o].to_series().sample(each, random_state=42)])
    y = torch.arange(len(names)).repeat_interleave(each)
    return split(x[idxs], y, n_train=len(y)*2//3)

class Reader(nn.Module):
    "A convolution over tokens, and a linear layer on the largest output of each of its units over a message"
    def __init__(self, n_vocab=1000, d=32, n_hidden=64, n_out=10):
        super().__init__()
        self.emb,self.conv = nn.Embedding(n_vocab, d, padding_idx=0),ConvLayer(d, n_hidden, 5, ndim=1, norm_type=None)
        self.head = nn.Linear(n_hidden, n_out)

    def forward(self, x): return self.head(self.conv(self.emb(x).transpose(1, 2)).amax(-1))

def program_learner(opt_func): # 4 epochs: 248 batches
    "A convolution over tokens that tells which of ten programs a message is from"
    return learner(programs(), Reader(), CrossEntropyLossFlat(), accuracy, opt_func, 32)

held_back = dict(mnist1d=(mnist1d_learner, 3), program=(program_learner, 4))
