"""llama.cpp's OpenAI-compatible server on an exported GGUF file, on this machine's loopback address only."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.store.manifests import MANIFEST
from compression_assets.study.names import EXPORTED, relative_directory
from compression_assets.takeaway.export import EXPORTS
from compression_assets.weights.formats.gguf_types import TYPES, gguf_form

LOOPBACK = "127.0.0.1"
ERRORS_ONLY = 1
"""llama.cpp's verbosity."""


def exported_file(root: Path, model: str, kind: str | None = None) -> Path:
    """The GGUF file that `compression export` or the study's `evaluation.serving` has left of a model.

    kind: the form in its name ("q4_k_m"), where there are several. Raises StudyError when there is none, or more than
    one to choose from.
    """
    files = [
        *sorted((root / EXPORTED).glob(f"{model}__*/{model}.*gguf")),
        *sorted((root / EXPORTS).glob(f"{model}.*gguf")),
    ]
    there = {
        file.name.removeprefix(f"{model}.").removesuffix("gguf").rstrip(".") or "bf16": file for file in files
    }
    wanted = [kind] if kind else list(there)
    if kind and not kind.startswith(TYPES):
        gguf_form(f"gguf:{kind}")  # says so
    if not there or wanted[0] not in there:
        example = kind or "q8_0"
        export = next_command("export", model, "--format", f"gguf:{example}")
        raise StudyError(f"{model} is not exported; do that first: {export}")
    if len(wanted) > 1:
        raise StudyError(f"{model} is exported in {', '.join(there)}: say which with --type")
    _refuse_older(found := there[wanted[0]], root, model, wanted[0])
    return found


def _refuse_older(file: Path, root: Path, model: str, form: str) -> None:
    """StudyError if the model was made again after the file."""
    made = root / relative_directory(f"model_{model}") / MANIFEST
    if not made.is_file() or file.stat().st_mtime >= made.stat().st_mtime:
        return
    kept = root / EXPORTED in file.parents
    again = "run" if kept else "export"
    arguments = () if kept else (model, "--format", "gguf" if form == "bf16" else f"gguf:{form}")
    raise StudyError(
        f"{file.name} is older than the model {model}, made again since: {next_command(again, *arguments)}"
    )


def serve(
    file: Path, port: int, say: Callable[[str], Any] = print, until: threading.Event | None = None
) -> None:
    """Serve a file, saying where and how to ask it, until Ctrl-C or `until` is set. port: 0 for a free one.

    Raises StudyError when llama.cpp is not installed, or cannot serve the file there.
    """
    llama_cpp.require()
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = str(file), {file.stem}
    settings.hostnames, settings.port, settings.verbosity = [LOOPBACK], port, ERRORS_ONLY
    # Answers are for programs here, not for pages of other sites in a browser.
    settings.cors_origins = f"http://{LOOPBACK}"
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise StudyError(
            f"llama.cpp cannot serve {file} (its reason is above): try another --port"
        ) from error
    address = server.listening_address
    say(f"{file.name} is served on {address}/v1 until Ctrl-C. Ask it with:\n{curl(address)}")
    try:
        (until or threading.Event()).wait()
    except KeyboardInterrupt:
        say("stopped")


def curl(address: str) -> str:
    """A command that asks the server one question."""
    body = {"messages": [{"role": "user", "content": "Tell me about your day."}], "max_tokens": 64}
    return (
        f"curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )
