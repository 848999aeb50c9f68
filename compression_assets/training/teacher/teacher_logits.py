"""The store of a teacher's next-token distributions: written once, read by every distillation step.

Here is how it is read and checked. Its recipe and files are in `shards`, how it is made in `teacher_forward`, how
distributions become tensors in `logits_coding`, what a loss does with them in `head_loss`.
"""

import json
import shutil
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Report, no_report
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import DenseTargets, Targets
from compression_assets.training.teacher.logits_coding import decode
from compression_assets.training.teacher.shards import HEAD, TeacherLogitsRecipe, shard_path, shard_rows
from compression_assets.training.teacher.teacher_forward import write_shards

if TYPE_CHECKING:
    import torch

MANIFEST = "logits.json"
ONE_TEMPERATURE = ("top_k",)
LEAST_K = ((1.0, 36), (2.0, 4096))
"""(Temperature, least k whose gradient has a cosine of 0.99 there); a lower temperature is no harder."""


def coding_doubt(recipe: TeacherLogitsRecipe, temperature: float) -> str | None:
    """Why a student's gradient at a temperature is not known to keep a cosine of 0.99 with the exact one, or None.

    As measured (benchmarks/RESULTS.md): the worst of the gradients with respect to logits, hidden states and output
    weights, between a model of 135 M parameters and its pruned form.
    """
    if recipe.coding in ("dense", "hidden"):
        return None
    at = f"teacher_logits.coding '{recipe.coding}' at a distillation temperature of {temperature:g}"
    enough = next((k for highest, k in LEAST_K if temperature <= highest), None)
    if enough is not None and recipe.k >= enough:
        return None
    measured = f"takes k: {enough} (k is {recipe.k})" if enough else "was measured at no k"
    return f"{at}: a gradient with a cosine of 0.99 {measured}; write coding: hidden, which is exact"


