"""The system checks of the Django app: they report wiring with which events would be lost or late."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.consumer import Consumer
from cqrs_sync.memory import MemoryBroker
from tests.consumer.conftest import Joined

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_emptied")]


@frozen
class Sell(cqrs.Command[None]):
    number: int


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()
    requests.bind(Sell, lambda _: None)
    return requests


@pytest.fixture
def make(requests):
    """Make a mediator as a project does."""
    from cqrs_sync.integrations.django import bootstrap  # noqa: PLC0415 -- needs settings

    def make(**options):
        return bootstrap(requests, source="tests", **{"threads": 2, "broker": MemoryBroker(), **options})

    return make


@pytest.fixture
def found(django_mediator):
    """Run the checks with a mediator in the settings; return their ids."""
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above

    def found(mediator, databases=None):
        django_mediator(mediator)
        return [each.id for each in run_checks(tags=["cqrs_sync"], databases=databases, include_deployment_checks=True)]

    return found


@contextmanager
def database_settings(alias, **changes):
    """Change settings of a database."""
    from django.db import connections  # noqa: PLC0415 -- as above

    known = connections.settings[alias]
    kept = {name: known[name] for name in changes}
    known.update(changes)
    try:
        yield
    finally:
        known.update(kept)


# The mediator


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
def test_the_checks_accept_a_well_wired_mediator(found, make, alias):
    """
    On any database, with all checks.
    """
    assert [] == found(make(using=alias), databases=["default", "postgresql", "mariadb", "sqlite"])


def test_the_checks_accept_a_project_without_a_mediator(monkeypatch):
    """
    It has the app for its tables only.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above

    monkeypatch.setattr(settings, "CQRS_SYNC", {}, raising=False)

    assert [] == run_checks(tags=["cqrs_sync"], databases=["default"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"MEDIATOR": "nowhere.at.all"}, "'nowhere.at.all', which cannot be imported: No module named 'nowhere'"),
        ({"MEDIATOR": "json.mediator"}, 'cannot be imported: Module "json" does not define a "mediator"'),
        ({"MEDIATOR": "mediator"}, "cannot be imported"),
        ({"MEDIATOR": "string.digits"}, "not of the type str"),
        ({"MEDIATOR": 42}, "the settings do not name a mediator"),
        ({"GROUP": "x"}, "the settings do not name a mediator"),
        ("shop.mediator", "the settings do not name a mediator"),
    ],
)
def test_settings_that_name_no_mediator_are_an_error(monkeypatch, setting, words):
    """
    The error names the type of what was found, never its content.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above

    monkeypatch.setattr(settings, "CQRS_SYNC", setting, raising=False)
    (error,) = run_checks(tags=["cqrs_sync"], databases=["default"])

    assert error.id == "cqrs_sync.E001"
    assert words in error.msg


WITHOUT_SOURCE = """
from cqrs_sync.integrations.django import bootstrap
mediator = bootstrap({arguments})
"""


def run_checks_with(monkeypatch, tmp_path, arguments, **chosen):
    """Run the checks of a project whose module makes the mediator; return what they found."""
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above

    name = f"a_shop_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(WITHOUT_SOURCE.format(arguments=arguments))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(settings, "CQRS_SYNC", {"MEDIATOR": f"{name}.mediator", **chosen}, raising=False)
    return [(each.id, each.msg) for each in run_checks(tags=["cqrs_sync"])]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, 'write CQRS_SYNC = {"SOURCE": "shop", ...}, or bootstrap(source="shop")'),
        ({"SOURCE": "my shop"}, """CQRS_SYNC["SOURCE"] must be the name of this service, without spaces"""),
        ({"SOURCE": 7}, """CQRS_SYNC["SOURCE"] must be the name of this service, without spaces"""),
    ],
)
def test_the_checks_report_a_source_that_is_missing_or_wrong(monkeypatch, tmp_path, chosen, words):
    [(id_, message)] = run_checks_with(monkeypatch, tmp_path, "using='sqlite'", **chosen)

    assert ("cqrs_sync.E009", True) == (id_, words in message)


def test_the_checks_report_a_wrong_source_that_bootstrap_does_not_use(monkeypatch, tmp_path):
    [(id_, _)] = run_checks_with(monkeypatch, tmp_path, "using='sqlite', source='shop'", SOURCE="")

    assert "cqrs_sync.E009" == id_


@pytest.mark.parametrize(("argument", "source"), [("", "shop"), (", source='other'", "other")])
def test_the_settings_name_the_source_and_an_argument_of_bootstrap_comes_first(monkeypatch, tmp_path, argument, source):
    from cqrs_sync.integrations.django import mediator_of_settings  # noqa: PLC0415 -- as above

    assert [] == run_checks_with(monkeypatch, tmp_path, "using='sqlite'" + argument, SOURCE="shop")
    assert source == mediator_of_settings().wiring.serializer.source


MODULES = {
    "raises": ("def make():\n    raise ValueError('no port\\nin the URL')\n", "ValueError: no port (line 2 of {file})"),
    "refuses": (
        "from cqrs_sync.integrations.rabbitmq import RabbitMQBroker\nmake = RabbitMQBroker('amqp://u:secret@[::1')\n",
        "special characters in user, password and vhost as %XX (line 2 of {file})",
    ),
    "asks": ("settings = {}\nurl = settings['url']\n", "which cannot be imported: KeyError: 'url' (line 2 of {file})"),
    "needs": ("\nimport nowhere_at_all\n", "No module named 'nowhere_at_all' (line 2 of {file})"),
    "garbled": ("def (\n", "which cannot be imported: SyntaxError"),
}


@pytest.mark.parametrize("setting", ["MEDIATOR", "CONSUMER"])
@pytest.mark.parametrize("name", MODULES)
def test_an_error_in_the_projects_code_is_reported_with_its_line(django_mediator, monkeypatch, tmp_path, setting, name):
    """
    Other checks run, and commands end with one line and the status for wrong configuration.
    """
    import click  # noqa: PLC0415 -- as above
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above
    from django.core.management import call_command  # noqa: PLC0415 -- as above

    source, words = MODULES[name]
    path = f"a_shop_that_{name}_{setting.lower()}"
    file = tmp_path / f"{path}.py"
    file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    django_mediator(cqrs.bootstrap())
    monkeypatch.setattr(settings, "CQRS_SYNC", {**settings.CQRS_SYNC, setting: f"{path}.make"})
    (error,) = run_checks(tags=["cqrs_sync"], databases=["default"])
    with pytest.raises(click.ClickException) as raised:
        call_command("cqrs_consumer", "lag")

    assert "cqrs_sync.E001" == error.id
    assert error.msg.startswith(f"CQRS_SYNC[\"{setting}\"] names '{path}.make'")
    assert words.format(file=file) in error.msg
    assert "\n" not in error.msg
    assert "secret" not in error.msg
    assert (2, error.msg) == (raised.value.exit_code, raised.value.message)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("MEDIATR", "did you mean 'MEDIATOR'? the keys are SOURCE, MEDIATOR, CONSUMER, GROUP"),
        ("CONSUMERS", "did you mean 'CONSUMER'? the keys are SOURCE, MEDIATOR, CONSUMER, GROUP"),
        ("group", "did you mean 'GROUP'? the keys are SOURCE, MEDIATOR, CONSUMER, GROUP"),
        (7, "the keys are SOURCE, MEDIATOR, CONSUMER, GROUP"),
    ],
)
def test_an_unknown_key_is_an_error(django_mediator, monkeypatch, key, hint):
    """
    It may be misspelled.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above

    django_mediator(cqrs.bootstrap())
    monkeypatch.setattr(settings, "CQRS_SYNC", {**settings.CQRS_SYNC, key: "shop"})
    (error,) = run_checks(tags=["cqrs_sync"], databases=["default"])

    assert ("cqrs_sync.E007", hint) == (error.id, error.hint)
    assert repr(key) in error.msg


