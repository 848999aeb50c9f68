"""Dagster's history of a study in PostgreSQL: a schema for each study, so that histories do not mix.

Named in the dagster.yaml of a study on a cluster. The address comes from COMPRESSION_PG; no file holds a password.
"""

import os
from typing import Any

import dagster as dg
from dagster._serdes import ConfigurableClassData
from dagster_postgres.storage import DagsterPostgresStorage

from compression_assets.machine.cluster import POSTGRES
from compression_assets.machine.shared_locks import server_options
from compression_assets.machine.shared_progress import make_schema, schema_of


class StudyHistory(DagsterPostgresStorage):
    """Dagster's Postgres storage in the schema of a study, which is made where it is missing. study: its name."""

    @classmethod
    def config_type(cls) -> Any:
        return {"study": dg.Field(str)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "DagsterPostgresStorage":
        make_schema(config_value["study"])
        return cls(_url(config_value["study"]), inst_data=inst_data)


def _url(study: str) -> str:
    """COMPRESSION_PG for SQLAlchemy, whose newest releases take another driver unless one is named."""
    from sqlalchemy.engine import make_url

    url = make_url(os.environ[POSTGRES]).set(drivername="postgresql+psycopg2")
    options = f"-c search_path={schema_of(study)} {server_options()}"
    query = {"options": options, "connect_timeout": "10"}
    return url.update_query_dict(query).render_as_string(hide_password=False)
