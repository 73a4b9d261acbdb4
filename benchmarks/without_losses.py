"Leave out the losses of each batch, as in the results that are committed: `python benchmarks/without_losses.py FOLDER ...`"
import json, os, sys
from pathlib import Path

def without_losses(folder):
    path = Path(folder)/'runs.jsonl'
    runs = [{**json.loads(o), 'losses': []} for o in path.read_text(encoding='utf-8').splitlines()]
    path.with_suffix('.tmp').write_text(''.join(json.dumps(o)+'\n' for o in runs), encoding='utf-8')
    os.replace(path.with_suffix('.tmp'), path)
    (Path(folder)/'losses.csv').unlink(missing_ok=True)
    os.utime(Path(folder)/'results.csv')  # it is still the table of these runs

if __name__ == '__main__':
    for o in sys.argv[1:]: without_losses(o)
