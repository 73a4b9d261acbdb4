"What a model costs, as its page says, and as the compiled step has it"
import json
from pathlib import Path

import pytest
import torch

from adamod_fastai.fused import kernel, step
from adamod_fastai.optimizer import AdaMod, DeepMemory, DiffGrad, DiffMod

def page_cost():
    "The function `cost` of the page"
    cells = json.loads((Path(__file__).parent.parent/'nbs/costs.ipynb').read_text())['cells']
    env = dict(torch=torch, Tensor=torch.Tensor)
    exec(next(src for c in cells if (src := ''.join(c['source'])).startswith('def cost')), env)
    return env['cost']

@pytest.mark.parametrize('dtype', [torch.float32,torch.bfloat16])
@pytest.mark.parametrize('f', [AdaMod,DiffMod,DiffGrad,DeepMemory])
def test_the_step_reads_and_writes_that_much(f, dtype, monkeypatch):
    monkeypatch.setattr(step, '_kernels', {})
    monkeypatch.setattr(kernel, 'compile_module', lambda module, tensors, scalars: module)
    p = torch.randn(10, 10).to(dtype)
    p.grad = torch.randn(10, 10).to(dtype)
    opt = f([p], lr=0.01, fused=True)
    for _ in range(2): opt.step()
    compiled, = step._kernels.values()
    sizes = dict(zip([n.name for n in compiled.module.graph.nodes if n.op == 'placeholder'], [o.itemsize for o in compiled.spec.dtypes]))
    written = [n.args[0].name for n in compiled.module.graph.nodes if n.op == 'call_method' and n.target == 'copy_']
    assert len(set(written)) == len(written)
    assert sum(sizes.values()) + sum(sizes[o] for o in written) == page_cost()(f, dtype)['traffic']
