import time

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.normalise import normalise, normalised, strip_markup, untidy
from tasks.params import Tidy


def stripped(text):
    return strip_markup(pl.Series([text]))[0]


def normal(text, form="NFC"):
    return normalise(pl.Series([text]), form)[0]


@pytest.mark.parametrize(
    ("html", "words"),
    [
        ("good.<br/><br/>Bad", "good. Bad"),
        ("<p>one</p><p>two</p>", "one two"),
        ("un<b>believ</b>able", "unbelievable"),
        ("<BIG>loud</BIG>", "loud"),
        ('<a href="x" title="a > b">link</a>, and more', "link, and more"),
        ("Tom &amp; Jerry&nbsp;&#233; &eacute;", "Tom & Jerry é é"),
        ("<script>alert('<p>')</script>left<style>p {}</style>", "left"),
        ("a<!-- b --> c", "a c"),
        ("<ul><li>one<li>two</ul>", "one two"),
        ("<title>Head</title><textarea>and <b>body", "Head and body"),
        ("<my-tag>words</my-tag>", "words"),
        ("I <3 this<br>film & a < b", "I <3 this film & a < b"),
    ],
)
def test_markup_goes_and_its_words_stay_apart(html, words):
    assert normal(stripped(html)) == words


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "I <3 it",
        "a <b and c> d",
        "dear <name>, <unk>",
        "AT&T, R&D; Q&A",
        "<br without an end",
        "if x<y&&y>z",
        ":-< >:(",
        "page?a=1&copy=2",
    ],
)
def test_what_is_no_markup_stays_as_it_is(text):
    assert stripped(text) == text
    assert stripped(text + "<br>") == text + " ", "nor does it go where there is markup beside it"


def test_markup_is_read_once():
    assert stripped("&amp;lt;b&amp;gt;") == "&lt;b&gt;"


def test_texts_without_markup_are_not_touched_by_their_neighbours():
    texts = pl.Series(["plain", None, "a<br>b", "", "a < b"])
    assert strip_markup(texts).to_list() == ["plain", None, "a b", "", "a < b"]


def test_deep_nesting_takes_no_longer_than_its_length():
    started = time.monotonic()
    assert stripped("<div>" * 300_000 + "word").strip() == "word"
    assert stripped("<b>" * 300_000 + "word") == "word"
    # A parser that sees the divisions takes minutes here.
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("  a \t\r\n b　c  ", "a b c"),
        ("e\u0301", "é"),
        ("h\0e\0l\0l\0o", "hello"),
        ("zero\u200bwidth\ufeff, soft\xadhyphen", "zerowidth, softhyphen"),
        ("e\u200b\u0301", "é"),
        ("a\x1fb\x85c\u2028d", "a b c d"),
        ("\u202eevil\u202c", "evil"),
        ("\x00\u200b", ""),
    ],
)
def test_text_takes_one_form(text, normalised):
    assert normal(text) == normalised


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇪🇺",  # joined, with variation selectors and tags
        "می‌خواهم",  # Persian, spelt with a zero-width non-joiner
        "שלום \u200fC++\u200f עולם",  # a mark that orders what stands between two directions
        "क्‍ष",
    ],
)
def test_what_emoji_and_other_scripts_are_spelt_with_stays(text):
    assert normal(text) == text


def test_nfkc_folds_what_nfc_keeps():
    assert normal("ﬁve ½ Ⅷ", "NFC") == "ﬁve ½ Ⅷ"
    assert normal("ﬁve Ⅷ ＡＢ", "NFKC") == "five VIII AB"


@given(st.lists(st.text() | st.none(), min_size=1), st.sampled_from(["NFC", "NFKC"]))
def test_normalising_twice_changes_nothing_more(texts, form):
    once = normalise(pl.Series(texts, dtype=pl.String), form)
    assert normalise(once, form).to_list() == once.to_list()


@given(st.lists(st.text(alphabet="<>/&;#\"'= abp\0\x01br-!lt3", max_size=60), min_size=1))
def test_any_soup_of_tags_is_read_without_a_crash(texts):
    assert len(strip_markup(pl.Series(texts, dtype=pl.String))) == len(texts)


PIECES = ["a", " ", "  ", "<b>", "</b>", "&amp;", "é", "e\u0301", "\u200b", "\t", "\x1c", "<!-- -->", "<3", "AT&T", "."]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.booleans())
def test_what_is_not_looked_at_again_was_as_it_should_be(text, strips):
    tidy = Tidy(unicode="NFC", strip_markup=strips, redact=[], phone_regions=[])
    rows = pl.DataFrame({"text": [text]})
    may_change = rows.select(untidy("text", tidy)).item()
    assert may_change or normalised(rows, ["text"], tidy).equals(rows)
