#!/usr/bin/env python
"""`fine_tune` of a pretrained resnet18 with Adam and with AdaMod: `python benchmarks/fine_tune.py`

ImageNet's weights would have to be downloaded. So a resnet18 is trained on scikit-learn's digits 5 to 9 and saved where torch looks for
that download; `fine_tune` then trains it on the digits 0 to 4. The tables of the 18 runs and of one `lr_find` go to
nbs/results/fine_tune: four minutes on one core."""
import os, warnings
from tempfile import mkdtemp

for o in '.*torch.jit.script.*','.*CUDA is not available.*': warnings.filterwarnings('ignore', o)  # fastai's and torch's

import pandas as pd
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from fastai.vision.all import *
from adamod_fastai.all import AdaMod

from kept import compare, copy_tables, results

def save_digits(keep):
    "scikit-learn's digits that are in `keep` as images, in a new folder with a folder for each digit"
    path,data = Path(mkdtemp()),load_digits()
    for i,(im,y) in enumerate(zip(data.images, data.target)):
        if y not in keep: continue
        (path/str(y)).mkdir(exist_ok=True)
        Image.fromarray((im*15.9).astype('uint8')).resize((32,32), Image.Resampling.BILINEAR).save(path/str(y)/f'{i:04}.png')
    return path

def image_dls(path): return ImageDataLoaders.from_folder(path, valid_pct=0.5, seed=42, bs=32, num_workers=0)

def pretrain(n_epoch=3):
    "Train a resnet18 on the digits 5 to 9, and save it where torch looks for the weights that it would download"
    os.environ['TORCH_HOME'] = mkdtemp()
    weights = Path(os.environ['TORCH_HOME'])/'hub/checkpoints'/Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    set_seed(42)
    learn = vision_learner(image_dls(save_digits(range(5,10))), resnet18, pretrained=False)
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n_epoch, 3e-3)
    net = torchvision.models.resnet18()
    for (_,to),trained in zip(net.named_children(), learn.model[0]): to.load_state_dict(trained.state_dict())
    weights.parent.mkdir(parents=True)
    torch.save(net.state_dict(), weights)

def main():
    torch.set_num_threads(1)
    pretrain()
    dls = image_dls(save_digits(range(5)))
    def get_learner(opt_func): return vision_learner(dls, resnet18, metrics=accuracy, opt_func=opt_func)
    set_seed(42)
    learn = get_learner(AdaMod)
    with learn.no_bar(): learn.lr_find(show_plot=False)
    found = pd.DataFrame(dict(lr=learn.recorder.lrs, loss=[o.item() for o in learn.recorder.losses]))
    compare(get_learner, 'Adam,AdaMod', [3e-3,1e-2,3e-2], seeds=3, n_epoch=2, schedule='fine_tune', out='fine_tune')
    copy_tables('fine_tune')
    found.to_csv(results/'fine_tune/lr_find.csv', index=False, float_format='%.6g', lineterminator='\n')

if __name__ == '__main__': main()
