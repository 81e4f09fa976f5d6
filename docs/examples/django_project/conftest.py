import pytest


@pytest.fixture(autouse=True, scope="session")
def mediator_closed(django_db_setup):
    yield
    # Django is set up by now. It drops the test database after this.
    from meetings.mediator import mediator

    mediator.close()
