"""Sessions that are open, or opened when they are needed."""

from lucid_deploy.parity.measure.source import opened
from tests.parity.small_models import session


def test_a_session_is_itself_and_a_function_is_called(model):
    open_session = session(model)
    assert opened(open_session) is open_session
    assert opened(lambda: open_session) is open_session
