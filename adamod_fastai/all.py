from .base import *
from .fused import *
from .memory import *
from .optimizer import *
from .callback import *
from .compare import *
