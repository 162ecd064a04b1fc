import random
import re

import numpy as np
import polars as pl
import pytest

from tasks.neighbours import Sketches, _pairs_of_equal, banding, signatures
from tasks.params import NearDuplicates
from tests.conftest import REPOSITORY

NEAR = NearDuplicates(threshold=0.8, num_permutations=128, shingle_words=3, seed=1)


def earliest_near(folder, texts, order=None, near=NEAR):
    folder.mkdir(exist_ok=True)
    sketches = Sketches(folder, near)
    sketches.add(pl.Series(texts, dtype=pl.String))
    numbers = np.arange(len(texts)) if order is None else np.asarray(order)
    return sketches.earliest_near(numbers, lambda _: None).tolist()


def jaccard(one, other):
    def shingles(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + 3]) for at in range(max(len(words) - 2, 1))}

    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def noisy(text, chance):
    """Two words are lost, punctuation goes, and capitals become small."""
    words = text.split()
    for _ in range(2):
        del words[chance.randrange(len(words))]
    return " ".join(words).lower().replace(",", "")


@pytest.fixture(scope="module")
def passages():
    """300 encyclopaedia passages of at least 100 words."""
    rows = pl.read_parquet(REPOSITORY / "data/samples/passages.parquet").head(1500)
    return [text for text in rows["text"] if len(text.split()) >= 100][:300]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_let_at_least_99_percent_of_pairs_at_the_threshold_be_looked_at(threshold):
    num_bands, width = banding(threshold, 128)
    assert num_bands * width <= 128
    assert 1 - (1 - threshold**width) ** num_bands >= 0.99


