"The table of what works has what the tests look at; that it says what they found, `conftest` sees when all have run"
import pytest

from conftest import AGAIN, COLLECTED, is_whole, line, table

def test_table_has_every_feature_that_is_tested(request):
    if not is_whole(request.config): pytest.skip('looks at the whole suite')
    assert set(table()) == set(map(line, COLLECTED))-{None}, AGAIN