def test_a_group_beside_a_consumer_of_another_group_is_an_error(django_mediator, monkeypatch):
    """
    The same group is fine.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above

    events = cqrs.EventMap()
    events.bind(Joined, lambda _: None)
    mediator = cqrs.bootstrap(source="tests", events=events, broker=MemoryBroker())
    django_mediator(mediator)
    monkeypatch.setitem(globals(), "consumer_of_test", Consumer(mediator, "shop"))
    names = {**settings.CQRS_SYNC, "CONSUMER": f"{__name__}.consumer_of_test"}
    told = {}
    for group in ("shop", "parcels"):
        monkeypatch.setattr(settings, "CQRS_SYNC", {**names, "GROUP": group})
        told[group] = [(each.id, each.hint) for each in run_checks(tags=["cqrs_sync"])]

    assert {
        "shop": [],
        "parcels": [("cqrs_sync.E008", "remove GROUP: the consumer has its group already")],
    } == told


def test_a_consumer_in_the_settings_is_enough(django_mediator, monkeypatch):
    """
    Its mediator need not be named as well.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import mediator_of_settings  # noqa: PLC0415 -- as above

    events = cqrs.EventMap()
    events.bind(Joined, lambda _: None)
    mediator = cqrs.bootstrap(source="tests", events=events, broker=MemoryBroker())
    django_mediator(mediator)
    monkeypatch.setitem(globals(), "consumer_of_test", Consumer(mediator, "shop"))
    monkeypatch.setattr(settings, "CQRS_SYNC", {"CONSUMER": f"{__name__}.consumer_of_test"})

    assert mediator is mediator_of_settings()
    assert [] == run_checks(tags=["cqrs_sync"])


