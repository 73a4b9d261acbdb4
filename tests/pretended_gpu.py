"""The step as it would run on a GPU, without one: `test_cuda_kernels` runs this in a process of its own

Its kernels are generated for a pretended H100 and run by Triton's interpreter. The tensors lie on the CPU.
"""
import os, re, subprocess, sys, types
from collections import Counter
from pathlib import Path
os.environ['TRITON_INTERPRET'] = '1'  # before triton is imported

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
import torch._inductor.async_compile
import torch._inductor.runtime.triton_helpers as helpers
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from adamod_fastai.fused import buckets, kernel, step as fused_step
from adamod_fastai.optimizer import AdaMod, DeepMemory, DiffGrad, DiffMod

H100 = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32, name='H100',
                             max_threads_per_multi_processor=2048, max_threads_per_block=1024, total_memory=1<<36)

class OnGPU(kernel.Kernel):
    "Compiled for the second GPU, and called with tensors on the CPU"
    def __init__(self, graph):
        super().__init__(graph._replace(spec=graph.spec._replace(device=torch.device('cuda:1'))))
        self.there,self.spec = self.spec,graph.spec
    def compile(self, dims):
        here,self.spec = self.spec,self.there
        with FakeTensorMode(): super().compile(dims)
        self.spec = here

class Pretended:
    "While it lasts there are two GPUs: the `sources` of the kernels for them, and the `devices` that were made current"
    def __init__(self): self.sources,self.devices,self.stack = [],[],ExitStack()

    def __enter__(self):
        driver.set_active(types.SimpleNamespace(get_current_target=lambda: GPUTarget('cuda', 90, 32)))
        torch._C._ensureCUDADeviceGuardSet()
        tensor,triton = torch.tensor,AsyncCompile.triton
        def noted(compiler, name, src, *args, **kwargs):
            self.sources.append(src)
            return triton(compiler, name, src, *args, **kwargs)
        for o,k,f in [
            (fused_step, 'Kernel', OnGPU), *((o, 'has_rows', lambda device: True) for o in (kernel,buckets)),
            (AsyncCompile, 'triton', noted),
            (torch, 'tensor', lambda *args, pin_memory=False, **kwargs: tensor(*args, **kwargs)),
            (torch.cuda, 'is_available', lambda: True), (torch.cuda, 'device_count', lambda: 2),
            (torch.cuda, 'current_device', lambda: 0), (torch.cuda, 'set_device', self.devices.append),
            (torch.cuda, '_exchange_device', lambda d: 0), (torch.cuda, '_maybe_exchange_device', lambda d: 0),
            (torch.cuda, 'get_device_properties', lambda d=None: H100), (torch.cuda, 'get_device_capability', lambda d=None: (9,0)),
            (torch.cuda, 'get_rng_state', lambda d=None: torch.zeros(1, device='cpu')),
            (torch.cuda, 'set_rng_state', lambda s, d=None: None),
            (torch.cuda, 'is_current_stream_capturing', lambda: False), (torch.accelerator, 'is_available', lambda: False),
            (torch._C, '_cuda_getCurrentRawStream', lambda d: 0), (helpers, 'set_driver_to_gpu', lambda: None),
            (CudaInterface, 'get_device_properties', staticmethod(lambda d=None: H100)),
            (CudaInterface.Worker, 'get_device_properties', staticmethod(lambda d=None: H100)),
            (joint_graph, 'constant_fold_uniform_value', lambda gm: None),  # it would make a tensor there
            (joint_graph, 'lazy_init', lambda *args: None), (post_grad, 'lazy_init', lambda *args: None)]:
            self.stack.enter_context(patch.object(o, k, f))
        self.stack.enter_context(patch.dict(fused_step._kernels, clear=True))
        self.stack.enter_context(patch.dict(buckets.sizes, cpu=buckets.Sizes(1000, 1<<12)))
        return self

    def __exit__(self, *args): return self.stack.__exit__(*args)

def traffic(src):
    "Bytes for each element that a kernel reads, and that it writes"
    size = {k:dict(fp32=4, bf16=2, fp16=2)[t] for k,t in re.findall(r"'(\w+)': '\*(\w+)'", src)}
    return tuple(sum(size[k] for k in re.findall(rf'tl\.{op}\((\w+) \+ \(x0\)', src)) for op in ('load','store'))

def all_multiples_of_16(src):
    "Does Triton know that all pointers and the length are multiples of 16, and so load 128 bits at once?"
    signature = re.search(r"'signature': \{(.*?)\}", src)[1].split(', ')
    names = [o.split(':')[0].strip("'") for o in signature]
    known = {int(i) for i in re.findall(r"\((\d+),\): \[\['tt.divisibility', 16\]\]", src)}
    return {i for i,o in enumerate(names) if 'BLOCK' not in o.upper()} <= known

def accesses(sources, tmp_path):
    "How often a thread of each kernel, compiled for an H100, reads and writes so much at once"
    files = [tmp_path/f'kernel_{i}.py' for i in range(len(sources))]
    for file,src in zip(files, sources): file.write_text(src)
    env = {k:v for k,v in os.environ.items() if k != 'TRITON_INTERPRET'}
    command = [sys.executable,Path(__file__).parent/'kernel_ptx.py',*files]
    res = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [Counter(re.findall(r'\b(?:ld|st)\.global\S*', o)) for o in res.stdout.split('\f')[:-1]]

