"""The machine code (PTX) for an H100 of kernels that torch generated: `python tests/kernel_ptx.py FILE ...`, without a GPU

Of each file what is printed ends with a line that holds a form feed.

A process of its own: where Triton's interpreter is switched on, its compiler is not to be had.
"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
from unittest.mock import patch

import torch._inductor.runtime.triton_helpers as helpers
import torch._inductor.runtime.triton_heuristics as heuristics
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def ptx(file):
    metas = []
    def noted(*args, triton_meta, **kwargs):
        metas.append(triton_meta)
        return lambda kernel: kernel
    spec = spec_from_file_location('kernel', file)
    module = module_from_spec(spec)
    with patch.object(heuristics, 'pointwise', noted), patch.object(helpers, 'set_driver_to_gpu'): spec.loader.exec_module(module)
    meta,kernel = metas[0],next(o for o in vars(module).values() if isinstance(o, triton.JITFunction) and o.__module__=='kernel')
    config = heuristics.triton_config({'x': 1<<20}, 1024, num_elements_per_warp=256)  # that of a large tensor
    source = ASTSource(kernel, meta['signature'], {**meta['constants'], **config.kwargs}, meta['configs'][0])
    return triton.compile(source, target=GPUTarget('cuda', 90, 32), options=dict(num_warps=config.num_warps)).asm['ptx']

for o in sys.argv[1:]: print(ptx(o), '\f', sep='\n')
