"The table of what works is about the tests that there are"
import csv, re
from pathlib import Path

from conftest import CASES

root = Path(__file__).resolve().parent.parent

def test_table_has_every_feature_that_is_tested():
    with open(root/'nbs/support.csv') as f: rows = list(csv.DictReader(f))
    found = {(o['feature'],f"{o['optimizer']}-{o['path']}") for o in rows}
    tested = {m[2] for f in root.glob('tests/test_*.py') if f != Path(__file__) for m in re.finditer(r'mark\.feature\(([\'"])(.*?)\1\)', f.read_text())}
    from test_training_loop import FITS
    assert found == {(o,c) for o in tested|set(FITS) for c in CASES}, 'run pytest --matrix nbs/support.csv'
    assert 'failed' not in {o['result'] for o in rows}
