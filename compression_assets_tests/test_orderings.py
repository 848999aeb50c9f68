"""The grammar of orderings, against a reference that rewrites text instead of walking states."""

import re
from itertools import product
from time import perf_counter
from types import SimpleNamespace

import pytest

from compression_assets.errors import StudyError
from compression_assets.study.orderings import (
    BASE_ORDERING,
    Ordering,
    canonical_token,
    last_quantized,
    node_key,
    parse_ordering,
    parse_orderings,
    prefix_tree,
    quantized_by,
)

PAPER = ["KD", "P", "Q", "P-KD-Q", "KD-P-Q", "P-Q-KD", "KD-Q-P", "Q-KD-P", "Q-P-KD"]
VARIANTS = {"KD", "P", "Q", "Q:stochastic", "KD:hot"}


def reference(steps: tuple[str, ...]) -> str | None:
    """All steps as text, or None where a quantization follows a quantization."""
    text = " ".join(steps)
    if re.search(r"Q(:\w+)? Q", text):
        return None
    expanded = re.sub(r"(Q(?::\w+)?) (?=[KP])", r"\1 D ", text)
    quantizations = re.findall(r"Q(?::\w+)?", text)
    return expanded if not quantizations or steps[-1][0] == "Q" else f"{expanded} {quantizations[-1]}"


def sequences(tokens: tuple[str, ...], longest: int) -> list[tuple[str, ...]]:
    return [steps for length in range(1, longest + 1) for steps in product(tokens, repeat=length)]


ALL = sequences(("KD", "P", "Q"), 4) + sequences(("KD", "P", "Q", "Q:stochastic"), 3)
POSSIBLE = [steps for steps in ALL if reference(steps) is not None]


def parse(text: str) -> Ordering:
    return parse_ordering(text, variants=VARIANTS)


def spellings(path: tuple[str, ...]) -> set[str]:
    """The path with every subset of its D left out."""
    choices = [("D-", "") if token == "D" else (f"{token}-",) for token in path]
    return {"".join(parts).removesuffix("-") for parts in product(*choices)}


def test_every_short_sequence_expands_as_the_reference() -> None:
    for steps in ALL:
        expected = reference(steps)
        if expected is None:
            with pytest.raises(StudyError, match="quantized already"):
                parse("-".join(steps))
        else:
            assert " ".join(parse("-".join(steps)).path) == expected


@pytest.mark.parametrize(
    ("text", "path", "key"),
    [
        ("base", "", "base"),
        ("KD", "KD", "kd"),
        ("Q", "Q", "q"),
        ("KD-P", "KD P", "kd_p"),
        ("KD-Q", "KD Q", "kd_q"),
        ("Q-KD", "Q D KD Q", "q_kd"),
        ("Q-P-KD", "Q D P KD Q", "q_p_kd"),
        ("Q-KD-P", "Q D KD P Q", "q_kd_p"),
        ("KD-Q-P", "KD Q D P Q", "kd_q_p"),
        ("P-Q-KD", "P Q D KD Q", "p_q_kd"),
        ("P-KD-Q", "P KD Q", "p_kd_q"),
        ("KD-P-Q", "KD P Q", "kd_p_q"),
        ("P-P-KD-Q", "P P KD Q", "p_p_kd_q"),
        ("KD-KD", "KD KD", "kd_kd"),
        ("Q-KD-Q-P", "Q D KD Q D P Q", "q_kd_q_p"),
        ("Q:stochastic-KD", "Q:stochastic D KD Q:stochastic", "q_stochastic_kd"),
        ("Q-KD-Q:stochastic", "Q D KD Q:stochastic", "q_kd_q_stochastic"),
        ("Q:stochastic-KD-Q", "Q:stochastic D KD Q", "q_stochastic_kd_q"),
    ],
)
def test_written_out(text: str, path: str, key: str) -> None:
    ordering = parse(text)
    assert (ordering.text, " ".join(ordering.path), ordering.key) == (text, path, key)
    assert node_key(ordering.path) == key


def test_every_spelling_has_one_canonical_form() -> None:
    for steps in POSSIBLE:
        ordering = parse("-".join(steps))
        assert parse(ordering.text) == ordering
        assert "D" not in ordering.text.split("-")
        for spelling in spellings(ordering.path):
            assert parse(spelling) == parse(f" {spelling.lower()} ") == parse(spelling.swapcase()) == ordering


