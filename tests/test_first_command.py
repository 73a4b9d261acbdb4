"What `adamod-compare` without options shows, is so"
import numpy as np
import pytest

from adamod_fastai.all import compare
from adamod_fastai.compare.tasks import digits_learner, transformer_learner

pytestmark = pytest.mark.slow

def accuracies(*args, **kwargs):
    "Of each optimizer and learning rate, one for each of three seeds"
    df = compare(*args, seeds=3, jobs=1, **kwargs)
    return {k: v.to_numpy() for k,v in df.groupby(['opt','lr']).accuracy}

def test_on_digits_adamod_is_at_adams_rates_what_adam_is():
    res = accuracies(digits_learner, 'Adam,AdaMod', '1e-3,1e-2,1e-1')
    published = accuracies(digits_learner, 'AdaMod-1000', 1e-3)
    behind = {lr: np.mean(res['Adam',lr]-res['AdaMod',lr]) for lr in (1e-3,1e-2,1e-1)}
    assert behind[1e-3] <= 0.03 and behind[1e-2] <= 0.015 and behind[1e-1] <= 0.015
    assert np.mean(res['Adam',1e-3]-published['AdaMod-1000',1e-3]) > 0.3      # at the length that the authors' code has, it is not

def test_on_the_transformer_adamod_learns_where_adam_is_stuck():
    res = accuracies(transformer_learner, 'Adam,AdaMod', 3e-3, schedule='flat')
    assert res['AdaMod',3e-3].min() > 0.3       # the frequencies of letters give a quarter; the text is that of the Python at hand
    assert np.mean(res['AdaMod',3e-3]) >= np.mean(res['Adam',3e-3])+0.02      # about 0.1, over seeds and texts
