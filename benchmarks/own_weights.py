"The long transformer, each of whose layers starts with weights of its own: torch's `nn.TransformerEncoder` copies one"
from torch import nn

from chosen_on import text_learner

def own_weights_learner(opt_func):
    learn = text_learner(opt_func)
    learn.model.layers.layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 256, dropout=0., batch_first=True) for _ in range(8))
    return learn
