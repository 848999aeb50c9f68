"""What a distillation step from the store costs, against plain fine-tuning and against a live teacher."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.common import Targets, demo, matmul_peak, one_thread, ratios, spread, table, turns
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.loop import Distil
from compression_assets.training.schedule import TrainingRecipe, plan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ROUNDS = 3
LENGTH = 200
TEMPERATURE = 2.0
OPERATIONS = {
    "products with weights": {"mm"},
    "products and softmax of attention": {"bmm", "baddbmm", "_softmax", "_softmax_backward_data"},
    "AdamW and clipping": {"_fused_adamw_", "_foreach_norm", "_foreach_mul_", "linalg_vector_norm"},
    "copies: gradients to float32, masters to bfloat16, norms both ways": {"copy_"},
}
"""torch's names."""
REST = "norms, rotation, activations, residuals, loss"
RECIPE: dict[str, Any] = {
    "epochs": 1,
    "learning_rate": 5e-5,
    "warmup_steps": 4,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "max_grad_norm": 0.5,
}


def main() -> None:
    """Measure one step in several ways, side by side, and compute the six orders from it."""
    one_thread()
    from compression_assets.weights.checkpoints import load_full_precision

    recipe = TrainingRecipe(**RECIPE)
    whole = TokenDataset.load(demo() / "data" / "distillation_set")
    near = sorted(range(len(whole)), key=lambda row: abs(len(whole[row].input_ids) - LENGTH))[:2]
    pair = TokenDataset([whole[row] for row in near])
    print("## Distillation from the store\n")
    print(
        f"One optimiser step (forward, backward, AdamW) of the demo's base model on two rows of its distillation set, "
        f"{pair.n_tokens} tokens, {pair.n_trained} of them trained; one thread, bfloat16 with float32 masters. "
        "The larger teacher is a random Llama of twice the student's parameters.\n"
    )
    model = load_full_precision(demo() / "models" / "base")
    body, head = _parameters(model)
    with tempfile.TemporaryDirectory() as scratch:
        teachers, larger = _teachers(pair, Path(scratch))
        runs = _Steps(model, pair, recipe, teachers)
        forwards = {name: (lambda live=live: _forward(live)) for name, live in runs.live.items()}
        seconds = turns({**runs.functions, **forwards}, ROUNDS)
        parts = _parts(runs.functions["plain cross-entropy"])
        runs.end()
    peak = matmul_peak()
    plain = seconds["plain cross-entropy"]
    rows = [(n, spread(s), spread(ratios(s, plain))) for n, s in seconds.items()]
    print(table(("", "processor s", "/ plain"), rows))
    flop = 6 * (body * pair.n_tokens + head * pair.n_trained)
    share = [flop / second / peak for second in plain]
    padding = _padding(whole, recipe)
    targets = Targets()
    for name in ("store: hidden", "store: top_k"):
        found = ratios(seconds[name], plain)
        targets.add(f"{name}, a step ≤ 1.15 of plain", spread(found), median(found) <= 1.15)
    for which in ("own size", larger):
        for name in ("store: hidden", "store: top_k"):
            key = name if which == "own size" else f"{name}, {larger}"
            live, forward = seconds[f"live teacher, {which}"], seconds[f"forward, {which}"]
            gone = [(a - b) / c for a, b, c in zip(live, seconds[key], forward, strict=True)]
            targets.add(
                f"{key}: ≥ 0.9 of the forward of a teacher of {which} gone",
                spread(gone),
                median(gone) >= 0.9,
            )
    orders = _six_orders(seconds)
    targets.add("six orders ≤ 0.8 of six separate pipelines", spread(orders), median(orders) <= 0.8)
    targets.add("padding < 0.1 of the tokens computed", f"{padding:.3f}", padding < 0.1)
    targets.add(
        f"share of the matmul peak ({peak / 1e9:.0f} GFLOP/s) ≥ 0.65", spread(share), median(share) >= 0.65
    )
    print(
        "\nForward gone: (step beside the live teacher - step from the store) / the teacher's forward. Coding `hidden` "
        "applies the teacher's output layer again in each step, which top_k does not; in a small model with a large "
        "vocabulary that layer is a fifth of the forward.\n\n"
        "Six orders: computed from the seconds above, not run. Shared: 5 KD steps from the store (`hidden`), 5 P with "
        "fine-tuning on half as many tokens, the teacher's forward once. Apart: 6 KD beside a live teacher of its own "
        "size and 6 P. Q and D take seconds and are left out of both, and pruned students count as whole ones.\n\n"
        "Share of the peak: 6 FLOP for each token and weight of the linear layers (the output layer for trained tokens "
        "only), attention and everything else not counted. Of the plain step's time:\n"
    )
    in_products = flop / peak / (parts["products with weights"] * median(plain))
    print(table(("operations", "share of the time"), [(name, f"{part:.2f}") for name, part in parts.items()]))
    print(f"\nProducts with weights run at {in_products:.2f} of the peak.")
    targets.finish()