def test_bands_are_no_narrower_than_recall_asks_for():
    _, width = banding(0.8, 128)
    assert 1 - (1 - 0.8 ** (width + 1)) ** (128 // (width + 1)) < 0.995


def test_signatures_estimate_the_jaccard_similarity_that_counting_gives(passages):
    chance = random.Random(1)
    others = [noisy(text, chance) for text in passages]
    truth = np.array([jaccard(one, other) for one, other in zip(passages, others, strict=True)])
    minima = signatures(pl.Series(passages + others), NEAR)
    estimates = (minima[: len(passages)] == minima[len(passages) :]).mean(axis=1)
    assert abs((estimates - truth).mean()) < 0.01
    # Four standard errors of a share of 128 at 0.9.
    assert np.abs(estimates - truth).max() < 4 * np.sqrt(0.9 * 0.1 / 128)


def test_noisy_copies_are_found_and_other_documents_are_not(tmp_path, passages):
    chance = random.Random(2)
    copies = [noisy(text, chance) for text in passages]
    texts = passages + copies
    found = earliest_near(tmp_path, texts)
    clear = [row for row, copy in enumerate(copies) if jaccard(passages[row], copy) >= 0.87]
    assert len(clear) > 250
    assert sum(found[len(passages) + row] >= 0 for row in clear) >= 0.99 * len(clear)
    assert all(jaccard(texts[row], texts[near]) > 0.7 for row, near in enumerate(found) if near >= 0)


def test_each_text_names_the_earliest_near_one_that_comparing_every_pair_finds(tmp_path, passages):
    chance = random.Random(5)
    texts = [noisy(chance.choice(passages[:40]), chance) for _ in range(300)]
    minima = signatures(pl.Series(texts), NEAR)
    expected = []
    for row in range(len(texts)):
        stays = [early for early, near in enumerate(expected) if near < 0]
        agreeing = [early for early in stays if (minima[row] == minima[early]).mean() >= NEAR.threshold]
        expected.append(agreeing[0] if agreeing else -1)
    found = earliest_near(tmp_path, texts)
    # Right at the threshold one pair in two hundred shares no band.
    assert sum(one != other for one, other in zip(found, expected, strict=True)) <= 3
    assert 150 < sum(near >= 0 for near in expected) < 300


def test_another_seed_is_another_draw(passages):
    other = NEAR.model_copy(update={"seed": 2})
    texts = pl.Series(passages[:20])
    assert not (signatures(texts, NEAR) == signatures(texts, other)).any(axis=1).all()


def test_a_texts_signature_does_not_depend_on_its_company(passages):
    alone = np.concatenate([signatures(pl.Series([text]), NEAR) for text in passages[:50]])
    assert (signatures(pl.Series(passages), NEAR)[:50] == alone).all()


def test_a_chain_ends_where_the_row_between_has_gone(tmp_path):
    words = [f"word{number}" for number in range(100)]
    # Each is near the next, and the first is not near the third.
    chain = [" ".join(words[start : start + 60]) for start in (0, 5, 10)]
    assert jaccard(chain[0], chain[1]) > 0.83
    assert jaccard(chain[0], chain[2]) < 0.72
    assert earliest_near(tmp_path / "forward", chain) == [-1, 0, -1]
    assert earliest_near(tmp_path / "backward", chain, order=[2, 1, 0]) == [-1, 0, -1]
    assert earliest_near(tmp_path / "middle", chain, order=[1, 0, 2]) == [-1, 0, 0], "the bridge came first"


def test_what_is_said_of_earlier_texts_does_not_change_with_later_ones(tmp_path, passages):
    chance = random.Random(3)
    texts = [noisy(chance.choice(passages[:60]), chance) for _ in range(300)]
    whole = earliest_near(tmp_path / "all", texts)
    for count in (1, 50, 150, 299):
        assert earliest_near(tmp_path / str(count), texts[:count]) == whole[:count]


def test_texts_may_come_in_any_order_as_long_as_their_ranks_are_the_same(tmp_path, passages):
    chance = random.Random(4)
    texts = [noisy(chance.choice(passages[:60]), chance) for _ in range(300)]
    order = list(range(300))
    chance.shuffle(order)
    came = [texts[number] for number in order]
    ranks = np.argsort(order)
    assert earliest_near(tmp_path / "came", came, order=ranks) == earliest_near(tmp_path / "sorted", texts)


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Good film", "good film!", True),
        ("good film", "good", False),
        ("good film", "film good", False),
        (":-)", ":-(", False),
        ("!!!", "!!!!", False),
        ("👍", "👎", False),
        ("", "x", False),
        ("这部电影非常好看我很喜欢它的结局", "这部电影非常好看,我很喜欢它的结局。", True),
        ("ภาพยนตร์เรื่องนี้สนุกมากและน่าประทับใจ", "ภาพยนตร์เรื่องนี้สนุกมากและน่าประทับใจ!", True),
        ("この映画はとても面白かったです", "この映画はとても面白かったです。", True),
        ("이 영화는 정말 재미있었어요", "이 영화는 정말 재미없었어요", False),
        ("这部电影非常好看我很喜欢它的结局", "那本小说十分无聊他不推荐任何人读", False),
    ],
)
def test_short_texts_and_texts_without_words_are_compared_as_they_stand(tmp_path, one, other, near):
    assert earliest_near(tmp_path, [one, other]) == [-1, 0 if near else -1]


@pytest.mark.parametrize("hashes", [[], [3], [7, 7, 5, 7, 3, 5], [1] * 17, list(range(9)) * 2])
def test_texts_of_a_band_are_each_compared_with_every_earlier_one_of_sixteen(hashes):
    pairs = np.concatenate([np.empty(0, np.int64), *_pairs_of_equal(np.array(hashes, dtype=np.uint32))])
    expected = [(late, early) for late in range(len(hashes)) for early in range(late) if hashes[late] == hashes[early]]
    assert sorted(divmod(int(pair), len(hashes)) for pair in pairs) == expected


def test_in_a_band_of_many_each_is_compared_with_the_first_sixteen():
    pairs = np.concatenate(list(_pairs_of_equal(np.ones(100, dtype=np.uint32))))
    expected = [(late, early) for late in range(100) for early in range(min(late, 16))]
    assert sorted(divmod(int(pair), 100) for pair in pairs) == expected


def test_thousands_that_share_much_are_compared_in_linear_time(tmp_path):
    # Every pair has the same boilerplate and a number of its own: similarity 0.55, so that many bands are shared.
    boilerplate = " ".join(f"word{number}" for number in range(22))
    texts = [f"{boilerplate} {number} a{number} b{number} c{number} d{number}" for number in range(4000)]
    assert earliest_near(tmp_path, texts) == [-1] * 4000


def test_no_texts_are_no_neighbours(tmp_path):
    assert earliest_near(tmp_path, []) == []
