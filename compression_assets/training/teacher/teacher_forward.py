"""Running a teacher over rows: into a store, or live beside a student. A store is read in `teacher_logits`."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.machine.precision import compute_dtype
from compression_assets.store.reports import Report
from compression_assets.text.batches import collate, length_buckets
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import DenseTargets
from compression_assets.training.teacher.logits_coding import encode_top_k
from compression_assets.training.teacher.shards import (
    HEAD,
    TeacherLogitsRecipe,
    shard_path,
    shard_rows,
    total_bytes,
)
from compression_assets.weights.files import TOKENIZER_FILES, is_whole, save_tensors, to_disk
from compression_assets.weights.logits import body_and_head

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ENCODED_AT_ONCE = 128
CHAT_TEMPLATE = "chat_template.jinja"
"""A template inside tokenizer_config.json counts with the tokenizer."""


def write_shards(
    teacher: Path,
    dataset: TokenDataset,
    output: Path,
    recipe: TeacherLogitsRecipe,
    temperature: float,
    vocabulary: int | None,
    device: str,
    report: Report,
    devices: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the shards that are missing in `output`, and the output layer for coding "hidden".

    Returns what the manifest says about them, and what this call measured of itself.
    """

    started = time.perf_counter()
    model, notes = load_teacher(teacher, recipe, device, devices)
    size = min(int(model.get_output_embeddings().weight.shape[0]), vocabulary or 1 << 62)
    live = LiveTeacher(model, dataset, device)
    shards = shard_rows(dataset, recipe)
    done = 0
    for index, rows in enumerate(shards):
        tokens = sum(dataset[row].n_trained for row in rows)
        path = shard_path(output, index)
        if not is_whole(path):
            partial = path.with_suffix(".partial")
            save_tensors(_shard(live, rows, recipe, temperature, size, done, report), partial)
            to_disk(partial)
            partial.replace(path)
        done += tokens
        report(done, dataset.n_trained, f"shard {index + 1} of {len(shards)}")
    if recipe.coding == "hidden":
        save_tensors(_head(live, size), output / HEAD)
    stored = total_bytes(shard_path(output, index) for index in range(len(shards)))
    made = {
        "vocabulary": size,
        "tokenizer": _digest(teacher, *(name for name in TOKENIZER_FILES if name != CHAT_TEMPLATE)),
        "chat_template": _digest(teacher, CHAT_TEMPLATE),
        "shards": len(shards),
        "bytes": stored,
        "bytes_per_token": round(stored / max(1, dataset.n_trained), 1),
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
        "notes": notes,
    }
    return made, {"padding": round(live.padding(), 4), "seconds": round(time.perf_counter() - started, 2)}


def load_teacher(
    teacher: Path, recipe: TeacherLogitsRecipe, device: str, devices: Sequence[str] = ()
) -> "tuple[PreTrainedModel, list[str]]":
    """The teacher for inference and notes on how it was loaded: 8 bit on CUDA if asked for, 16 bit otherwise.

    devices: where it has several, transformers and accelerate spread its layers over them.
    """
    import torch

    from compression_assets.weights.checkpoints import load_for_scoring

    dtype, on_cuda = compute_dtype(device), torch.device(device).type == "cuda"
    spread = [f"its layers spread over {len(devices)} devices"] if len(devices) > 1 else []
    if recipe.load_in_8bit and on_cuda:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
        model = _placed(teacher, device, devices, quantization_config=quantization)
        return model, ["teacher in 8 bit (LLM.int8, threshold 6.0)", *spread]
    if spread:
        return _placed(teacher, device, devices, dtype=dtype), spread
    notes = [f"load_in_8bit needs CUDA: the teacher ran in {dtype}"] if recipe.load_in_8bit else []
    return load_for_scoring(teacher, device, dtype), notes


def _placed(teacher: Path, device: str, devices: Sequence[str], **how: Any) -> "PreTrainedModel":
    """As transformers loads it, on one device or with its layers on several, each with as many as it has room for."""
    from transformers import AutoModelForCausalLM

    from compression_assets.machine.devices import free_bytes
    from compression_assets.weights.checkpoints import read_config

    if len(devices) > 1:
        # Left to itself, accelerate takes every device that it sees. A tenth is for activations.
        room = {one: int(0.9 * free_bytes(one)) for one in devices}
        how |= {
            "device_map": "auto",
            "max_memory": {one if one == "cpu" else int(one.partition(":")[2]): room[one] for one in devices},
        }
    else:
        how |= {"device_map": {"": device}}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        teacher,
        config=read_config(teacher),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **how,
    )
    return model.eval()


