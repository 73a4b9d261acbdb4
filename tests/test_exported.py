"Learners that earlier versions exported: `python tests/test_exported.py` adds that of this version, before it is released"
import warnings
from pathlib import Path

import pytest
from fastai.basics import load_learner
import fastai.callback.all  # patches fit_one_cycle

from adamod_fastai.all import *
from learners import cancer_learner, quiet

folder = Path(__file__).resolve().parent/'exported'

def write():
    import adamod_fastai
    learn = cancer_learner(AdaMod, path=folder, cbs=[ClippedFraction(every=5), RateHistogram(every=5, bins=8), MemoryLength(0.3)])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 0.01)
    learn.export(f'{adamod_fastai.__version__}.pkl')

@pytest.mark.parametrize('file', sorted(folder.glob('*.pkl')), ids=lambda o: o.stem)
def test_a_learner_of_an_earlier_version_predicts_trains_and_plots(file):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = quiet(load_learner(file))
    assert len(learn.clipped_fraction.used) == 10 and learn.rate_histogram.histograms.shape == (10,8)
    for o in learn.clipped_fraction.plot, learn.clipped_fraction.plot_layers, learn.rate_histogram.plot: o()
    learn.dls = cancer_learner(AdaMod).dls
    learn.get_preds()
    learn.fit_one_cycle(4, 0.01)
    assert learn.memory_length.len_memory == 30 and len(learn.clipped_fraction.used) == 20
    assert list(learn.recorder.metric_names)[-3:-1] == ['clipped','used']

def test_this_version_is_there(): assert (folder/f"{__import__('adamod_fastai').__version__}.pkl").exists()

if __name__ == '__main__': write()
