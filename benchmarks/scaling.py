"""What steps cost as models grow, and what a study costs as its orders grow, beside what `compression plan` says.

    python -m benchmarks.scaling                     # models of 10 M to 500 M parameters, 10 to 200 orders
    python -m benchmarks.scaling --models 10 50      # some of the models; --orders likewise

Random Llamas on one thread of a CPU: a KD step of a few rows, as the loop runs it, in processor seconds, which others
on the machine hardly change. Each measurement has a process of its own, so that its peak of memory is its own. The
figure that a plan is judged by is its own prediction for those rows at the speed of this thread's matrix products.
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import Targets, one_thread, table
from compression_assets.study.files import PRESETS

FACTOR = 1.5
"""A prediction is to be within this factor of what is measured."""
MODELS = {10: (256, 8, 8), 50: (512, 12, 8), 135: (768, 16, 12), 350: (1024, 24, 16), 500: (1280, 22, 20)}
"""Millions of parameters, about -> hidden size, layers, heads."""
VOCABULARY = 16_384
ROWS, LENGTH, PASSES = 2, 256, 2
"""Of a step; memory is held against the prediction for these."""
ORDERS = (10, 50, 200)
LOADED_IN = 5.0
"""Seconds in which the web interface is to have the graph of the most orders."""
PICTURE = Path(__file__).parent / "results" / "scaling.png"
NAMES = "{ assetNodes { assetKey { path } } }"
REFUSED = (
    "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on PythonError "
    "{ message causes { message } } } } } } }"
)
GRAPH = "{ assetNodes { id assetKey { path } groupName dependencyKeys { path } kinds tags { key value } } }"


def main(arguments: list[str] | None = None) -> None:
    """Print two tables, write a picture, and say whether the predictions hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", type=int, default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--orders", nargs="*", type=int, default=list(ORDERS))
    parser.add_argument("--define", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.define:
        return _define(options.define)
    one_thread()
    targets = Targets()
    print("## Scaling\n")
    print(f"Load average at the start: {os.getloadavg()[0]:.1f}.\n", flush=True)
    steps = [_apart(_training_step, millions) for millions in options.models]
    if steps:
        print(table(("parameters", "s a step", "planned", "peak MiB", "planned"), [_shown(s) for s in steps]))
        for what in ("seconds", "memory"):
            off = [step[f"planned_{what}"] / step[what] for step in steps]
            found = f"{min(off):.2f} to {max(off):.2f}"
            targets.add(f"planned {what} of a step over measured", found, max(*off, 1 / min(off)) <= FACTOR)
    graphs = [_orders(count) for count in options.orders]
    if graphs:
        header = ("orders", "assets", "plan", "definitions", "graph, s by the clock", "graph", "MiB")
        print("\nProcessor seconds where nothing else is said.\n\n" + table(header, graphs))
        what = f"the graph of {graphs[-1][0]} orders in under {LOADED_IN:g} processor seconds"
        targets.add(what, graphs[-1][5], float(graphs[-1][5]) < LOADED_IN)
    if len(steps) > 1:
        _plot(steps)
    targets.finish()


def _apart(measure: Callable[[int], dict[str, Any]], argument: int) -> dict[str, Any]:
    """The result of a measurement in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (argument,))


def _training_step(millions: int) -> dict[str, Any]:
    """Processor seconds of a KD step and peak bytes of a training of three, with what the plan has for them.

    Bytes are those that come on top of the libraries, which are another number in every process.
    """
    one_thread()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.gpu_models import random_rows
    from compression_assets.machine.devices import peak_bytes, reset_peak, resident_bytes
    from compression_assets.machine.precision import compute_dtype
    from compression_assets.planning.devices import matmul_rate
    from compression_assets.techniques.distillation.apply import distill
    from compression_assets.techniques.distillation.predict import predict_distillation
    from compression_assets.techniques.distillation.recipe import DistillationRecipe
    from compression_assets.techniques.prediction import StepContext
    from compression_assets.training.head_loss import DenseTargets
    from compression_assets.training.memory import LIBRARIES
    from compression_assets.training.work import Volume

    torch.manual_seed(0)
    hidden, layers, heads = MODELS[millions]
    shape = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3 // 64 * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": True,
    }
    libraries = resident_bytes()
    model = LlamaForCausalLM(LlamaConfig(**shape))
    dataset = random_rows(3 * ROWS * PASSES, LENGTH, VOCABULARY, 0)
    recipe = DistillationRecipe(
        epochs=1, warmup_steps=1, batch_size=ROWS, gradient_accumulation=PASSES, learning_rate=1e-5
    )

    class Stored:
        """A teacher whose states are stored and whose output layer is as wide as the student's."""

        head = torch.randn(VOCABULARY, hidden).to(compute_dtype("cpu"))

        def batch(self, rows: list[int], temperature: float, vocabulary: int, device: str) -> DenseTargets:
            states = torch.randn(sum(dataset[row].n_trained for row in rows), hidden).to(self.head.dtype)
            return DenseTargets(lambda start, stop: states[start:stop] @ self.head.T, VOCABULARY)

    ended: list[float] = []
    reset_peak("cpu")
    distill(model, dataset, Stored(), recipe, 0, report=lambda *_: ended.append(time.process_time()))
    flops = matmul_rate(2.0, time.process_time)
    step = Volume(ROWS * PASSES, ROWS * PASSES * LENGTH, ROWS * PASSES * (LENGTH - 1))
    context = StepContext(
        max_length=LENGTH,
        data={"distillation_set": step},
        training=flops * 0.5,
        scoring=flops * 0.5,
        compute_bytes=compute_dtype("cpu").itemsize,
        teacher=shape,
    )
    planned = predict_distillation(shape, recipe, context)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": (ended[-1] - ended[0]) / (len(ended) - 1),
        "planned_seconds": planned.seconds,
        "memory": peak_bytes("cpu") - libraries,
        "planned_memory": (planned.memory or 0) - LIBRARIES["cpu"],
    }