def test_no_two_paths_share_a_key() -> None:
    orderings = {parse("-".join(steps)) for steps in POSSIBLE}
    nodes = prefix_tree(orderings)
    assert len({node.key for node in nodes.values()}) == len(nodes) > len(orderings)
    for path, node in nodes.items():
        assert re.fullmatch("[a-z][a-z0-9_]*", node.key)
        assert node.key == node_key(path)
        if node.final:
            assert node.key == node.final.key


def test_the_papers_prefix_tree() -> None:
    nodes = prefix_tree(parse_orderings(PAPER))
    expected = (
        "base kd p q p_kd p_kd_q kd_p kd_p_q p_q p_q_d p_q_d_kd p_q_kd kd_q kd_q_d kd_q_d_p kd_q_p "
        "q_d q_d_kd q_d_kd_p q_kd_p q_d_p q_d_p_kd q_p_kd"
    )
    assert [node.key for node in nodes.values()] == expected.split()
    assert [node.final.text for node in nodes.values() if node.final] == ["base", *PAPER]
    node = nodes["Q", "D", "P"]
    assert (node.parent, node.step, node.technique, node.final) == (("Q", "D"), "P", "P", None)


def test_parents_come_first_and_the_base_is_always_there() -> None:
    nodes = prefix_tree([parse("Q-P-KD")])
    built: set[tuple[str, ...] | None] = {None}
    for path, node in nodes.items():
        assert node.parent in built
        built.add(path)
    assert nodes[()].final == BASE_ORDERING
    assert parse_orderings(["P", "Base"])[0] == BASE_ORDERING


def test_a_shared_prefix_is_one_node_whatever_the_order_of_listing() -> None:
    forward, backward = prefix_tree(parse_orderings(PAPER)), prefix_tree(parse_orderings(PAPER[::-1]))
    assert dict(forward) == dict(backward)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("-", "no step on one side"),
        ("P--Q", "no step on one side"),
        ("P-", "no step on one side"),
        ("KDD-Q", "unknown technique 'KDD': did you mean 'KD'"),
        ("X", "unknown technique 'X': allowed: KD, FT, P, Q, D, QAD"),
        ("D", "D before any quantization"),
        ("KD-D-P", "D before any quantization"),
        ("D-Q", "D before any quantization"),
        ("Q-D", "ends in D"),
        ("P-Q-D", "ends in D"),
        ("Q-D-D-KD", "D twice in a row"),
        ("Q-KD-D-P", "D after KD, where the model is in full precision"),
        ("Q-D-Q", "Q right after D changes nothing"),
        ("Q-D-Q:stochastic", "Q:stochastic right after D changes nothing"),
        ("Q-Q", "Q right after Q is pointless"),
        ("P-Q-Q:stochastic", "Q:stochastic right after Q is pointless"),
        ("Q:stochastik-KD", "did you mean 'Q:stochastic'"),
        ("P:fast", "the variant P:fast has no recipe"),
        ("Q:kd", "has the name of a technique"),
        ("Q:base", "has the name of a technique or of the base"),
        ("Q:", "is not a step"),
        ("Q:a:b", "is not a step"),
        ("4-Q", "is not a step"),
        ("D:exact", "D has no variants"),
        ("P_KD_Q", "the character '_'; write steps joined by '-'"),
        ("P>KD", "the character '>'"),
        ("P KD", "the character ' '"),
        ("P\nKD", "the character '\\n'"),
        ("P–KD", "the character '–'"),
        ("../../etc", "the character '.', '/'"),
        ("base-Q", "stands alone"),
        ("KD-base", "stands alone"),
        ("-".join(["P"] * 100), "characters long, at most 120"),
    ],
)
def test_refused_with_one_sentence_that_says_why(text: str, cause: str) -> None:
    with pytest.raises(StudyError) as refused:
        parse(text)
    message = str(refused.value)
    assert cause in message
    assert message.startswith("ordering '")
    assert "\n" not in message and len(message) < 250


@pytest.mark.parametrize(
    ("texts", "cause"),
    [
        (["P", "KD", "P"], "'P' is listed twice"),
        (["Q-P-KD", "q-d-p-kd-q"], "'q-d-p-kd-q' is listed twice: 'Q-P-KD' is the same sequence (Q-P-KD)"),
        (["Q-P-KD-Q", "Q-P-KD"], "is the same sequence (Q-P-KD)"),
        (["base", "BASE"], "is listed twice"),
    ],
)
def test_duplicates_are_refused(texts: list[str], cause: str) -> None:
    with pytest.raises(StudyError, match=re.escape(cause)):
        parse_orderings(texts)


