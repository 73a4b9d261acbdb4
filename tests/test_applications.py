"The optimizers in fastai's applications, on real data"
import re
from functools import partial
from pydoc_data.topics import topics

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits
from fastai.callback.all import Callback, CancelFitException
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.tabular.all import CategoryBlock, Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.text.all import (AWD_LSTM, BaseTokenizer, TextDataLoaders, awd_lstm_clas_config, awd_lstm_lm_config, language_model_learner,
                             text_classifier_learner)
from fastai.vision.all import ImageDataLoaders, ResBlock, XResNet, accuracy, norm_types, params, resnet18, set_seed, vision_learner

from adamod_fastai.all import MemoryLength
from learners import quiet, same, values

pytestmark = pytest.mark.slow

class NoGradient(Callback):
    "Three steps with gradients of zero: only the weight decay is left, and it shows each parameter's `lr` and `wd`"
    order = 100
    def after_batch(self):
        if self.iter == 2: raise CancelFitException
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad.zero_()

# --- vision

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp('digits')
    x,y = load_digits(return_X_y=True)
    for i in range(448):
        img = Image.fromarray((x[i].reshape(8,8)*15.9).astype(np.uint8)).resize((16,16), Image.Resampling.BILINEAR)
        img.save(path/f'{y[i]}_{i:04}.png')
    return path

def small_resnet(pretrained): return XResNet(ResBlock, 1, [1,1,1], stem_szs=(8,8,64), widen=0.5)

def vision(images, opt_func, arch=small_resnet, **kwargs):
    set_seed(0)
    files = sorted(images.glob('*.png'), key=lambda o: o.stem.split('_')[1])
    dls = ImageDataLoaders.from_name_func(images, files, lambda o: o[0], valid_pct=0.25, seed=0, bs=32, num_workers=0)
    return quiet(vision_learner(dls, arch, pretrained=False, normalize=False, opt_func=opt_func, metrics=accuracy, **kwargs))

@pytest.mark.feature('vision_learner: fine_tune with freezing')
def test_vision_fine_tune(opt_func, images):
    learn = vision(images, opt_func, cbs=MemoryLength())
    body,head,steps = list(learn.model[0].modules()),values(learn.model[1]),[]
    is_norm = lambda m: isinstance(m, norm_types)
    conv = [p for m in body if not is_norm(m) for p in m.parameters(recurse=False)]
    norm = [p for m in body if is_norm(m) for p in m.parameters(recurse=False)]
    start = [[p.detach().clone() for p in o] for o in (conv,norm)]
    class Watch(Callback):
        def after_fit(self): steps.append([same(*o) for o in zip(start, (conv,norm))])
    learn.fine_tune(3, 8e-3, freeze_epochs=1, lr_mult=2, cbs=Watch())
    assert steps[0] == [True,False]        # frozen: convolutions stay, batch norm trains on
    assert steps[1] == [False,False] and not any(map(same, head, learn.model[1].parameters()))
    assert learn.validate()[1] > 0.5       # ten classes

@pytest.mark.feature('vision_learner: train_bn=False')
def test_vision_frozen_batch_norm(opt_func, images):
    learn = vision(images, partial(opt_func, len_memory=5), train_bn=False)
    learn.freeze()
    body,head = values(learn.model[0]),values(learn.model[1])
    learn.fit(1, 1e-3)
    assert same(body, values(learn.model[0])) and not any(map(same, head, learn.model[1].parameters()))

@pytest.mark.feature('vision_learner: slice learning rates and wd_bn_bias')
def test_vision_learning_rate_and_decay_of_each_group(opt_func, images):
    learn = vision(images, opt_func, resnet18, wd_bn_bias=False, cbs=NoGradient())
    learn.unfreeze()
    start = [[p.detach().clone() for p in o] for o in learn.opt.param_lists]
    learn.fit(1, slice(1e-3,1e-1), wd=0.5)
    lrs = [1e-3,1e-2,1e-1]
    np.testing.assert_allclose([h['lr'] for h in learn.opt.hypers], lrs, rtol=1e-6)
    exempt = {p for m in learn.model.modules() for k,p in m.named_parameters(recurse=False) if isinstance(m, norm_types) or k == 'bias'}
    assert len(exempt) > 40
    for group,before,lr in zip(learn.opt.param_lists, start, lrs):
        for p,p0 in zip(group, before):
            torch.testing.assert_close(p.data, p0 if p in exempt else p0*(1-lr*0.5)**3, rtol=1e-5, atol=0)

# --- tabular

@pytest.fixture(scope='module')
def cells():
    "Breast cancer data with its `mean` columns in tenths of the data, as categories"
    data = load_breast_cancer(as_frame=True)
    df,cats = data.data.copy(),[o for o in data.data if o.startswith('mean')]
    for o in cats: df[o] = pd.qcut(df[o], 10, labels=False).astype(str)
    df['benign'] = data.target
    set_seed(0)
    procs = [Categorify,FillMissing,Normalize]
    return TabularDataLoaders.from_df(df, cat_names=cats, y_names='benign', y_block=CategoryBlock(), procs=procs,
                                      valid_idx=list(range(400,569)), bs=32, num_workers=0)

