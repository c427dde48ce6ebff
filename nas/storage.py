"""Where an archive lives: an SQLite file, or a database server; how it is opened, and what its failures mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from nas.optuna_logs import quiet_optuna
from search_spaces.errors import UserError

__all__ = ["Place", "patiently", "reaching"]

Made = TypeVar("Made")
LOCK_SECONDS = 60  # SQLite: how long to wait for another process's write
CONNECT_SECONDS = 10
_EXAMPLE = "sqlite:///scores.db or postgresql://user:password@host/database"


@dataclass(frozen=True)
class Place:
    """A database of scores. Its text shows no password."""

    url: URL

    @classmethod
    def of(cls, where: Path | str) -> Place:
        """From an SQLite file, or from a URL ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

        Raises:
            UserError: something else.
        """
        if isinstance(where, Path):
            where.parent.mkdir(parents=True, exist_ok=True)
            return cls(URL.create("sqlite", database=str(where)))  # as it is: a path may have any character
        try:
            url = make_url(where)
        except ArgumentError:
            url = None
        kind = url.get_backend_name() if url is not None else ""
        if url is None or kind not in ("sqlite", "postgresql") or not url.database:
            shown = url.render_as_string(hide_password=True) if url is not None else where
            raise UserError(f"storage '{shown}'", allowed=f"A database's URL: {_EXAMPLE}", next_step="Write one of these forms")
        return cls(url.set(drivername="postgresql+psycopg") if kind == "postgresql" else url)

    @property
    def is_file(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def __str__(self) -> str:
        if self.is_file:
            return str(self.url.database)
        return self.url.set(drivername="postgresql").render_as_string(hide_password=True)

    def study(self, weights: str) -> str:
        """Name of the archive's study: a file holds one run's, a server may hold those of many."""
        return "scores" if self.is_file else f"scores-{weights}"

    def connect(self, heartbeat: int, retry: Callable[..., None]) -> RDBStorage:
        """Optuna's storage there, with heartbeats."""
        waits = {"timeout": LOCK_SECONDS} if self.is_file else {"connect_timeout": CONNECT_SECONDS}
        options: dict[str, Any] = {"connect_args": waits} | ({} if self.is_file else {"pool_pre_ping": True})
        storage = patiently(
            lambda: RDBStorage(
                self.url.render_as_string(hide_password=False),
                engine_kwargs=options,
                heartbeat_interval=heartbeat,
                heartbeat_stale_trial_callback=retry,
            )
        )
        if self.is_file:
            _serialise(storage.engine)
        return storage

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Failures while an archive is opened."""
        try:
            with quiet_optuna():
                yield
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 (any of SQLAlchemy's and Optuna's errors on a damaged file)
            cause = error.__cause__ or error
            if isinstance(cause, ImportError):
                needed = cause.name or f"psycopg with its library ({_brief(cause)})"
                raise UserError(
                    f"{self} needs the package {needed}",
                    allowed="A driver for the database",
                    next_step="Install it: pip install 'hwnas[postgres]'",
                ) from None
            if self.is_file and not (folder := Path(str(self)).absolute().parent).is_dir():
                raise UserError(
                    f"{self} cannot be made: there is no folder {folder}",
                    allowed="A file in a folder that exists",
                    next_step="Make the folder, or correct the path",
                ) from None
            if self.is_file:
                raise UserError(
                    f"{self} cannot be read as an archive of scores ({type(cause).__name__}: {_brief(cause)})",
                    allowed="An Optuna study in SQLite",
                    next_step=f"Restore it from a copy, or remove {self}; the subnets are then scored anew",
                ) from None
            raise self.unreachable(error) from None

    def unreachable(self, error: BaseException) -> UserError:
        """The error of a database that was lost or never found."""
        cause = error.__cause__ or error
        copies = "" if self.is_file else "; the run's own study.db has a copy of the scores that this process has seen"
        return UserError(
            f"{self} cannot be reached ({type(cause).__name__}: {_brief(cause)})",
            allowed=f"A database that answers; what was finished stays in it{copies}",
            next_step="Bring it back and run the same command again, or go on without it: leave out --storage",
        )


@contextmanager
def reaching(place: Place, *, quiet: bool = False) -> Iterator[None]:
    """Failures of an archive that was open: one error for the user, whatever library reports it."""
    try:
        if quiet:
            with quiet_optuna():
                yield
        else:
            yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise
    except (SQLAlchemyError, optuna.exceptions.OptunaError, KeyError) as error:
        raise place.unreachable(error) from None


def patiently(make: Callable[[], Made]) -> Made:
    """Try three times: of processes that make the same tables or study at once, all but one fail the first time."""
    for _ in range(2):
        try:
            return make()
        except (SQLAlchemyError, optuna.exceptions.OptunaError):
            time.sleep(0.5)
    return make()


def _serialise(engine: sqlalchemy.Engine) -> None:
    """Make every transaction of an SQLite file take the write lock first.

    SQLite knows no SELECT ... FOR UPDATE: two processes could both read that a trial waits, and both take it.
    """
    engine.dispose()

    def manual(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # Python's driver begins no transaction of its own

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", manual)
    sqlalchemy.event.listen(engine, "begin", begin)


def _brief(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
