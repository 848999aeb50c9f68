"""Answers per second: this project's batched generation against the loops that people write.

    python -m benchmarks.generation --model storage/demo/models/base

(a) the authors' loop: for every question the model is loaded, answers, and is thrown away;
(b) a plain loop of `model.generate` over a model that is loaded once;
(c) `compression_assets.evaluation.generation`, all questions at once.
All greedy, the same prompts, limit and ends of answers, 16-bit weights. Ratios are taken within a round, in which the
three run one after the other; (a) and (b) over a few questions each, another few in every round, (c) over all of them.
Seconds are of the processor, all threads together, since other work on the machine stretches wall time; wall time is
in the table too. Prints Markdown; exits with 1 when the median of a ratio misses its target.
"""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from compression_assets.evaluation.generation import generate
from compression_assets.evaluation.prompts import prompt_tokens, question_prompt, stop_tokens
from compression_assets.sources.questions import JsonlQuestions, read_questions
from compression_assets.text.chat_template import load_chat_template
from compression_assets.text.questions import select_questions
from compression_assets.weights.checkpoints import quiet

BASE = Path(os.environ.get("COMPRESSION_STORAGE", "storage")) / "demo" / "models" / "base"
TARGETS = {"(a) model reloaded for each": 10.0, "(b) loop of model.generate": 4.0}
SOURCE = JsonlQuestions(kind="jsonl", path="package:demo_questions.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers per second against loops of model.generate.")
    parser.add_argument("--model", type=Path, default=BASE)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--a-round", type=int, default=4, help="questions of (a) and (b) in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--attention", help="of the loops; transformers' default when left out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not (options.model / "config.json").is_file():
        raise SystemExit(f"{options.model} is no model directory: run make demo, or name one with --model.")
    Benchmark(options).run()


class Benchmark:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        template = load_chat_template(options.model)
        self.model = self.load()
        self.stop = stop_tokens(template, self.model)
        asked = select_questions(read_questions(SOURCE, Path()), options.questions, seed=0)
        texts = [question_prompt(template, one.question, one.context) for one in asked]
        self.prompts = [prompt_tokens(template, text) for text in texts]

    def load(self) -> AutoModelForCausalLM:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(
                self.options.model,
                dtype=torch.bfloat16,
                local_files_only=True,
                use_safetensors=True,
                attn_implementation=self.options.attention,
            )

    def one(self, model: AutoModelForCausalLM, prompt: list[int]) -> tuple[int, ...]:
        """New tokens of one prompt by model.generate, its end left out."""
        ids = torch.tensor([prompt])
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=self.options.max_new_tokens,
            eos_token_id=sorted(self.stop),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        return tuple(new[:-1] if new[-1] in self.stop else new)

    def authors(self, prompts: list[list[int]]) -> list[tuple[int, ...]]:
        answers = []
        for prompt in prompts:
            answers.append(self.one(self.load(), prompt))
            gc.collect()
        return answers

    def plain(self, prompts: list[list[int]]) -> list[tuple[int, ...]]:
        return [self.one(self.model, prompt) for prompt in prompts]

    def ours(self, prompts: list[list[int]]) -> list[tuple[int, ...]]:
        return [one.tokens for one in generate(self.batched, prompts, self.stop, self.options.max_new_tokens)]

    def run(self) -> None:
        self.batched = self.load()  # its own copy, since `generate` chooses another attention
        self.plain(self.prompts[:1]), self.ours(self.prompts[:1])  # warm
        options, rounds, same, compared = self.options, [], 0, 0
        for number in range(options.rounds):
            start = number * options.a_round % len(self.prompts)
            few = self.prompts[start : start + options.a_round]
            (a, _), (b, answers_b), (c, answers_c) = (
                timed(self.authors, few),
                timed(self.plain, few),
                timed(self.ours, self.prompts),
            )
            rounds.append(
                [[len(few) / s for s in a], [len(few) / s for s in b], [len(self.prompts) / s for s in c]]
            )
            same += sum(x == y for x, y in zip(answers_b, answers_c[start:], strict=False))
            compared += len(few)
        print("## Generation: answers per second\n")
        met = self.table(rounds)
        tokens = sum(map(len, answers_c)) / len(answers_c)
        print(
            f"\n{len(self.prompts)} questions, {sum(map(len, self.prompts)) / len(self.prompts):.0f} tokens a prompt, "
            f"{tokens:.0f} new tokens an answer (limit {options.max_new_tokens}); {options.threads} thread(s); "
            f"(a) and (b) over {options.a_round} questions a round, {options.rounds} rounds. "
            f"Answers of (c) that equal those of (b) token by token: {same} of {compared} (bfloat16: rounding depends "
            f"on padding, and a near tie then falls the other way). Load average {os.getloadavg()[0]:.1f}, "
            f"torch {torch.__version__}."
        )
        if not met:
            raise SystemExit(1)

    def table(self, rounds: list[list[list[float]]]) -> bool:
        """Print the table; whether every target is met."""
        print(
            "| | answers/s of processor time | (c) / this: min | median | max | median by wall time | target |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
        met = True
        for index, name in enumerate((*TARGETS, "(c) batched")):
            ratios, by_wall = ([one[2][clock] / one[index][clock] for one in rounds] for clock in (0, 1))
            speed = statistics.median(one[index][0] for one in rounds)
            median = statistics.median(ratios)
            print(
                f"| {name} | {speed:.3f} | {min(ratios):.1f} | {median:.1f} | {max(ratios):.1f} "
                f"| {statistics.median(by_wall):.1f} | {TARGETS.get(name, '')} |"
            )
            met &= median >= TARGETS.get(name, 0)
        return met


def timed(
    work: Callable[[list[list[int]]], list[tuple[int, ...]]], prompts: list[list[int]]
) -> tuple[tuple[float, float], list[tuple[int, ...]]]:
    """Seconds of processor and of wall time, and what came out."""
    wall, processor = time.perf_counter(), time.process_time()
    answers = work(prompts)
    return (time.process_time() - processor, time.perf_counter() - wall), answers


if __name__ == "__main__":
    main()
