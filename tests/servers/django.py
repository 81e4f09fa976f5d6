"""Django, configured once for a test run: an alias for each database, with the outbox migrated."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_ENGINES = {"postgresql": "postgresql", "mysql": "mysql"}


def as_setting(url: str) -> dict[str, Any]:
    """Return a URL in SQLAlchemy's form as a setting of `DATABASES`."""
    parts = urlsplit(url)
    return {
        "ENGINE": f"django.db.backends.{_ENGINES[parts.scheme.partition('+')[0]]}",
        "NAME": parts.path.lstrip("/"),
        "HOST": parts.hostname,
        "PORT": parts.port or "",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }


@pytest.fixture(scope="session")
def django_databases(postgresql_url: str, mariadb_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The aliases `postgresql`, `mariadb`, `sqlite`, and `default`, which has no outbox."""
    import pymysql  # noqa: PLC0415 -- only these tests need it

    # Django requires a version of the driver that it knows.
    pymysql.version_info = (2, 2, 7, "final", 0)
    pymysql.install_as_MySQLdb()
    import django  # noqa: PLC0415 -- as above
    from django.conf import settings  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connections  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("django")
    options = {"timeout": 30, "transaction_mode": "IMMEDIATE"}
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": options}
    settings.configure(
        SECRET_KEY="of a test",  # noqa: S106 -- no secret
        USE_TZ=True,
        ROOT_URLCONF="tests.servers.django_urls",
        DATABASES={
            "default": {**sqlite, "NAME": directory / "default.sqlite3"},
            "postgresql": as_setting(postgresql_url),
            "mariadb": as_setting(mariadb_url),
            "sqlite": {**sqlite, "NAME": directory / "sqlite.sqlite3"},
        },
        INSTALLED_APPS=[
            *("django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes"),
            *("django.contrib.messages", "django.contrib.sessions", "cqrs_sync.integrations.django"),
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        *("django.template.context_processors.request", "django.contrib.auth.context_processors.auth"),
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    )
    django.setup()
    call_command("migrate", database="default", verbosity=0)
    for alias in ("postgresql", "mariadb", "sqlite"):
        call_command("migrate", "cqrs_sync", database=alias, verbosity=0)
    yield
    connections.close_all()


@pytest.fixture
def django_emptied(django_databases: None) -> Iterator[None]:
    """No outbox and no inbox has rows left."""
    from django.db import connections  # noqa: PLC0415 -- needs settings

    yield
    for alias in ("default", "postgresql", "mariadb", "sqlite"):
        with connections[alias].cursor() as cursor:
            cursor.execute("DELETE FROM cqrs_delivery")
            cursor.execute("DELETE FROM cqrs_message")
            cursor.execute("DELETE FROM cqrs_inbox")
        connections[alias].close()


@pytest.fixture
def django_mediator(django_databases: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Name this mediator in the settings."""
    from django.conf import settings  # noqa: PLC0415 -- as above

    def name(mediator: object) -> None:
        module = types.ModuleType("a_django_shop")
        module.mediator = mediator  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "a_django_shop", module)
        monkeypatch.setattr(settings, "CQRS_SYNC", {"MEDIATOR": "a_django_shop.mediator"}, raising=False)

    return name
