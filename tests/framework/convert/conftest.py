"""transformers neither warns nor draws here."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def quiet():
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