def test_variants_need_a_study_that_lists_them() -> None:
    with pytest.raises(StudyError, match="no study gives its recipe"):
        parse_ordering("Q:stochastic")
    with pytest.raises(StudyError, match=r"P has no recipe .* add 'P: \{\}'"):
        parse_ordering("P-Q", variants={"Q"})
    assert canonical_token("q:STOCHASTIC") == "Q:stochastic"


@pytest.mark.parametrize("path", [("D",), ("Q", "KD"), ("Q", "D", "KD", "D"), ("Q", "D", "Q")])
def test_a_key_is_refused_to_a_path_that_no_ordering_has(path: tuple[str, ...]) -> None:
    with pytest.raises((ValueError, StudyError)):
        node_key(path)


def rules(needs_full_precision: bool, quantizes: bool, needs_quantized: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        needs_full_precision=needs_full_precision, quantizes=quantizes, needs_quantized=needs_quantized
    )


def test_a_technique_that_works_on_quantized_models_needs_no_dequantization() -> None:
    techniques = {
        "Q": rules(True, True),
        "A": rules(False, False),
        "P": rules(True, False),
        "D": rules(False, False),
    }
    assert parse_ordering("Q-A", techniques).path == ("Q", "A")
    assert parse_ordering("Q-A-P", techniques).path == ("Q", "A", "D", "P", "Q")
    with pytest.raises(StudyError, match="A works on a quantized model"):
        parse_ordering("Q-D-A-P", techniques)


@pytest.mark.parametrize(
    ("text", "path", "key"),
    [
        ("Q-QAD", "Q QAD", "q_qad"),
        ("P-Q-QAD", "P Q QAD", "p_q_qad"),
        ("KD-P-Q-QAD", "KD P Q QAD", "kd_p_q_qad"),
        ("Q-KD-Q-QAD", "Q D KD Q QAD", "q_kd_q_qad"),
        ("Q-QAD-QAD", "Q QAD QAD", "q_qad_qad"),
        ("Q-QAD-KD", "Q QAD D KD Q", "q_qad_kd"),
        ("Q-QAD-D-KD-Q-QAD", "Q QAD D KD Q QAD", "q_qad_kd_q_qad"),
        ("Q-QAD@1", "Q@1 QAD@1", "q_qad_s1"),
    ],
)
def test_distillation_on_the_quantized_model(text: str, path: str, key: str) -> None:
    """No dequantization before it and no quantization after it."""
    ordering = parse_ordering(text)
    assert (" ".join(ordering.path), ordering.key, node_key(ordering.path)) == (path, key, key)
    assert parse_ordering(ordering.text) == ordering


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("QAD", "the base is in full precision: put a quantization"),
        ("P-QAD-Q", "after P it is in full precision"),
        ("Q-KD-QAD", "after KD it is in full precision"),
        ("Q-D-QAD", "D before QAD is pointless"),
        ("Q-QAD-Q", "Q right after QAD is pointless"),
        ("Q-QAD-D", "ends in D"),
        ("Q:qad-KD", "has the name of a technique"),
    ],
)
def test_it_is_refused_where_nothing_is_quantized(text: str, cause: str) -> None:
    with pytest.raises(StudyError, match=re.escape(cause)):
        parse_ordering(text)


def test_the_last_quantized_model_of_a_path() -> None:
    cases = {
        "Q": (None, "Q"),
        "Q QAD": ("Q", "Q"),
        "Q QAD D": ("Q QAD", None),
        "Q QAD D KD Q:gptq": ("Q QAD", "Q:gptq"),
        "P KD Q": (None, "Q"),
        "Q D KD": ("Q", None),
    }
    for text, (last, by) in cases.items():
        path = tuple(text.split())
        assert last_quantized(path) == (tuple(last.split()) if last else None), text
        assert quantized_by(path) == by, text


def test_two_hundred_orderings_are_read_at_once() -> None:
    possible = [steps for steps in sequences(("KD", "P", "Q"), 5) if reference(steps)]
    texts = list(dict.fromkeys(parse("-".join(steps)).text for steps in possible))[-200:]
    start = perf_counter()
    nodes = prefix_tree(parse_orderings(texts, variants=VARIANTS))
    assert len(texts) == 200 < len(nodes)
    assert perf_counter() - start < 0.5
