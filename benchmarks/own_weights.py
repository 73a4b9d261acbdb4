"The transformer of `text_learner` with different initial weights in each layer: torch's `nn.TransformerEncoder` copies one layer"
from torch import nn

from chosen_on import text_learner

def own_weights_learner(opt_func):
    learn = text_learner(opt_func)
    learn.model.layers.layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 256, dropout=0., batch_first=True) for _ in range(8))
    return learn
