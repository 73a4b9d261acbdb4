"The data and the models that one compares on"
import pytest, torch

from adamod_fastai.compare import compare
from adamod_fastai.compare.tasks import digits_dls, digits_learner, text_dls, transformer_learner

# The data

def test_digits():
    from sklearn.datasets import load_digits
    dls = digits_dls()
    x = torch.cat([dls.train_ds.tensors[0], dls.valid_ds.tensors[0]])
    assert len(x)==1797 and len(dls.train)==22 and len(dls.vocab)==dls.c==10
    key = lambda o: sorted(o.flatten(1).mul(16).round().int().tolist())
    assert key(x)==sorted(load_digits().data.astype(int).tolist())
    xb,yb = dls.train.one_batch()
    assert xb.shape==(64,1,8,8) and yb.shape==(64,) and 0 <= xb.min() and xb.max()==1

def test_text_targets_are_the_next_characters():
    from pydoc_data.topics import topics
    dls,text = text_dls(),'\n'.join(topics.values())
    for dl in dls:
        x,y = dl.one_batch()
        decode = lambda o: ''.join(dls.vocab[i] for i in o)
        for xb,yb in zip(x[:5], y[:5]): assert len(xb)==32 and decode(xb)+decode(yb)[-1] in text and torch.equal(xb[1:], yb[:-1])
    assert len(dls.train)==60 and len({tuple(o.tolist()) for x,_ in dls.train for o in x}) > 900
    train,valid = [''.join(dls.vocab[i] for i in ds.tensors[0].flatten()) for ds in (dls.train_ds,dls.valid_ds)]
    assert text.startswith(train+valid) and len(valid) > 0.09*len(text) and len(text)-len(train+valid) <= 32

def test_transformer_does_not_see_ahead():
    learn = transformer_learner()
    model = learn.model.eval()
    x = learn.dls.one_batch()[0][:2]
    changed = x.clone()
    changed[:,10:] = (changed[:,10:]+1) % learn.dls.c
    with torch.no_grad(): a,b = model(x),model(changed)
    assert torch.allclose(a[:,:10], b[:,:10], atol=1e-5) and not torch.allclose(a[:,10:], b[:,10:], atol=1e-2)

def test_the_small_transformer_is_that_of_torch():
    "The same weights in torch's own post-norm layers give the same"
    learn = transformer_learner(n_layers=3)
    model,d = learn.model.eval(),32
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(d, 2, 128, dropout=0., batch_first=True), 3).train()
    names = ['self_attn.in_proj_','self_attn.out_proj.','norm1.','linear1.','linear2.','norm2.']
    with torch.no_grad():
        for layer,ws in zip(encoder.layers, zip(*model.layers), strict=True):
            for o,w in zip((f'{o}{k}' for o in names for k in ('weight','bias')), ws, strict=True): layer.get_parameter(o).copy_(w)
        x = learn.dls.one_batch()[0]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        want = encoder(model.emb[x]*d**0.5 + model.pos, mask=mask, is_causal=True) @ model.head.T + model.bias
        assert x.shape==(16,16) and torch.allclose(model(x), want, atol=1e-4)

@pytest.mark.parametrize('n_layers', [2,8,12])
def test_the_small_transformer_has_16_tensors(n_layers):
    ps = list(transformer_learner(n_layers=n_layers).model.parameters())
    matrices = [w for p in ps if p.dim()==3 for w in p.data]
    assert len(ps)==16 and len(matrices)==4*n_layers
    for w in matrices: assert w.abs().max()==pytest.approx((6/sum(w.shape))**0.5, rel=0.1)
    assert len({tuple(w.flatten()[:5].tolist()) for w in matrices})==len(matrices)
    far,near = [transformer_learner(pos_std=o).model.pos.std().item() for o in (None,0.02)]
    assert far==pytest.approx((2/48)**0.5, rel=0.1) and near==pytest.approx(0.02, rel=0.1)

def test_the_small_transformer_validates_on_blocks_from_all_of_the_last_tenth():
    dls,whole = transformer_learner().dls,text_dls(16, 16)
    seen,last = [{tuple(o.tolist()) for x,_ in o.valid for o in x} for o in (dls,whole)][0],whole.valid_ds.tensors[0]
    places = [i for i,o in enumerate(last) if tuple(o.tolist()) in seen]
    assert sum(len(x) for x,_ in dls.valid)==512 and places[0] < 10 and places[-1] > 0.85*len(last)
    assert len(dls.train)==40

def test_digits_are_learned():
    assert compare(digits_learner, 'Adam', 1e-2, seeds=1, n_epoch=2).accuracy[0] > 0.8

def test_no_row_is_in_both_parts():
    both = digits_learner().dls.train_ds,digits_learner().dls.valid_ds
    train,valid = [{tuple(x.flatten().tolist()) for x,_ in ds} for ds in both]
    assert not train & valid

def test_an_epoch_of_text_is_from_all_of_it():
    dls = text_dls()
    blocks = {tuple(o.tolist()): i for i,o in enumerate(dls.train_ds.tensors[0])}
    a,b = [[blocks[tuple(o.tolist())] for x,_ in dls.train for o in x] for _ in range(2)]
    assert a != b and max(a) > 0.9*len(blocks) and min(a) < 0.1*len(blocks) and a != sorted(a)
