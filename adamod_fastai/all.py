from .optimizer import *
from .fused import *
from .callback import *
from .compare import *
