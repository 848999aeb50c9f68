"""SQuAD scores, clarity and embeddings against written-out values."""

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_assets.errors import StudyError
from compression_assets.evaluation import clarity
from compression_assets.evaluation.answer_scores import measure_answers, measure_answers_clarity
from compression_assets.evaluation.answers import Answer
from compression_assets.evaluation.embedding import WordCounts, embedder, mean_of_windows, windows
from compression_assets.evaluation.repetition import distinct_2, repeated_4_grams
from compression_assets.evaluation.settings import ClaritySettings
from compression_assets.evaluation.squad import exact_match, f1, normalise
from compression_assets.sources.models import DirectoryModel
from compression_assets_tests.tiny_models import tiny_directory


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("fluency"))


def answer(text: str, *expected: str, id: str = "q") -> Answer:
    return Answer(id, "Who?", "The cat sat on the mat.", expected or ("x",), "Who?", text, 7, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat!", "cat"),
        ("An apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("the", ""),
        ("Amélie’s", "amélie’s"),
        ("1,889", "1889"),
    ],
)
def test_texts_are_compared_in_squads_form(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected", "em", "score"),
    [
        ("The cat.", ["cat"], 1, 1),
        ("the black cat", ["cat", "black dog"], 0, 2 / 3),
        ("black cat", ["dog", "big black cat"], 0, 0.8),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("It is the cat, I think", ["cat"], 0, 2 / 6),
    ],
)
def test_exact_match_and_f1(text: str, expected: list[str], em: float, score: float) -> None:
    assert exact_match(text, expected) == em
    assert f1(text, expected) == pytest.approx(score)


def test_a_question_without_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a right answer"):
        f1("cat", [])


def test_rows_of_answers_are_the_means_of_their_samples() -> None:
    rows, samples = measure_answers([answer("a cat", "cat", id="1"), answer("", "cat", id="2")])
    values = {row.metric: row.value for row in rows}
    assert values == {
        "exact_match": 0.5,
        "f1": 0.5,
        "answers_empty": 0.5,
        "answer_words": 1.0,
        "answer_tokens": 7.0,
        "repeated_4_grams": 0.0,
        "distinct_2": 1.0,
    }
    for row in rows:
        own = [sample.value for sample in samples if sample.metric == row.metric]
        assert len(own) == row.n == 2
        assert row.value == pytest.approx(sum(value or 0 for value in own) / 2)


def test_repetition_by_hand() -> None:
    loop = "the middle and the middle and the middle and"
    assert repeated_4_grams(loop) == pytest.approx(1 - 3 / 6)
    assert distinct_2(loop) == pytest.approx(3 / 8)
    assert (repeated_4_grams("a b c"), distinct_2("a")) == (0, 1), "too short to repeat anything"


def test_repetition_against_counting() -> None:
    rng = random.Random(7)
    for _ in range(50):
        words = [rng.choice("ab") for _ in range(rng.randint(4, 20))]
        seen: set[str] = set()
        repeated = 0
        for place in range(len(words) - 3):
            gram = "".join(words[place : place + 4])
            repeated += gram in seen
            seen.add(gram)
        assert repeated_4_grams(" ".join(words).upper()) == pytest.approx(repeated / (len(words) - 3))


class Words:
    """A tokenizer with a token a word, as far as `windows` needs one."""

    def __call__(self, text: str, **options: object) -> dict[str, list[tuple[int, int]]]:
        return {"offset_mapping": [found.span() for found in re.finditer(r"\S+", text)]}


def test_a_long_text_is_embedded_in_parts() -> None:
    text = " ".join(f"w{n}" for n in range(11))
    parts = windows(text, Words(), room=6)
    assert [len(part.split()) for part in parts] == [3, 4, 4] and "".join(parts) == text
    assert windows("short", Words(), room=6) == ["short"] and windows("", Words(), room=6) == [""]
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    mean = mean_of_windows(vectors, [2, 1])
    expected = (vectors[0] + vectors[1]) / np.linalg.norm(vectors[0] + vectors[1])
    assert mean == pytest.approx(np.array([expected, vectors[2]]))


def test_fluency_falls_as_perplexity_rises() -> None:
    assert clarity.fluency(1.0) == 1.0
    assert clarity.fluency(math.e) == 0.5
    values = [clarity.fluency(perplexity) for perplexity in (1, 2, 10, 1e3, 1e9)]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0


def test_the_perplexity_of_an_answer_is_that_of_its_tokens_after_the_start(language_model: Path) -> None:
    texts = ["The cat sat on the mat.", "no", "x"]
    found = clarity.answer_perplexities(texts, language_model, batch_size=2)
    model = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    start = tokenizer.get_vocab().get(clarity.DOCUMENT_END, tokenizer.bos_token_id)
    start = tokenizer.eos_token_id if start is None else start
    for text, perplexity in zip(texts, found, strict=True):
        ids = torch.tensor([[start, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            loss = model(ids, labels=ids).loss  # transformers' own shift and mean
        assert perplexity == pytest.approx(math.exp(loss.item()), rel=0.03)  # bfloat16


def test_readability_is_flesch_by_hyphenation_clipped() -> None:
    # 206.835 - 1.015 * words a sentence - 84.6 * syllables a word
    assert clarity.readability("The cat sat on the mat.") == 1.0
    assert clarity.readability("A table is under that window.") == pytest.approx(
        (206.835 - 1.015 * 6 - 84.6 * 9 / 6) / 100, abs=1e-4
    )
    assert clarity.readability("Information") == 0.0
    assert clarity.readability("cat") == 1.0


def test_an_answer_that_says_nothing_is_not_clear_at_all(language_model: Path) -> None:
    settings = ClaritySettings(embedding_model=WordCounts(kind="words"))
    given = [answer("", id="1"), answer(" …", id="2"), answer("The cat sat on the mat.", id="3")]
    rows, samples = measure_answers_clarity(given, settings, "base_model", language_model, Path("unused"))
    values = {(sample.item, sample.metric): sample.value for sample in samples}
    assert [values[item, "clarity"] for item in "12"] == [0.0, 0.0]
    assert values["3", "coherence"] == pytest.approx(1.0)
    parts = [values["3", part] or 0 for part in ("fluency", "coherence", "readability")]
    assert values["3", "clarity"] == pytest.approx(sum(parts) / 3)
    assert {row.metric: row.note for row in rows if row.note} == {
        "fluency": "under base_model",
        "coherence": "by word counts",
    }
    silent, _ = measure_answers_clarity(given[:2], settings, "base_model", Path("nowhere"), Path("unused"))
    assert [row.value for row in silent] == [0.0] * 4


def test_word_counts_are_close_where_words_are_shared() -> None:
    embed = embedder(WordCounts(kind="words"), Path("unused"))
    vectors = embed(["the cat sat", "The cat sat.", "a dog ran", ""])
    assert np.linalg.norm(vectors[:3], axis=1) == pytest.approx([1, 1, 1])
    assert vectors[0] @ vectors[1] == pytest.approx(1)
    assert vectors[0] @ vectors[2] == pytest.approx(0)
    assert vectors[3] @ vectors[0] == 0


def test_a_directory_that_embeds_nothing_is_refused(language_model: Path) -> None:
    with pytest.raises(StudyError, match="no sentence-transformers directory"):
        embedder(DirectoryModel(kind="directory", path=str(language_model)), Path("unused"))
