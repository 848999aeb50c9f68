"""Where a study's models and figures are shown besides its own database."""

import re
from urllib.parse import urlsplit

from pydantic import field_validator

from compression_assets.strict import Strict

ADDRESS = re.compile(r"https?://[^/].*|sqlite:////.+|databricks(://.+)?")


class Tracking(Strict):
    """mlflow: the address of an MLflow server, `sqlite:////absolute/path.db`, or `databricks`.

    Each model of the study becomes a run of the experiment named as the study. Credentials come from the environment,
    as MLflow reads them (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN).
    """

    mlflow: str

    @field_validator("mlflow")
    @classmethod
    def _is_an_address_without_secrets(cls, address: str) -> str:
        if not ADDRESS.fullmatch(address):
            raise ValueError(
                f"{address!r} is no address of MLflow: write http://host:port, sqlite:////absolute/path.db "
                "or databricks"
            )
        if urlsplit(address).password is not None:
            raise ValueError(
                "the address has a password in it: leave it out and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return address
