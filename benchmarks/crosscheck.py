"""Perplexity and SQuAD scores of this project against established implementations, on the same items.

    python benchmarks/crosscheck.py MODEL_DIR EVALUATION_SET_DIR [ANSWERS_DIR]

such as storage/demo/models/p_kd_q storage/demo/data/evaluation_set storage/demo/answers/p_kd_q. Needs torchmetrics (the
group `dev`); with lm_eval installed, the log-likelihoods of lm-evaluation-harness are compared as well. Exits with 1
when a figure differs by more than 1 %.
"""

import math
import sys
from pathlib import Path

import torch

from compression_assets.evaluation.answers import read_answers
from compression_assets.evaluation.perplexity import measure_perplexity
from compression_assets.evaluation.squad import exact_match, f1
from compression_assets.machine.precision import compute_dtype
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights.checkpoints import load_for_scoring

TOLERANCE = 0.01


def main() -> int:
    model_dir, data_dir, *answers_dir = (Path(argument) for argument in sys.argv[1:])
    dataset = TokenDataset.load(data_dir)
    compared = compare_perplexity(model_dir, dataset)
    if answers_dir:
        compared |= compare_squad(answers_dir[0])
    for name, (ours, theirs) in compared.items():
        print(f"{name:32} ours {ours:10.4f}   theirs {theirs:10.4f}   {abs(ours / theirs - 1):.3%}")
    agree = all(math.isclose(ours, theirs, rel_tol=TOLERANCE) for ours, theirs in compared.values())
    return 0 if agree else 1


def compare_perplexity(model_dir: Path, dataset: TokenDataset) -> dict[str, tuple[float, float]]:
    """torchmetrics' Perplexity over the logits of one row at a time; lm_eval's log-likelihoods of whole rows."""
    from torchmetrics.text import Perplexity

    ours = measure_perplexity(model_dir, dataset)
    model = load_for_scoring(model_dir, "cpu", compute_dtype("cpu"))
    metric = Perplexity(ignore_index=-100)
    for row in dataset:
        ids = torch.tensor([row.input_ids])
        targets = ids.masked_fill(~torch.tensor([row.content]), -100)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits.float()
        metric.update(logits[:, :-1], targets[:, 1:])
    compared = {"perplexity (torchmetrics)": (ours.perplexity, float(metric.compute()))}
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        print("lm_eval is not installed: its log-likelihoods are not compared")
        return compared
    return compared | {"perplexity of rows (lm_eval)": _by_harness(model_dir, dataset, HFLM)}


def _by_harness(model_dir: Path, dataset: TokenDataset, harness: type) -> tuple[float, float]:
    """All tokens of a row but the first, given the first: what the harness scores in one request."""
    from transformers import AutoTokenizer

    from compression_assets.text.datasets import TokenRow

    whole = [
        TokenRow(row.id, row.input_ids, [False] + [True] * (len(row.input_ids) - 1)) for row in dataset.rows
    ]
    ours = measure_perplexity(model_dir, TokenDataset(whole)).perplexity
    model = harness(
        pretrained=load_for_scoring(model_dir, "cpu", compute_dtype("cpu")),
        tokenizer=AutoTokenizer.from_pretrained(model_dir),
        batch_size=4,
        device="cpu",
        softmax_dtype="float32",
    )
    requests = [(("", ""), row.input_ids[:1], row.input_ids[1:]) for row in whole]
    answers = model._loglikelihood_tokens(requests, disable_tqdm=True)
    total = sum(likelihood for likelihood, _ in answers)
    return ours, math.exp(-total / sum(len(row.input_ids) - 1 for row in whole))


def compare_squad(answers_dir: Path) -> dict[str, tuple[float, float]]:
    """torchmetrics' SQuAD, a port of the official script, over the same answers."""
    from torchmetrics.text import SQuAD

    answers = read_answers(answers_dir)
    metric = SQuAD()
    for answer in answers:
        expected = {"answer_start": [0] * len(answer.expected), "text": list(answer.expected)}
        metric.update(
            [{"id": answer.id, "prediction_text": answer.answer}], [{"id": answer.id, "answers": expected}]
        )
    theirs = metric.compute()
    mean = {
        name: sum(score(answer.answer, answer.expected) for answer in answers) / len(answers)
        for name, score in (("f1", f1), ("exact_match", exact_match))
    }
    return {f"{name} (torchmetrics)": (100 * mean[name], float(theirs[name])) for name in mean}


if __name__ == "__main__":
    sys.exit(main())
