"""The grammar of orderings: from "Q-P-KD" to steps, keys and the prefix tree.

A step token is a technique's name, or a name and a variant: "Q", "Q:stochastic". An ordering may end in a seed of its
own, "P-KD@1": its steps are then the tokens "P@1" and "KD@1", which share nothing with those of another seed, and its
key is p_kd_s1. A path is the tuple of all steps that run, with the implicit ones: "Q-P-KD" is
("Q", "D", "P", "KD", "Q"), as the paper has it in section 2.2.1.
Which techniques quantize, and which need full precision or a quantized model, is asked of the registry.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from compression_assets.errors import StudyError
from compression_assets.strict import near_match
from compression_assets.techniques import registry, technique
from compression_assets.techniques.technique import DEQUANTIZATION as DEQUANTIZATION

BASE = "base"
MAX_LENGTH = 120  # a key names a directory, and file systems allow 255 bytes in all

StepPath = tuple[str, ...]

_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9]*(:[A-Za-z][A-Za-z0-9]*)?")
_SEED = re.compile(r"0|[1-9][0-9]{0,8}")
_LOOKS_LIKE_A_SEED = re.compile(r"s[0-9]+")


class Rules(Protocol):
    """What the grammar has to know of a technique."""

    @property
    def needs_full_precision(self) -> bool: ...

    @property
    def quantizes(self) -> bool: ...

    @property
    def needs_quantized(self) -> bool: ...


@dataclass(frozen=True)
class Ordering:
    """A sequence of steps: `text` is its one canonical spelling, `path` every step that runs."""

    text: str
    path: StepPath

    @property
    def key(self) -> str:
        """What names its assets, directories and tables: "Q-P-KD" is q_p_kd."""
        return _key(self.text.split("-"))

    @property
    def seed(self) -> int | None:
        """Its own seed; None for the study's."""
        _, _, seed = self.text.partition("@")
        return int(seed) if seed else None

    @property
    def sequence(self) -> str:
        """The text without the seed: what repeats of an ordering have in common."""
        return self.text.partition("@")[0]


BASE_ORDERING = Ordering(BASE, ())


@dataclass(frozen=True)
class Node:
    """One model of the prefix tree: what its last step makes of the model at `parent`.

    step and parent are None for the base. final is the ordering that ends here, if a study lists one that does.
    """

    path: StepPath
    parent: StepPath | None
    step: str | None
    key: str
    final: Ordering | None

    @property
    def technique(self) -> str | None:
        """The last step's technique, without its variant."""
        return technique_of(self.step) if self.step else None

    @property
    def seed(self) -> int | None:
        """The seed of its ordering; None for the study's."""
        return next((seed for token in self.path if (seed := seed_of(token)) is not None), None)


def parse_ordering(
    text: str, techniques: Mapping[str, Rules] | None = None, variants: Collection[str] | None = None
) -> Ordering:
    """Read an ordering in any accepted spelling.

    Args:
        text: "base", or step tokens joined by "-", in any case, with or without the implicit steps, and perhaps "@"
            and a seed.
        techniques: the registry's unless given.
        variants: the step tokens that have a recipe; None allows every technique, without variants. D has no
            choice of recipe and is always allowed.

    Raises:
        StudyError: a sentence that says why the sequence is impossible, pointless or not understood.
    """
    techniques = registry.techniques() if techniques is None else techniques
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    try:
        sequence, at, seed = text.partition("@")
        steps = _tokens(sequence, techniques, variants)
        if at:
            steps = _seeded(steps, seed)
        path = _expand(steps, techniques)
        short = "-".join(recipe_token(token) for token in _compact(path, techniques))
        return Ordering(f"{short}{at}{seed}" if short else BASE, path)
    except StudyError as error:
        raise StudyError(f"ordering {shown}: {error}") from None


def parse_orderings(
    texts: Iterable[str],
    techniques: Mapping[str, Rules] | None = None,
    variants: Collection[str] | None = None,
) -> tuple[Ordering, ...]:
    """Every ordering of a study in the order listed, the base first whether listed or not.

    Raises:
        StudyError: one of them cannot be read, or is listed twice (perhaps in two spellings).
    """
    techniques = registry.techniques() if techniques is None else techniques
    seen: dict[Ordering, str] = {}
    for text in texts:
        ordering = parse_ordering(text, techniques, variants)
        if ordering in seen:
            raise StudyError(
                f"ordering {text!r} is listed twice"
                + (
                    f": {seen[ordering]!r} is the same sequence ({ordering.text})"
                    if seen[ordering] != text
                    else ""
                )
            )
        seen[ordering] = text
    return (BASE_ORDERING, *(ordering for ordering in seen if ordering != BASE_ORDERING))


