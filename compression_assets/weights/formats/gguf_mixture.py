"""Which tensor of a GGUF file gets which type: llama.cpp's own choice, so that "Q4_K_M" is what people know by it.

The rule of llama.cpp's `llama_tensor_get_type` (src/llama-quant.cpp) for the types that are offered here, of models
without experts.
"""

import re
from dataclasses import dataclass

from compression_assets.errors import StudyError
from compression_assets.weights.formats.gguf_types import BLOCK, COARSE, MIXTURES, GgufForm, block_of, misfit

TOKENS, OUTPUT = "token_embd.weight", "output.weight"
FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""A type whose blocks of 256 do not divide a row -> the one that takes its place."""


@dataclass(frozen=True)
class Mixture:
    """layers: decoder layers. tied: whether the embeddings are the output layer too. grouped: heads a key head.

    copies: other matrices of the file are copies of a quantized model's codes. What that model has left in full
    precision is not brought to few bits then.
    """

    form: GgufForm
    layers: int
    tied: bool
    grouped: int
    copies: bool = False

    def type_of(self, name: str, width: int) -> str:
        """The type of a matrix. name: GGUF's, width: weights of a row.

        Raises StudyError for embeddings that do not fit the type that was asked for.
        """
        if self.copies and name not in (TOKENS, OUTPUT):
            return "q8_0"
        if name in (TOKENS, OUTPUT) and self.form.embeddings is not None:
            if reason := misfit(self.form, width):
                raise StudyError(reason)
            return self.form.embeddings
        if self.form.kind not in MIXTURES:
            return "q8_0" if name in (TOKENS, OUTPUT) and self.form.kind in COARSE else self.form.kind
        return _that_fits(self._mixed(name, width), width)

    def _mixed(self, name: str, width: int) -> str:
        kind, main = self.form.kind, MIXTURES[self.form.kind]
        if name == OUTPUT or (name == TOKENS and self.tied):
            return "q6_k" if width % block_of(main) == 0 else "q8_0"
        found = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
        if found is None:
            return main
        layer, values = int(found[1]), found[2] == "attn_v"
        if kind in ("q4_k_m", "q5_k_m"):
            return "q6_k" if self._more_bits(layer) else main
        if kind == "iq4_nl":
            early = layer < self.layers // 8 and not self.form.importance
            return "q5_k" if (self.grouped >= 4 if values else early) else main
        return main

    def _more_bits(self, layer: int) -> bool:
        """The first and the last eighth of the layers, and every third of the others."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


def _that_fits(kind: str, width: int) -> str:
    if width % block_of(kind) == 0:
        return kind
    return FALLBACK[kind] if width % BLOCK == 0 and kind in FALLBACK else "f16"