def _shown(step: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{step['parameters'] / 1e6:,.0f} M",
        f"{step['seconds']:.2f}",
        f"{step['planned_seconds']:.2f}",
        f"{step['memory'] / 2**20:,.0f}",
        f"{step['planned_memory'] / 2**20:,.0f}",
    )


def _orders(count: int) -> list[str]:
    """Of a smoke study of so many orders: what planning it, defining its assets and showing their graph take."""
    with tempfile.TemporaryDirectory() as folder:
        study = _study(count, Path(folder))
        environment = os.environ | {
            "COMPRESSION_STUDY": str(study),
            "COMPRESSION_STORAGE": folder,
        }
        home = subprocess.run(
            [sys.executable, "-m", "compression_assets.cli", "home"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        environment["DAGSTER_HOME"] = home.stdout.strip()
        defined = subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", "--define", str(study)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        planned, made, assets = json.loads(defined.stdout.splitlines()[-1])
        shown = _shown_graph(environment)
    return [str(count), str(assets), f"{planned:.1f}", f"{made:.1f}", *(f"{figure:.2f}" for figure in shown)]


def _define(study_file: str) -> None:
    """Print the processor seconds of a study's plan and of its definitions, and how many assets it has."""
    from compression_assets.graph.build import build_defs
    from compression_assets.planning.devices import device
    from compression_assets.planning.plan import plan_here
    from compression_assets.study.files import load_study

    study = load_study(Path(study_file))
    began = time.process_time()
    plan_here(study, device("cpu"))
    planned = time.process_time()
    assets = build_defs(study).resolve_asset_graph().get_all_asset_keys()
    print(json.dumps([planned - began, time.process_time() - planned, len(assets)]))


def _study(count: int, folder: Path) -> Path:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    ratios = [round(0.05 + 0.9 * index / count, 4) for index in range(count)]
    raw["techniques"]["P"]["multiple_of"] = 1
    sweep = [{"technique": "P", "setting": "ratio", "values": ratios, "orderings": ["P-KD-Q"]}]
    (folder / "large.yaml").write_text(
        yaml.safe_dump(raw | {"name": "large", "orderings": ["KD"], "sweep": sweep}, sort_keys=False)
    )
    return folder / "large.yaml"


def _shown_graph(environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds and processor seconds in which Dagster's web server answers for the graph, and the answer's MiB."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dagster_webserver",
            "-m",
            "compression_assets",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 900
        while b"final_kd" not in _asked(port, NAMES):
            refused = _asked(port, REFUSED)
            if server.poll() is not None or time.monotonic() > deadline or b"message" in refused:
                raise SystemExit(f"Dagster's web server does not show the study: {refused.decode()}")
            time.sleep(1)
        busy, began = _busy(server.pid), time.perf_counter()
        answer = _asked(port, GRAPH, 600)
        if b"final_kd" not in answer:
            raise SystemExit(f"Dagster's web server answers {answer[:500]!r}")
        return time.perf_counter() - began, _busy(server.pid) - busy, len(answer) / 2**20
    finally:
        server.terminate()
        server.wait()


def _asked(port: int, query: str, timeout: float = 10) -> bytes:
    """What the server answers; empty while there is none."""
    body = json.dumps({"query": query}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        return error.read()
    except OSError:
        return b""


def _busy(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _plot(steps: list[dict[str, Any]]) -> None:
    """Measured and planned seconds and memory over parameters, as a picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    millions = [step["parameters"] / 1e6 for step in steps]
    for panel, (what, unit, scale) in zip(
        axes, (("seconds", "processor s a step", 1), ("memory", "peak MiB", 2**20)), strict=True
    ):
        for name, mark in ((what, "o-"), (f"planned_{what}", "s--")):
            panel.loglog(millions, [step[name] / scale for step in steps], mark, label=name.replace("_", " "))
        panel.set(xlabel="million parameters", ylabel=unit)
        panel.legend()
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