def node_key(path: StepPath, techniques: Mapping[str, Rules] | None = None) -> str:
    """The name of the model that a path leads to, from the path alone: no two paths share one.

    A path that is all of some ordering is named by it (Q-D-P-KD-Q is q_p_kd), another by its steps (q_d_p). The
    two cannot meet, since an ordering's canonical spelling has no D and a path cut short has one.

    Raises:
        ValueError, StudyError: no ordering has this prefix.
    """
    techniques = registry.techniques() if techniques is None else techniques
    walked, quantizer, quantized = _walk(path, techniques)
    if walked != path:
        raise ValueError(f"{'-'.join(path)} is not the beginning of any ordering")
    is_whole = quantized or quantizer is None
    return _key(_compact(path, techniques) if is_whole else path)


def last_quantized(path: StepPath) -> StepPath | None:
    """The path to the last quantized model before the last step of `path`; None where there is none."""
    try:
        return path[
            : technique.last_quantized([registry.technique(technique_of(token)) for token in path[:-1]])
        ]
    except StudyError:
        return None


def quantized_by(path: StepPath) -> str | None:
    """The step that gave a path's model the number format that it is in; None in full precision."""
    index = technique.quantized_by([registry.technique(technique_of(token)) for token in path])
    return None if index is None else path[index]


def prefix_tree(
    orderings: Iterable[Ordering],
    techniques: Mapping[str, Rules] | None = None,
    further: Iterable[Ordering] = (),
) -> dict[StepPath, Node]:
    """Every model that the orderings need, each once, parents before children; the base is always there.

    further: orderings whose models are needed as well, and which the study does not compare.
    """
    techniques = registry.techniques() if techniques is None else techniques
    finals = {ordering.path: ordering for ordering in (BASE_ORDERING, *orderings)}
    nodes: dict[StepPath, Node] = {}
    for whole in (*finals, *(ordering.path for ordering in further)):
        for length in range(len(whole) + 1):
            path = whole[:length]
            if path not in nodes:
                parent, step = (path[:-1], path[-1]) if path else (None, None)
                nodes[path] = Node(path, parent, step, node_key(path, techniques), finals.get(path))
    return nodes


def technique_of(token: str) -> str:
    """ "Q:stochastic" -> "Q"."""
    return recipe_token(token).partition(":")[0]


def recipe_token(token: str) -> str:
    """ "Q:stochastic@1" -> "Q:stochastic": what a study lists a recipe under."""
    return token.partition("@")[0]


def seed_of(token: str) -> int | None:
    """ "Q:stochastic@1" -> 1; None where the study's seed is meant."""
    seed = token.partition("@")[2]
    return int(seed) if seed else None


def canonical_token(text: str, techniques: Collection[str] | None = None) -> str:
    """One step token in its canonical spelling: technique in capitals, variant in lower case.

    Raises:
        StudyError: not a step token, an unknown technique, or a variant that cannot be told from a technique.
    """
    techniques = registry.names() if techniques is None else techniques
    if not _TOKEN.fullmatch(text):
        raise StudyError(
            f"{text!r} is not a step: write a technique ({', '.join(techniques)}), or a technique and a variant "
            "of letters and digits as in 'Q:stochastic'"
        )
    name, _, variant = text.partition(":")
    name, variant = name.upper(), variant.lower()
    if name not in techniques:
        raise StudyError(f"unknown technique '{text.partition(':')[0]}': {near_match(name, techniques)}")
    if variant and name == DEQUANTIZATION:
        raise StudyError(f"{DEQUANTIZATION} has no variants: every stored code has one value")
    # Keys join tokens and variants by "_": a variant called p would make Q:p and Q-P the same key.
    if variant.upper() in techniques or variant == BASE:
        raise StudyError(
            f"the variant '{variant}' of {name} has the name of a technique or of the base: rename it"
        )
    if _LOOKS_LIKE_A_SEED.fullmatch(variant):
        raise StudyError(f"the variant '{variant}' of {name} would be taken for a seed: rename it")
    return f"{name}:{variant}" if variant else name


