"Compare optimizers and learning rates on one task"
import warnings

with warnings.catch_warnings():
    warnings.simplefilter('ignore', FutureWarning) # fastai's, about torch: a command is to be silent but for what it says
    import fastai.basics

from .arguments import known_opts
from .command import main
from .report import compare_table, opt_styles, plot_losses, plot_metric
from .sweep import compare

__all__ = ['known_opts', 'compare', 'compare_table', 'opt_styles', 'plot_metric', 'plot_losses']