def write_teacher_logits(
    teacher: Path,
    dataset_directory: Path,
    output: Path,
    recipe: TeacherLogitsRecipe,
    *,
    temperature: float,
    teacher_fingerprint: str,
    vocabulary: int | None = None,
    device: str = "cpu",
    devices: Sequence[str] = (),
    report: Report = no_report,
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Run the teacher over every row of a dataset and store its distributions.

    Returns the manifest and what was measured on the way ("padding", "seconds"), which is in no file: the same
    distributions are the same bytes.

    vocabulary: the student's vocabulary; the teacher's logits beyond it are dropped before anything is normalised.
    devices: where it has several, the teacher's layers are spread over them.
    teacher_fingerprint: what identifies the teacher's weights.
    scratch: where shards are kept until all are there; whole ones that an interrupted call with the same arguments
    left are used again. None: nothing is kept. `output` and `scratch` lie on one disk, so that moving costs nothing.
    """

    dataset = TokenDataset.load(dataset_directory)
    identity = {
        "dataset": dataset.digest(),
        "teacher": teacher_fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "coding": recipe.coding,
        "temperature": temperature if recipe.coding in ONE_TEMPERATURE else None,
        "student_vocabulary": vocabulary,
    }
    _clear(output)
    if scratch is not None:
        _keep_if_same(scratch, identity)
    made, measured = write_shards(
        teacher, dataset, scratch or output, recipe, temperature, vocabulary, device, report, devices
    )
    for file in [] if scratch is None else [*scratch.glob("shard-*.safetensors"), *scratch.glob(HEAD)]:
        shutil.move(file, output / file.name)
    manifest = identity | {"tokens": dataset.n_trained, "rows": len(dataset)} | made
    _write_json(output / MANIFEST, manifest)
    return manifest | measured


class TeacherLogits:
    """A finished store, opened for the dataset it was made for. Use `open`."""

    def __init__(self, directory: Path, manifest: dict[str, Any], dataset: TokenDataset) -> None:
        self.directory, self.manifest = directory, manifest
        recipe = TeacherLogitsRecipe.model_validate(manifest["recipe"])
        counts = [row.n_trained for row in dataset]
        shards = shard_rows(dataset, recipe)
        self._first_rows = [rows.start for rows in shards]
        self._offsets = [[0, *accumulate(counts[row] for row in rows)] for rows in shards]
        self._files: dict[int, Any] = {}
        self._heads: dict[str, dict[str, torch.Tensor]] = {}

    @classmethod
    def open(cls, directory: Path, dataset: TokenDataset) -> "TeacherLogits":
        """StudyError if there is no finished store, or one made for other rows, or one that lacks a shard."""
        path = directory / MANIFEST
        if not path.is_file():
            raise StudyError(
                f"there are no finished teacher logits in {directory}: materialize teacher_logits first."
            )
        manifest = json.loads(path.read_text())
        if manifest["dataset"] != dataset.digest():
            raise StudyError(
                f"the teacher logits in {directory} were made for other data than this distillation set: "
                "materialize teacher_logits again."
            )
        store = cls(directory, manifest, dataset)
        files = [shard_path(directory, index) for index in range(len(store._first_rows))]
        files += [directory / HEAD] * (manifest["coding"] == "hidden")
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise StudyError(
                f"the teacher logits in {directory} lack {missing[0]}: materialize teacher_logits again."
            )
        return store

    def require(self, temperature: float, vocabulary: int) -> None:
        """StudyError unless the store serves this temperature and a student with this vocabulary."""
        coding, made_at, stored = (self.manifest[key] for key in ("coding", "temperature", "vocabulary"))
        if coding not in ONE_TEMPERATURE:
            return
        if made_at != temperature:
            raise StudyError(
                f"the teacher logits in {self.directory} are coded as {coding} for temperature {made_at} and cannot "
                f"serve {temperature}: materialize teacher_logits again for it, or write coding: hidden."
            )
        if stored > vocabulary:
            raise StudyError(
                f"the teacher logits in {self.directory} spread over {stored} tokens, more than the student's "
                f"{vocabulary}: materialize teacher_logits again with its vocabulary, or write coding: hidden."
            )

    def batch(self, rows: list[int], temperature: float, vocabulary: int, device: str = "cpu") -> Targets:
        """Targets of the trained tokens of these rows, row after row: the order of `hidden[predicts]`."""
        self.require(temperature, vocabulary)
        parts = [self._row(row) for row in rows]
        if self.manifest["coding"] == "dense":
            return _dense([part["logits"] for part in parts], device)
        if self.manifest["coding"] == "hidden":
            return self._from_hidden([part["hidden"] for part in parts], device)
        import torch

        joined = {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
        return decode(joined, self.manifest["vocabulary"])

    def _from_hidden(self, parts: "list[torch.Tensor]", device: str) -> DenseTargets:
        import torch
        from safetensors.torch import load_file

        if device not in self._heads:
            self._heads[device] = load_file(self.directory / HEAD, device=device)
        head, hidden = self._heads[device], torch.cat(parts).to(device)

        def read(start: int, stop: int) -> torch.Tensor:
            return torch.nn.functional.linear(hidden[start:stop], head["weight"], head.get("bias"))

        return DenseTargets(read, self.manifest["vocabulary"])

    def _row(self, row: int) -> "dict[str, torch.Tensor]":
        """The stored tensors of one row's tokens; the file is mapped, so no more than these is read."""
        from safetensors import safe_open

        shard = bisect_right(self._first_rows, row) - 1
        if shard not in self._files:
            self._files[shard] = safe_open(shard_path(self.directory, shard), framework="pt")
        file = self._files[shard]
        first = row - self._first_rows[shard]
        start, stop = self._offsets[shard][first : first + 2]
        return {name: file.get_slice(name)[start:stop] for name in file.keys()}  # noqa: SIM118


def _dense(parts: "list[torch.Tensor]", device: str) -> DenseTargets:
    import torch

    logits = torch.cat(parts)
    return DenseTargets(lambda start, stop: logits[start:stop].to(device), logits.shape[1])


def check_same_tokenizer(teacher: Path, student: Path) -> None:
    """StudyError if teacher and student give the same token id to different texts.

    Ids that only one of them has (padding of the vocabulary, added special tokens at the end) do no harm: the KL is
    over the ids they share, and no text is encoded by them.
    """
    theirs, ours = (_texts_by_id(directory) for directory in (teacher, student))
    different = _different(theirs, ours)
    if different:
        index = different[0]
        raise StudyError(
            f"the teacher in {teacher} and the student in {student} have different tokenizers "
            f"({len(different)} ids differ; id {index} is {theirs[index]!r} for the teacher and {ours[index]!r} for "
            "the student): choose a teacher with the student's tokenizer."
        )


def _texts_by_id(directory: Path) -> dict[int, str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return {index: text for text, index in tokenizer.get_vocab().items()}


def _different(theirs: dict[int, str], ours: dict[int, str]) -> list[int]:
    return sorted(index for index in theirs.keys() & ours.keys() if theirs[index] != ours[index])


def _clear(directory: Path) -> None:
    """Make the directory, without anything of a store in it."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in [directory / MANIFEST, directory / HEAD, *directory.glob("shard-*")]:
        file.unlink(missing_ok=True)


def _keep_if_same(scratch: Path, identity: dict[str, Any]) -> None:
    """Clear `scratch` unless its shards were made by a call with this identity, which is noted beside them."""
    note = scratch / "run.json"
    if not note.is_file() or json.loads(note.read_text()) != identity:
        _clear(scratch)
        _write_json(note, identity)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    partial.replace(path)
