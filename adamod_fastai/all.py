from .optimizer import *
from .callback import *
