"""A table that a test writes to through Django, and what code can do to the transaction."""

from __future__ import annotations

from contextlib import suppress

_NUMBERS = {"postgresql": "serial", "mariadb": "integer AUTO_INCREMENT", "sqlite": "integer"}


def create(alias):
    _execute(alias, f"CREATE TABLE effects (number {_NUMBERS[alias]} PRIMARY KEY, text varchar(50) UNIQUE)")


def drop(alias):
    _execute(alias, "DROP TABLE effects")
    _connection(alias).close()


def insert(alias, text):
    _execute(alias, "INSERT INTO effects (text) VALUES (%s)", [text])


def texts(alias):
    with _connection(alias).cursor() as cursor:
        cursor.execute("SELECT text FROM effects ORDER BY number")
        return [text for (text,) in cursor.fetchall()]


def careless(alias):
    from django.db import transaction  # noqa: PLC0415 -- needs settings

    return {
        "a caught error": lambda: _catch(alias),
        "a caught error in a savepoint": lambda: _catch_in_a_savepoint(alias),
        "a caught error of a model": lambda: _catch_of_a_model(alias),
        "set_rollback(True)": lambda: transaction.set_rollback(True, using=alias),
        "connection.close()": lambda: _connection(alias).close(),
    }


def by_statement(alias):
    return {statement: lambda statement=statement: _execute(alias, statement) for statement in ("ROLLBACK", "COMMIT")}


def _catch(alias):
    from django.db import IntegrityError  # noqa: PLC0415 -- as above

    with suppress(IntegrityError):
        _execute(alias, "INSERT INTO effects (text) VALUES ('twice'), ('twice')")


def _catch_in_a_savepoint(alias):
    from django.db import IntegrityError, transaction  # noqa: PLC0415 -- as above

    with suppress(IntegrityError), transaction.atomic(using=alias):
        _execute(alias, "INSERT INTO effects (text) VALUES ('twice'), ('twice')")


def _catch_of_a_model(alias):
    """As `Model.save` does it: Django marks the whole transaction for rollback, on every database."""
    from django.db import IntegrityError, transaction  # noqa: PLC0415 -- as above

    with suppress(IntegrityError), transaction.mark_for_rollback_on_error(using=alias):
        _execute(alias, "INSERT INTO effects (text) VALUES ('twice'), ('twice')")


def _execute(alias, statement, parameters=None):
    with _connection(alias).cursor() as cursor:
        cursor.execute(statement, parameters)


def _connection(alias):
    from django.db import connections  # noqa: PLC0415 -- as above

    return connections[alias]
