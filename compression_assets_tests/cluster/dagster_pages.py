"""What Dagster's web pages ask its server about a run, over HTTP."""

import json
import urllib.request
from typing import Any

RUNS = """{ runsOrError { ... on Runs { results { runId status stepStats { stepKey status } } } } }"""
ASSET = """query ($path: [String!]!) { assetOrError(assetKey: {path: $path}) { ... on Asset {
  assetMaterializations { runId metadataEntries { label } } } } }"""
CAPTURED = """query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
  ... on LogsCapturedEvent { fileKey stepKeys } } } } }"""
LOG = """query ($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }"""


class DagsterPages:
    """address: of `dagster dev`."""

    def __init__(self, address: str):
        self._address = address

    def runs(self) -> list[dict[str, Any]]:
        """{runId, status, stepStats} of every run."""
        found: list[dict[str, Any]] = self._ask(RUNS)["runsOrError"]["results"]
        return found

    def materializations(self, asset: str) -> list[dict[str, Any]]:
        """{runId, metadataEntries} of each time that an asset was made or found."""
        found: list[dict[str, Any]] = self._ask(ASSET, path=[asset])["assetOrError"]["assetMaterializations"]
        return found

    def log_keys(self, run: str, step: str) -> list[list[str]]:
        """Under which keys the stdout and stderr of a step's attempts are kept."""
        events = self._ask(CAPTURED, run=run)["logsForRun"]["events"]
        return [[run, "compute_logs", one["fileKey"]] for one in events if step in one.get("stepKeys", ())]

    def log(self, key: list[str]) -> dict[str, str | None]:
        """{stdout, stderr} of a step, as its page shows them; None where it has written nothing."""
        found: dict[str, str | None] = self._ask(LOG, key=key)["capturedLogs"]
        return found

    def _ask(self, query: str, **variables: object) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self._address}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)
        assert "errors" not in said, said
        data: dict[str, Any] = said["data"]
        return data
