"The update rules in float64 NumPy, written from the papers' equations, one element-wise line at a time"
import numpy as np

def sigmoid(x): return 1/(1+np.exp(-x))

def xi(delta, version):
    "DiffGrad's friction (Dubey et al. 2019, equation 2 and its variants)"
    if version == 0: return sigmoid(np.abs(delta))
    if version == 1: return sigmoid(delta)
    return 9*sigmoid(np.abs(delta)/2) - 4

class Rule:
    "One optimizer on one array: `rule` is 'AdaMod', 'DiffMod', 'DiffGrad' or 'DeepMemory'"
    def __init__(self, rule, p, beta3=0.999, version=None, paper=True, decouple_wd=True, follow_lr=False):
        self.rule,self.beta3,self.version,self.paper,self.decouple_wd,self.follow_lr = rule,beta3,version,paper,decouple_wd,follow_lr
        self.p = np.array(p, dtype=np.float64)
        self.m,self.v,self.s,self.prev,self.shape = (np.zeros_like(self.p) for _ in range(5))
        self.t = 0

    def step(self, g, lr, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.01):
        g,beta3 = np.array(g, dtype=np.float64),self.beta3
        if not self.decouple_wd: g = g + wd*self.p
        self.t += 1
        self.m = mom*self.m + (1-mom)*g
        self.v = sqr_mom*self.v + (1-sqr_mom)*g*g
        c1,c2 = 1-mom**self.t,1-sqr_mom**self.t
        if self.paper: self.eta,mhat = lr/(np.sqrt(self.v/c2)+eps), self.m/c1
        else:          self.eta,mhat = lr*np.sqrt(c2)/c1/(np.sqrt(self.v)+eps), self.m
        self.used = self.eta
        if self.rule != 'DiffGrad':
            if self.follow_lr:          # the average of the rates without lr, times lr
                self.shape = beta3*self.shape + (1-beta3)*self.eta/lr
                self.s = lr*self.shape
            else: self.s = beta3*self.s + (1-beta3)*self.eta
            self.used = (self.eta+self.s)/2 if self.rule == 'DeepMemory' else np.minimum(self.eta, self.s)
        if self.version is not None: mhat = mhat*xi(self.prev-g, self.version)
        self.prev = g
        if self.decouple_wd: self.p = self.p*(1-lr*wd)
        self.p = self.p - self.used*mhat