def _tokens(text: str, techniques: Mapping[str, Rules], variants: Collection[str] | None) -> StepPath:
    text = text.strip()
    if not text:
        raise StudyError("it is empty; write 'base' for the uncompressed model")
    if text.lower() == BASE:
        return ()
    if len(text) > MAX_LENGTH:
        raise StudyError(f"it is {len(text)} characters long, at most {MAX_LENGTH} are allowed")
    bad = sorted(set(re.findall(r"[^A-Za-z0-9:-]", text)))
    if bad:
        raise StudyError(
            f"it has the character {', '.join(map(repr, bad))}; write steps joined by '-', as in 'P-KD-Q'"
        )
    words = text.split("-")
    if "" in words:
        raise StudyError("it has a '-' with no step on one side; write steps joined by '-', as in 'P-KD-Q'")
    if BASE in map(str.lower, words):
        raise StudyError("'base' is the uncompressed model and stands alone; leave it out")
    tokens = tuple(canonical_token(word, techniques) for word in words)
    for token in tokens:
        _refuse_without_recipe(token, variants)
    return tokens


def _seeded(steps: StepPath, seed: str) -> StepPath:
    if not _SEED.fullmatch(seed):
        raise StudyError(f"its seed {seed!r} is no whole number; write it as in 'P-KD@1'")
    if not steps:
        raise StudyError("the base has no seed: nothing in it is random")
    return tuple(token if token == DEQUANTIZATION else f"{token}@{seed}" for token in steps)


def _refuse_without_recipe(token: str, variants: Collection[str] | None) -> None:
    if token == DEQUANTIZATION or (variants is None and ":" not in token) or token in (variants or ()):
        return
    name = technique_of(token)
    if variants is None:
        raise StudyError(f"the variant {token} is unknown, because no study gives its recipe")
    if ":" in token:
        hint = near_match(token, [other for other in variants if technique_of(other) == name])
        raise StudyError(f"the variant {token} has no recipe in the study's techniques: {hint}")
    raise StudyError(f"{name} has no recipe in the study's techniques: add '{name}: {{}}' for its defaults")


def _expand(steps: StepPath, techniques: Mapping[str, Rules]) -> StepPath:
    """Every step that runs, with the implicit dequantizations and the final quantization."""
    path, quantizer, quantized = _walk(steps, techniques)
    if path and path[-1] == DEQUANTIZATION:
        raise StudyError(
            "it ends in D, which only undoes the quantization before it: drop it, or add a step after it"
        )
    return path if quantized or quantizer is None else (*path, quantizer)


def _walk(steps: StepPath, techniques: Mapping[str, Rules]) -> tuple[StepPath, str | None, bool]:
    """(steps with the implicit dequantizations, last quantizing token, whether the model is quantized now)."""
    path: list[str] = []
    quantizer: str | None = None
    quantized = False
    for token in steps:
        rules = techniques[technique_of(token)]
        before = path[-1] if path else None
        if token == DEQUANTIZATION:
            if not quantized:
                raise StudyError(_why_no_dequantization(before, quantizer))
            quantized = False
        elif before == DEQUANTIZATION and not rules.needs_full_precision:
            raise StudyError(f"D before {token} is pointless: {token} works on a quantized model")
        elif rules.quantizes:
            if quantized:
                raise StudyError(f"{token} right after {before} is pointless: the model is quantized already")
            if before == DEQUANTIZATION:
                raise StudyError(f"{token} right after D changes nothing: put a step between them")
            quantizer, quantized = token, True
        elif rules.needs_quantized and not quantized:
            raise StudyError(
                f"{token} works on a quantized model, and {f'after {before} it' if before else 'the base'} is in full "
                "precision: put a quantization, such as Q, right before it"
            )
        elif quantized and rules.needs_full_precision:
            path.append(DEQUANTIZATION)
            quantized = False
        path.append(token)
    return tuple(path), quantizer, quantized


def _why_no_dequantization(before: str | None, quantizer: str | None) -> str:
    if before == DEQUANTIZATION:
        return "it has D twice in a row: the first one has dequantized the model"
    if quantizer is None:
        return "it has D before any quantization: there is nothing to dequantize"
    return f"it has D after {before}, where the model is in full precision already"


def _compact(path: StepPath, techniques: Mapping[str, Rules]) -> StepPath:
    """The shortest spelling that expands to a whole path: without D, and without a final Q that is implied."""
    short = tuple(token for token in path if token != DEQUANTIZATION)
    return short[:-1] if short and _expand(short[:-1], techniques) == path else short


def _key(tokens: Iterable[str]) -> str:
    """ "Q@1", "KD:short@1" -> q_kd_short_s1: the seed, which all of them share, goes to the end."""
    tokens = list(tokens)
    seeds = {f"s{seed}" for token in tokens if (seed := token.partition("@")[2])}
    return "_".join([*map(recipe_token, tokens), *seeds]).replace(":", "_").lower() or BASE