@pytest.mark.feature('tabular_learner: embeddings')
def test_tabular(opt_func, cells):
    set_seed(0)
    learn = quiet(tabular_learner(cells, layers=[32], opt_func=opt_func, metrics=accuracy, cbs=MemoryLength()))
    embeds = values(learn.model.embeds)
    learn.fit_one_cycle(4, 1e-2)
    assert len(embeds) == 10 and not any(map(same, embeds, values(learn.model.embeds)))
    assert learn.validate()[1] > 0.9       # 0.77 of them are benign

# --- text

words = re.compile(r'\w+|[^\w\s]')
class Words(BaseTokenizer):
    def __call__(self, items): return (words.findall(o) for o in items)

MANUAL = ['specialnames','debugger','formatstrings','typesseq']
small = dict(emb_sz=32, n_hid=48, n_layers=2)

@pytest.fixture(scope='module')
def manual():
    "Passages of CPython's manual, and the topics that they come from"
    rows = []
    for o in MANUAL:
        text = words.findall(topics[o])[:2400]
        rows += [dict(text=' '.join(text[i:i+60]), topic=o, is_valid=(i//60)%4 == 3) for i in range(0, len(text)-59, 60)]
    return pd.DataFrame(rows)

def text_dls(manual, **kwargs):
    set_seed(0)
    return TextDataLoaders.from_df(manual, text_col='text', valid_col='is_valid', tok_tfm=Words(), bs=16, num_workers=0, **kwargs)

@pytest.fixture(scope='module')
def lm_dls(manual): return text_dls(manual, is_lm=True, seq_len=24)

@pytest.fixture(scope='module')
def topic_dls(manual, lm_dls): return text_dls(manual, label_col='topic', text_vocab=lm_dls.vocab)

def unigram_loss(dls):
    "The loss of knowing only how often each word occurs"
    n = len(dls.vocab)
    count = lambda dl: np.bincount(np.concatenate([y.flatten().numpy() for _,y in dl]), minlength=n)
    train,valid = count(dls.train),count(dls.valid)
    return -(valid*np.log((train+1)/(train.sum()+n))).sum()/valid.sum()

@pytest.mark.feature('language_model_learner and text_classifier_learner: AWD_LSTM, gradual unfreezing')
def test_text(opt_func, lm_dls, topic_dls, tmp_path):
    set_seed(0)
    kwargs = dict(pretrained=False, opt_func=opt_func, cbs=MemoryLength(), path=tmp_path)
    learn = quiet(language_model_learner(lm_dls, AWD_LSTM, config={**awd_lstm_lm_config, **small}, drop_mult=0.1, **kwargs))
    learn.unfreeze()
    start,unigram = learn.validate()[0],unigram_loss(lm_dls)
    learn.fit_one_cycle(4, 2e-2)
    assert learn.validate()[0] < start - 0.9*(start-unigram)       # it has learned at least how often each word occurs
    learn.save_encoder('encoder')

    set_seed(0)
    config = {**awd_lstm_clas_config, **small}
    learn = quiet(text_classifier_learner(topic_dls, AWD_LSTM, config=config, drop_mult=0.05, metrics=accuracy, **kwargs))
    learn.load_encoder('encoder')
    groups = lambda: [[p.detach().clone() for p in o] for o in learn.opt.param_lists]
    learn.create_opt()
    n = len(learn.opt.param_lists)
    learn.freeze()
    for thawed in 1,2,3,n:
        if thawed > 1: learn.freeze_to(-thawed)
        before = groups()
        learn.fit_one_cycle(1, slice(1e-2/2.6**(thawed-1),1e-2))
        moved = [not same(*o) for o in zip(before, groups())]
        assert moved == [False]*(n-thawed) + [True]*thawed
    learn.fit_one_cycle(10, 2e-2)
    assert learn.validate()[1] > 0.35      # four topics, equally many of each: guessing is 0.25

# --- collaborative filtering

@pytest.fixture(scope='module')
def ratings():
    "How bright each image is at each pixel"
    x = load_digits().data[:200]
    image,pixel = np.indices(x.shape).reshape(2, -1)
    return pd.DataFrame(dict(image=image, pixel=pixel, rating=x.flatten()/16))

@pytest.mark.feature('collab_learner')
def test_collab(opt_func, ratings):
    set_seed(0)
    dls = CollabDataLoaders.from_df(ratings, valid_pct=0.2, seed=0, bs=256, num_workers=0)
    learn = quiet(collab_learner(dls, n_factors=10, y_range=(-0.1,1.1), opt_func=opt_func, cbs=MemoryLength()))
    learn.fit_one_cycle(4, 1e-1, wd=0.1)
    (x,y),(xv,yv) = [[torch.cat(o) for o in zip(*dl)] for dl in (dls.train,dls.valid)]
    means = torch.zeros(1+64).index_reduce(0, x[:,1], y.flatten(), 'mean', include_self=False)
    assert learn.validate()[0] < 0.8*(means[xv[:,1]]-yv.flatten()).square().mean()     # a pixel's mean brightness