def _parts(step: Callable[[], None]) -> dict[str, float]:
    """Shares of a step's time by kind of operation, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    spent = dict.fromkeys((*OPERATIONS, REST), 0.0)
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in OPERATIONS.items() if name in names), REST)
        spent[kind] += event.self_cpu_time_total
    return {kind: of / sum(spent.values()) for kind, of in spent.items()}


def _six_orders(seconds: dict[str, list[float]]) -> list[float]:
    """Time of the demo's six orders with sharing and a store, over that of six pipelines with neither."""
    found = []
    for store, plain, live, forward in zip(
        seconds["store: hidden"],
        seconds["plain cross-entropy"],
        seconds["live teacher, own size"],
        seconds["forward, own size"],
        strict=True,
    ):
        found.append((5 * store + 5 * plain / 2 + forward) / (6 * live + 6 * plain / 2))
    return found


class _Steps:
    """The same model trained in several ways, one optimiser step at a time."""

    def __init__(
        self,
        model: "PreTrainedModel",
        dataset: TokenDataset,
        recipe: TrainingRecipe,
        teachers: dict[str, Any],
    ) -> None:
        import torch

        from compression_assets.training.kernels import fast_kernels
        from compression_assets.training.loop import _Run

        self.kernels = fast_kernels(model, "cpu", 512, torch.bfloat16)
        self.kernels.__enter__()
        steps = plan(dataset, recipe, 0)
        run = _Run(model, dataset, recipe, None, "cpu", 1_000)
        self.live = {
            n.replace("live teacher", "forward"): t for n, t in teachers.items() if n.startswith("live")
        }

        def stepper(teacher: Any) -> Any:
            def step() -> None:
                run.distil = None if teacher is None else Distil(teacher, 0.3, TEMPERATURE)
                run.step(100, steps[0])

            return step

        self.functions = {
            "plain cross-entropy": stepper(None),
            **{name: stepper(teacher) for name, teacher in teachers.items()},
        }

    def end(self) -> None:
        self.kernels.__exit__(None, None, None)


def _forward(live: Any) -> None:
    """All of a teacher's answer: hidden states and logits."""
    targets = live.batch([0, 1], TEMPERATURE, live.head.weight.shape[0])
    targets.read(0, live.dataset.n_trained)


def _teachers(pair: TokenDataset, scratch: Path) -> tuple[dict[str, Any], str]:
    """Live teachers of the student's size and twice that, their stores; and the name of the larger one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from compression_assets.training.teacher.teacher_forward import LiveTeacher
    from compression_assets.training.teacher.teacher_logits import (
        TeacherLogits,
        TeacherLogitsRecipe,
        write_teacher_logits,
    )
    from compression_assets.weights.checkpoints import copy_tokenizer, load_for_scoring

    own = demo() / "models" / "teacher"
    config = LlamaConfig.from_pretrained(own)
    config.update({"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 38})
    config.update({"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64})
    torch.manual_seed(0)
    random = LlamaForCausalLM(config).to(torch.bfloat16)
    name = f"{random.num_parameters() / 1e6:.0f} M"
    random.save_pretrained(scratch / "larger")
    copy_tokenizer(own, scratch / "larger")
    pair.save(scratch / "data")
    teachers: dict[str, Any] = {}
    for which, directory in (("own size", own), (name, scratch / "larger")):
        for coding in ("hidden", "top_k"):
            output = scratch / f"{which}-{coding}"
            write_teacher_logits(
                directory,
                scratch / "data",
                output,
                TeacherLogitsRecipe(coding=coding),
                temperature=TEMPERATURE,
                teacher_fingerprint=which,
            )
            label = f"store: {coding}" if which == "own size" else f"store: {coding}, {name}"
            teachers[label] = TeacherLogits.open(output, pair)
        live = LiveTeacher(load_for_scoring(directory, "cpu", torch.bfloat16), pair)
        teachers[f"live teacher, {which}"] = live
    return teachers, name


def _parameters(model: "PreTrainedModel") -> tuple[int, int]:
    """Weights of the linear layers before the output layer, and of the output layer."""
    head: torch.nn.Parameter = model.get_output_embeddings().weight
    linear = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "proj" in n)
    return linear, head.numel()


def _padding(dataset: TokenDataset, recipe: TrainingRecipe) -> float:
    """Share of padding in all tokens that an epoch computes."""
    computed = real = 0
    for rows in (rows for step in plan(dataset, recipe, 0) for rows in step):
        lengths = [len(dataset[row].input_ids) for row in rows]
        computed += len(rows) * max(lengths)
        real += sum(lengths)
    return 1 - real / computed


if __name__ == "__main__":
    main()
