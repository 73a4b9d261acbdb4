"""Training as on another machine: `OTHER_MACHINE=3 pytest`, or `PYTHONPATH=tests OTHER_MACHINE=3 nbdev-test PAGE`

The last bits of a gradient differ from CPU to CPU, and over some hundred batches they can decide how a training comes out. Here
each gradient is off by as much, in a way that hangs on the number of the machine and on the gradient's own bits: what is done
twice on one machine gives the same to the bit. Number 0 is the machine itself. `sitecustomize` hooks it into a process.
"""
import os
from pathlib import Path

import torch

def machine_env(number=None):
    "The environment of a process that trains as on the machine of this `number`, if not on that of this process"
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(path), OTHER_MACHINE=os.environ.get('OTHER_MACHINE') or str(number))

def noise(x, machine):
    "Of the shape of `x`, from -1 to 1: a hash of each element's bits and `machine`"
    h = x.float().view(torch.int32) ^ (machine*0x1e3779b1 & 0x7fffffff)
    h.mul_(0x45d9f3b).bitwise_xor_(h >> 16).mul_(0x2c1b3c6d)     # int32 wraps round
    return h.float().div_(2**31)

def shift(grad, machine):
    "Change `grad` by up to a millionth, or by what its dtype can tell"
    grad.addcmul_(grad, noise(grad, machine).to(grad.dtype), value=max(1e-6, torch.finfo(grad.dtype).eps))

def become(learner_class):
    "From now on every Learner trains as on the machine that the environment names"
    machine,backward = int(os.environ['OTHER_MACHINE']),learner_class._backward
    if not machine or hasattr(backward, 'machine'): return
    def _backward(self):
        backward(self)
        for p in self.model.parameters():
            if p.grad is not None and not p.grad.is_sparse: shift(p.grad.data, machine)
    _backward.machine = machine
    learner_class._backward = _backward