def test_a_function_may_make_the_mediator(django_mediator, make):
    """
    The check calls it.
    """
    from cqrs_sync.integrations.django import mediator_of_settings  # noqa: PLC0415 -- as above

    mediator = make(using="sqlite")
    django_mediator(lambda: mediator)

    assert mediator is mediator_of_settings()


def test_commands_without_a_transaction_are_a_warning(found, make):
    """
    Their events could not be kept.
    """
    assert ["cqrs_sync.W001"] == found(make(using="sqlite", atomic=()))


def test_atomic_requests_are_enough(found, make):
    """
    They give commands a transaction.
    """
    with database_settings("sqlite", ATOMIC_REQUESTS=True):
        assert [] == found(make(using="sqlite", atomic=()))


def test_threads_that_keep_their_connections_are_a_warning(found, make):
    """
    Nothing else closes broken ones.
    """
    from cqrs_sync.integrations.django import old_connections_closed  # noqa: PLC0415 -- as above

    assert ["cqrs_sync.W003"] == found(make(using="sqlite", threads=cqrs.ThreadPool(2)))
    assert [] == found(make(using="sqlite", threads=cqrs.ThreadPool(2, around=old_connections_closed)))
    assert [] == found(make(using="sqlite", threads=cqrs.SameThread()))


# Its database


def test_an_unknown_alias_is_an_error(found, requests):
    """
    The hint lists the aliases.
    """
    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

    mediator = cqrs.bootstrap(requests, source="tests", outbox=DjangoOutbox("nowhere"))

    assert ["cqrs_sync.E002"] == found(mediator, databases=["default"])


