"Run notebooks as Jupyter would, and keep their outputs: `python docs/execute.py [NOTEBOOK ...]`"
import os, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean

root = Path(__file__).resolve().parent.parent

def execute(path):
    "Run the notebook at `path` in its own folder, save it with its outputs and without what differs from machine to machine"
    os.environ['PYTHONWARNINGS'] = 'ignore::FutureWarning,ignore::DeprecationWarning'
    nb = nbformat.read(path, as_version=4)
    where = {'metadata': {'path': str(path.parent)}}
    NotebookClient(nb, timeout=900, kernel_name='python3', coalesce_streams=True, resources=where).execute()
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(str(path))

if __name__ == '__main__':
    for o in [Path(o).resolve() for o in sys.argv[1:]] or sorted(root.glob('nbs/**/*.ipynb')):
        print(o.relative_to(root), flush=True)
        execute(o)
