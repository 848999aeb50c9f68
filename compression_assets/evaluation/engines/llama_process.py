"""The process that llama.cpp runs in: a question in JSON on stdin, what was found on stdout.

It ends where a file is not what llama.cpp expects, as llama.cpp itself does. Started by `llama_cpp`.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression_assets.evaluation.engines.llama_library import Context, Model, Token


def _perplexity(model: Model, rows: list[tuple[list[int], list[bool]]], threads: int) -> list[float]:
    """Summed negative log-likelihood (nats) of each row's content tokens but its first token."""
    import numpy as np

    context = Context(model, max(len(ids) for ids, _ in rows), threads=threads)
    sums = []
    for ids, content in rows:
        predicts = content[1:]
        if not any(predicts):
            sums.append(0.0)
            continue
        context.clear()
        tokens = [Token(id, place, 0, predicts[place]) for place, id in enumerate(ids[:-1])]
        logits = context.decoded(tokens).astype(np.float64)
        targets = np.array(ids[1:])[np.array(predicts)]
        highest = logits.max(1, keepdims=True)
        all_of_them = highest[:, 0] + np.log(np.exp(logits - highest).sum(1))
        sums.append(float((all_of_them - logits[np.arange(len(targets)), targets]).sum()))
    context.free()
    return sums


def _timed(model: Model, ids: Sequence[int], work: dict[str, int], threads: int) -> dict[str, list[float]]:
    """Seconds of every run but the first, which warms up: until all texts' first new token, and of the tokens after.

    work: batch (texts at once), prompt and generated (tokens of each), runs.
    """
    batch, length = work["batch"], work["prompt"]
    prompt = (list(ids) * length)[:length]
    context = Context(model, length + work["generated"], batch, threads)
    first, following = [], []
    for _ in range(work["runs"] + 1):
        context.clear()
        start = time.perf_counter()
        logits = context.decoded(
            [
                Token(id, place, sequence, place == length - 1)
                for sequence in range(batch)
                for place, id in enumerate(prompt)
            ]
        )
        first.append(time.perf_counter() - start)
        start = time.perf_counter()
        for place in range(length, length + work["generated"]):
            likeliest = logits.argmax(1)
            logits = context.decoded(
                [Token(int(id), place, sequence, True) for sequence, id in enumerate(likeliest)]
            )
        following.append(time.perf_counter() - start)
    context.free()
    return {"prompt": first[1:], "generation": following[1:]}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _served(model: Model, question: dict[str, Any]) -> dict[str, Any]:
    rows, threads = question["rows"], question["threads"]
    timed, resident = [], 0
    for work in question["work"]:
        timed.append(_timed(model, rows[0][0], work, threads))
        resident = resident or _resident()
    return {"timed": timed, "resident": resident, "nll": _perplexity(model, rows, threads)}


def _predicted(model: Model, question: dict[str, Any]) -> list[list[int]]:
    import numpy as np

    ids = question["ids"]
    context = Context(model, len(ids))
    np.save(question["logits"], context.decoded([Token(id, place, 0, True) for place, id in enumerate(ids)]))
    return [model.tokens(text) for text in question["texts"]]


def main() -> None:
    question = json.load(sys.stdin)
    model = Model(Path(question["file"]))
    print(json.dumps((_served if "rows" in question else _predicted)(model, question)))


if __name__ == "__main__":
    main()
