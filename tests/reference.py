"The update rules in float64 NumPy, which `adamod_fastai.check` compares with as well"
from adamod_fastai.check import Rule
