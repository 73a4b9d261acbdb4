"""`compare` for the studies: runs are kept in benchmarks/runs, which git ignores, and their tables copied to nbs/results, which pages read

The runs behind the tables that are there are not in the repository: a study that is started in a clone trains all of its runs anew.
"""
import os, sys
from pathlib import Path
from shutil import copyfile

import adamod_fastai.compare

root = Path(__file__).resolve().parent.parent
runs,results = root/'benchmarks/runs',root/'nbs/results'

def compare(*args, out, **kwargs):
    "`JOBS` runs at a time, kept in the folder `out` of benchmarks/runs"
    return adamod_fastai.compare.compare(*args, **{'jobs': int(os.environ.get('JOBS', 1)), **kwargs}, out=runs/out)

def copy_tables(out, losses=False):
    "Copy the tables in the folder `out` of benchmarks/runs, and below it, to nbs/results"
    for table in (runs/out).rglob('*.csv'):
        if table.name == 'losses.csv' and not losses: continue
        to = results/table.relative_to(runs)
        to.parent.mkdir(parents=True, exist_ok=True)
        copyfile(table, to)

if __name__ == '__main__':
    for o in sys.argv[1:]: copy_tables(o.removesuffix('+losses'), losses=o.endswith('+losses'))
