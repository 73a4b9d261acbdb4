"The table of what works is what the tests find"
import csv
from pathlib import Path

import pytest

from conftest import COLLECTED, found, line

root = Path(__file__).resolve().parent.parent
AGAIN = 'run pytest -m feature --matrix nbs/support.csv'

@pytest.fixture
def table(request):
    "The committed table, if every test has been collected"
    config = request.config
    if config.args != config.getini('testpaths') or config.option.ignore: pytest.skip('looks at the whole suite')
    with open(root/'nbs/support.csv') as f: return {tuple(row[:-1]): row[-1] for row in list(csv.reader(f))[1:]}

def test_table_has_every_feature_that_is_tested(table): assert set(table) == set(map(line, COLLECTED))-{None}, AGAIN

def test_table_says_what_was_found(table, request):
    "But where the machine that made it could not run a test and this one can"
    if request.session.items != COLLECTED: pytest.skip('the whole suite has not run')
    if request.config.getoption('--matrix'): pytest.skip('the table is being made')
    now = found()
    assert {k: v for k,v in now.items() if v != table.get(k) != 'skipped' or v == 'failed'} == {}, AGAIN