def twins(opt_func, shapes, dtype):
    def param(i, s): return torch.nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(i)).to(dtype))
    def params(): return [param(i, s) for i,s in enumerate(shapes)]
    return [(ps := params(), opt_func(ps, lr=0.01, fused=f)) for f in (False,True)]

def step(eager, gpu):
    for p,q in zip(eager[0], gpu[0]):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    for _,opt in (eager,gpu): opt.step()

def check(eager, gpu):
    assert not any(gpu[1]._said), gpu[1]._said  # nothing falls back to the eager step
    for p,q in zip(eager[0], gpu[0]):
        torch.testing.assert_close(q, p, atol=1e-5, rtol=1e-5)
        for k,v in eager[1].state[p].items(): torch.testing.assert_close(gpu[1].state[q][k], v, atol=1e-5, rtol=1e-5)

SHAPES = (40,50),(7,),(),(70,3)
TRAFFIC = [(AdaMod,(20,16)), (DiffMod,(24,20)), (DiffGrad,(20,16)), (DeepMemory,(24,20))]

@pytest.mark.parametrize('opt_func,want', TRAFFIC)
def test_one_kernel_reads_and_writes_each_number_once(opt_func, want):
    torch.manual_seed(0)
    both = twins(opt_func, SHAPES, torch.float32)
    with Pretended() as gpu:
        for _ in range(4): step(*both)
    check(*both)
    assert [o.count('@triton.jit') for o in gpu.sources] == [1]
    assert traffic(gpu.sources[0]) == want
    assert all_multiples_of_16(gpu.sources[0])
    assert set(gpu.devices) == {1}  # where its tensors lie

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_narrow_parameters(dtype):
    torch.manual_seed(0)
    both = twins(AdaMod, SHAPES, dtype)
    with Pretended():
        for _ in range(4): step(*both)
    check(*both)

def test_a_length_that_is_no_multiple_of_16_has_a_kernel_of_its_own():
    torch.manual_seed(0)
    both = twins(AdaMod, [(33,33),(40,50)], torch.float32)
    with Pretended() as gpu:
        for _ in range(4): step(*both)
    check(*both)
    assert sorted(map(all_multiples_of_16, gpu.sources)) == [False,True]

@pytest.fixture(scope='module')
def accesses_of(tmp_path_factory):
    "Those of the kernel for any length, and of the one for multiples of 16, of two optimizers"
    sources = []
    for opt_func,_ in TRAFFIC[:2]:
        both = twins(opt_func, [(33,33),(40,50)], torch.float32)
        with Pretended() as gpu:
            for _ in range(4): step(*both)
        sources += sorted(gpu.sources, key=all_multiples_of_16)
    assert len(sources) == 4
    found = accesses(sources, tmp_path_factory.mktemp('kernels'))
    return {opt_func: found[2*i:2*i+2] for i,(opt_func,_) in enumerate(TRAFFIC[:2])}

@pytest.mark.parametrize('opt_func,want', TRAFFIC[:2])
def test_reads_and_writes_128_bits_at_once(opt_func, want, accesses_of):
    flat,rows = accesses_of[opt_func]
    each = 1024//128  # elements that a thread steps
    read,written = (each*o//4 for o in want)
    nums = rows['ld.global.b32']
    assert rows == {'ld.global.v4.b32': read//4, 'st.global.v4.b32': written//4, 'ld.global.b32': nums} and nums < 12
    assert flat == {'ld.global.b32': read+nums, 'st.global.b32': written}

def test_nan_stays_nan_in_bfloat16():
    "Also with the bits that a GPU gives it, to which nothing can be added"
    from adamod_fastai.base import _round_up_or_down
    nan = torch.tensor([0x7fffffff], dtype=torch.int32).view(torch.float32)
    assert _round_up_or_down(nan, torch.tensor([0xffff], dtype=torch.int32)).isnan().all()

class NoWait(TorchDispatchMode):
    "A value that Python waits for, or a copy to another device that is waited for"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default,torch.ops.aten.nonzero.default): raise RuntimeError(f'waits in {func}')
        return func(*args, **(kwargs or {}))

def steady(opt_func):
    both = twins(opt_func, SHAPES, torch.float32)
    with Pretended():
        for _ in range(3): step(*both)
        for o in fused_step._kernels.values(): o.fns = dict.fromkeys(o.fns, lambda *args: None)  # what the kernel does is not the question
        with NoWait(), patch.object(torch.cuda, 'synchronize', side_effect=RuntimeError('waits')): both[1][1].step()

def test_a_steady_step_waits_for_nothing(): steady(AdaMod)

def test_a_wait_would_be_seen():
    def waits(p, lr, **kwargs): p.data.mul_(p.grad.data.norm().item())
    with pytest.raises(RuntimeError, match='waits in'), pytest.warns(UserWarning, match='norm'):
        steady(lambda ps, lr, fused: AdaMod(ps, lr) if not fused else fused_by(ps, waits, lr))

def fused_by(ps, cb, lr): return fused_step.FusedOptimizer(ps, cb, lr=lr)
