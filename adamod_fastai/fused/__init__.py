"""The same step functions, traced and compiled"""
from .step import FusedOptimizer, fused
from .step import make_fused as _make_fused # what Learners that 0.2.0 exported call it

__all__ = ['FusedOptimizer', 'fused']