def test_an_inbox_without_an_outbox_is_checked_as_well(found, make, requests):
    """
    Its database must exist. It needs no open transaction, since it opens one.
    """
    from django.test import override_settings  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoInbox  # noqa: PLC0415 -- as above

    class NotHere:
        def allow_migrate(self, db, app_label, model_name=None, **_):
            return model_name != "receipt"

    assert ["cqrs_sync.E002"] == found(cqrs.bootstrap(requests, inbox=DjangoInbox("nowhere")), databases=["default"])
    mediator = make(using="postgresql", outbox=None, atomic=())
    assert [] == found(mediator, databases=["postgresql"])
    with override_settings(DATABASE_ROUTERS=[NotHere()]):
        assert ["cqrs_sync.E006"] == found(mediator)


def test_a_database_of_another_kind_is_an_error(found, make):
    """
    The outbox has no SQL for it.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    connections["sqlite"].vendor = "oracle"
    try:
        assert ["cqrs_sync.E004"] == found(make(using="sqlite"))
    finally:
        del connections["sqlite"].vendor


def test_a_database_without_autocommit_is_an_error(found, make):
    """
    No claim would be committed there.
    """
    with database_settings("mariadb", AUTOCOMMIT=False):
        assert ["cqrs_sync.E005"] == found(make(using="mariadb"))


def test_a_router_that_keeps_the_tables_away_is_an_error(found, make):
    """
    `migrate` would succeed and make no table.
    """
    from django.test import override_settings  # noqa: PLC0415 -- as above

    class NotHere:
        def allow_migrate(self, db, app_label, **_):
            return None if app_label != "cqrs_sync" else db == "default"

    with override_settings(DATABASE_ROUTERS=[NotHere()]):
        assert ["cqrs_sync.E006"] == found(make(using="mariadb"))
        assert [] == found(make(using="default"))


def test_sqlite_without_immediate_transactions_is_a_warning(found, make):
    """
    The hint names the option that makes them wait.
    """
    with database_settings("sqlite", OPTIONS={}):
        assert ["cqrs_sync.W002"] == found(make(using="sqlite"))


@pytest.mark.parametrize("alias", ["postgresql", "mariadb"])
def test_a_database_without_skip_locked_is_an_error(found, make, alias):
    """
    If databases are checked; only the outbox's is.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    features = connections[alias].features
    features.has_select_for_update_skip_locked = False
    try:
        assert [] == found(make(using=alias), databases=[])
        assert ["cqrs_sync.E003"] == found(make(using=alias), databases=[alias])
        assert [] == found(make(using="sqlite"), databases=[alias, "sqlite"])
    finally:
        del features.has_select_for_update_skip_locked


def test_mysql_connections_without_utf8mb4_are_a_warning(found, make):
    """
    As they are by default before Django 5.2.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    connections["mariadb"].close()
    with database_settings("mariadb", OPTIONS={"charset": "utf8"}):
        assert [] == found(make(using="mariadb"), databases=[])
        assert ["cqrs_sync.W004"] == found(make(using="mariadb"), databases=["mariadb"])
        connections["mariadb"].close()


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
def test_missing_tables_are_an_info(found, make, alias, monkeypatch):
    """
    `migrate` says nothing of it: it runs the checks before it makes them.
    """
    from django.core.checks import run_checks  # noqa: PLC0415 -- as above
    from django.db import connections  # noqa: PLC0415 -- as above

    said = "UPDATE django_migrations SET app = %s WHERE app = %s"
    with connections[alias].cursor() as cursor:
        cursor.execute(said, ["set aside", "cqrs_sync"])
        try:
            assert ["cqrs_sync.I001"] == found(make(using=alias), databases=[alias])
            with monkeypatch.context() as patched:
                patched.setattr("sys.argv", ["manage.py", "migrate"])
                assert [] == found(make(using=alias), databases=[alias])
            cursor.execute(f"{said} AND name = %s", ["cqrs_sync", "set aside", "0001_initial"])
            told = [
                each.msg for each in run_checks(tags=["cqrs_sync"], databases=[alias]) if each.id == "cqrs_sync.I001"
            ]
            assert told[0].endswith(": 0002_inbox did not run there")
        finally:
            cursor.execute(said, ["cqrs_sync", "set aside"])
