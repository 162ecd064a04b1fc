"""What is watched of inputs: a language from small words or a script, and how a tokenizer takes a text."""

import polars as pl
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel

from tasks.descriptors import ANSWERS, CONFIDENCE, EMBEDDING, INPUTS, describe, families
from tasks.languages import languages
from tasks.problems import load
from tasks.runtime import load_runtime
from tasks.vocabulary import unknown_id
from tests.conftest import Line


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The film is not as good as the book, but it has its moments.", "en"),
        ("Der Film ist nicht so gut wie das Buch, aber er hat seine Momente.", "de"),
        ("Le film n'est pas aussi bon que le livre, mais il a ses moments.", "fr"),
        ("La película no es tan buena como el libro, pero tiene sus momentos.", "es"),
        ("Filmen är inte lika bra som boken, men den har sina stunder.", "sv"),
        ("Film nie jest tak dobry jak książka, ale ma swoje momenty.", "pl"),
        ("Фильм хуже книги.", "cyrillic"),
        ("映画は本ほど良くないです。", "japanese"),
        ("这部电影没有书好。", "han"),
        ("영화는 책만큼 좋지 않다.", "hangul"),
        ("LMAO 😂😂", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_language_is_told_by_its_small_words_or_its_script(text: str | None, language: str) -> None:
    assert languages(pl.Series(["another row", text], dtype=pl.String))[1] == language


def test_a_texts_language_does_not_depend_on_the_rows_beside_it() -> None:
    texts = pl.Series(["the end of it", "und es war gut", "", "это конец", "the end of it"])
    assert languages(texts).to_list() == ["en", "de", "unknown", "cyrillic", "en"]
    assert languages(texts.reverse()).to_list() == languages(texts).to_list()[::-1]


def test_a_reference_and_traffic_are_described_alike(released: Line) -> None:
    runtime = load_runtime(released.paths.release, 1)
    reference = pl.read_parquet(released.paths.release / "reference.parquet")
    clean = pl.read_parquet(released.paths.clean / "*.parquet")
    rows = reference.select("id").join(clean, on="id", maintain_order="left")
    described = describe(rows, runtime)
    assert described.equals(reference.select(described.columns))
    assert set(described["language"]) <= {"en", "unknown", "it", "fr", "es", "de", "nl", "pt", "tr", "sv", "da", "id"}


def test_a_token_that_the_vocabulary_lacks_is_counted_as_unknown(released: Line) -> None:
    runtime = load_runtime(released.paths.release, 1)
    rows = pl.DataFrame({"id": ["a", "b"], "text": ["a good film", "ψ ω ψ"]})
    described = describe(rows, runtime)
    assert described["share_unknown_tokens"][0] == 0
    assert described["share_unknown_tokens"][1] > 0.5


def test_the_unknown_token_is_found_by_name_and_some_tokenizers_have_none() -> None:
    assert unknown_id(Tokenizer(WordLevel({"[UNK]": 3, "a": 0}, unk_token="[UNK]"))) == 3
    assert unknown_id(Tokenizer(BPE())) is None


def test_every_column_of_a_reference_is_about_something(released: Line) -> None:
    reference = pl.read_parquet(released.paths.release / "reference.parquet")
    found = families(reference, load("text_classification"))
    assert set(found) == set(reference.columns) - {"id"}
    assert found["num_words"] == found["language"] == INPUTS
    assert found["label"] == ANSWERS
    assert found["probability"] == CONFIDENCE
    assert found["embedding"] == EMBEDDING
