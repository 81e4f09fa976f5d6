"""The Alembic recipe of docs/how-to/sqlalchemy.md, on each database."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyOutbox
from cqrs_sync.testing.contracts.outbox import claim, published
from tests.source import ROOT

PAGE = (ROOT / "docs" / "how-to" / "sqlalchemy.md").read_text("utf-8")
MODELS = re.search(r"```python\n(import sqlalchemy as sa\n.*?)```", PAGE, re.DOTALL)[1]
ENVIRONMENT = re.search(r"```python\n(from shop\.models.*?)```", PAGE, re.DOTALL)[1]


class Project:
    """A project with models and migrations."""

    def __init__(self, directory, url):
        self.directory = directory
        (directory / "shop").mkdir()
        (directory / "shop" / "__init__.py").touch()
        (directory / "shop" / "models.py").write_text(MODELS)
        self.alembic("init", "migrations")
        self._replace("migrations/env.py", "target_metadata = None\n", ENVIRONMENT)
        self._replace("alembic.ini", r"sqlalchemy\.url = .*", f"sqlalchemy.url = {url}")

    def alembic(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(self.directory), str(ROOT)])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def _replace(self, name, pattern, text):
        file = self.directory / name
        changed, count = re.subn(pattern, lambda _: text, file.read_text())
        assert 1 == count
        file.write_text(changed)


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(None, id="sqlite"),
        pytest.param("postgresql_url_of_module", marks=pytest.mark.broker),
        pytest.param("mariadb_url_of_module", marks=pytest.mark.broker),
    ],
)
def test_alembic_makes_the_tables(request, tmp_path, server):
    """
    `revision --autogenerate` and `upgrade` make what the outbox needs, and `check` finds nothing more to do.
    """
    url = f"sqlite:///{tmp_path}/migrated.db" if server is None else request.getfixturevalue(server)
    project = Project(tmp_path, url)
    project.alembic("revision", "--autogenerate", "-m", "add the outbox")
    project.alembic("upgrade", "head")
    assert "No new upgrade operations detected" in project.alembic("check")

    engine = sa.create_engine(url)
    sessions = Sessions(sessionmaker(engine))
    outbox = SQLAlchemyOutbox(sessions)
    with sessions.begin():
        outbox.add([published("1", key="k")])
    assert ["1"] == claim(outbox)
    engine.dispose()

    project.alembic("downgrade", "base")
    assert [] == [name for name in sa.inspect(engine).get_table_names() if name.startswith("cqrs")]
    engine.dispose()
