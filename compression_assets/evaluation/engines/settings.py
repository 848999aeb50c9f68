"""What a study file says about serving: which models are measured in which form, and so in which engine."""

from typing import Literal, Self

from pydantic import model_validator

from compression_assets.errors import StudyError
from compression_assets.strict import Strict, near_match
from compression_assets.weights.formats.gguf_types import TYPES, GgufForm, gguf_form

LLAMA_CPP, VLLM = "llama_cpp", "vllm"
DIRECTORIES = ("hf", "w4a16")
"""Forms that vLLM loads: the model's own directory; w4a16 says that it is in int4."""
FORMATS = (*DIRECTORIES, "gguf", *(f"gguf:{kind}" for kind in TYPES))


class ServedSettings(Strict):
    """A model as an engine serves it: a GGUF file in llama.cpp, a directory in vLLM.

    model: an ordering, made like the others if the study does not list it, or "base". format: "gguf:TYPE", or hf
    or w4a16. embeddings: GGUF type of embeddings and output layer, where it is not to be llama.cpp's choice.
    importance: of a GGUF, round weights by the size of their inputs on the calibration set (llama.cpp's imatrix).
    """

    model: str
    format: str = "gguf:q4_k_m"
    embeddings: Literal["bf16", "f16", "q8_0", "q6_k", "q5_0", "q4_0"] | None = None
    importance: bool = False

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is unknown: {near_match(self.format, FORMATS)}")
        if self.format in DIRECTORIES:
            if self.embeddings or self.importance:
                raise ValueError(
                    f"embeddings and importance are of GGUF files, and the format is {self.format}"
                )
            return self
        try:
            gguf_form(self.format, self.embeddings, self.importance)
        except StudyError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def engine(self) -> str:
        return VLLM if self.format in DIRECTORIES else LLAMA_CPP

    @property
    def gguf(self) -> GgufForm | None:
        """None of a directory."""
        if self.format in DIRECTORIES:
            return None
        return gguf_form(self.format, self.embeddings, self.importance)

    @property
    def form(self) -> str:
        """In names of assets and tables: "q4_k_m", "w4a16"."""
        return self.gguf.name if self.gguf else self.format