@dataclass
class LiveTeacher:
    """A teacher that answers by running: what a store is measured against, and how one is made."""

    model: "PreTrainedModel"
    dataset: TokenDataset
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.body, self.head = body_and_head(self.model)
        self.computed = self.real = 0

    def batch(
        self, rows: list[int], temperature: float, vocabulary: int, device: str = "cpu"
    ) -> DenseTargets:
        """Targets of the trained tokens of these rows; logits are made when a chunk is read."""
        hidden = self.hidden(rows)
        return DenseTargets(lambda start, stop: self.logits(hidden[start:stop]), self.head.weight.shape[0])

    def hidden(self, rows: list[int]) -> "torch.Tensor":
        """Last hidden states [n, d] at the positions that predict a trained token."""
        import torch

        batch = collate([self.dataset[row] for row in rows], pad_id=0, trained=True)
        self.computed += batch.input_ids.numel()
        self.real += int(batch.attention_mask.sum())
        batch = batch.to(self.device)
        with torch.inference_mode():
            # Right padding and causal attention: no mask needed, as in the training loop.
            hidden = self.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            # A teacher on several devices ends on another one than it begins on.
            return hidden[batch.predicts.to(hidden.device)]

    def logits(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Logits [n, V] of hidden states."""
        import torch

        with torch.inference_mode():
            return self.head(hidden)

    def padding(self) -> float:
        """Share of padding in the tokens computed so far."""
        return 1 - self.real / self.computed if self.computed else 0.0


def _shard(
    live: LiveTeacher,
    rows: range,
    recipe: TeacherLogitsRecipe,
    temperature: float,
    vocabulary: int,
    done: int,
    report: Report,
) -> "dict[str, torch.Tensor]":
    """The encoded distributions of a range of rows, in their order, whatever order they were computed in."""
    import torch

    counts = [live.dataset[row].n_trained for row in rows]
    pieces: dict[int, dict[str, torch.Tensor]] = {}
    fresh = 0
    for batch in length_buckets(TokenDataset([live.dataset[row] for row in rows]), recipe.batch_size, None):
        hidden = live.hidden([rows[position] for position in batch])
        encoded = _encode(live, hidden, recipe, temperature, vocabulary)
        for position, piece in zip(
            batch, _split(encoded, [counts[position] for position in batch]), strict=True
        ):
            pieces[position] = piece
        fresh += hidden.shape[0]
        report(done + fresh, live.dataset.n_trained, "teacher forward")
    return {
        name: torch.cat([pieces[position][name] for position in range(len(counts))]) for name in pieces[0]
    }


def _head(live: LiveTeacher, vocabulary: int) -> "dict[str, torch.Tensor]":
    """The output layer of a teacher, cut to a vocabulary, in bfloat16."""
    import torch

    tensors = {"weight": live.head.weight} | ({} if live.head.bias is None else {"bias": live.head.bias})
    return {name: t.detach()[:vocabulary].to(torch.bfloat16).cpu().clone() for name, t in tensors.items()}


def _encode(
    live: LiveTeacher,
    hidden: "torch.Tensor",
    recipe: TeacherLogitsRecipe,
    temperature: float,
    vocabulary: int,
) -> "dict[str, torch.Tensor]":
    import torch

    if recipe.coding == "hidden":
        return {"hidden": hidden.to(torch.bfloat16).cpu()}
    parts = []
    for start in range(0, max(1, hidden.shape[0]), ENCODED_AT_ONCE):
        logits = live.logits(hidden[start : start + ENCODED_AT_ONCE])[:, :vocabulary]
        if recipe.coding == "dense":
            part = {"logits": logits.to(torch.bfloat16)}
        else:
            part = encode_top_k(logits, recipe.k, temperature)
        parts.append({name: tensor.cpu() for name, tensor in part.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _split(tensors: "dict[str, torch.Tensor]", counts: list[int]) -> "Iterator[dict[str, torch.Tensor]]":
    start = 0
    for count in counts:
        yield {name: tensor[start : start + count] for name, tensor in tensors.items()}
        start += count


def _digest(directory: Path, *names: str) -> str:
    """SHA-256 over files of a model directory, one that is missing counting as empty."""
    sha = hashlib.sha256()
    for file in (directory / name for name in names):
        sha.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
    return sha.hexdigest()
