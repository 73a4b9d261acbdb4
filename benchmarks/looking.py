"AdaMod and Adam in fastai's `Lookahead`, as ranger is RAdam in it"
from fastai.optimizer import Adam, Lookahead
from adamod_fastai.all import AdaMod

def lookahead_adamod(params, lr, **kwargs): return Lookahead(AdaMod(params, lr, **kwargs))
def lookahead_adam(params, lr, **kwargs): return Lookahead(Adam(params, lr, **kwargs))

looking = {'Lookahead(AdaMod)': lookahead_adamod, 'Lookahead(Adam)': lookahead_adam}
