import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.redact import PSEUDONYM, redact, redact_texts, suspect

ALL = ["email", "phone", "ip", "card", "iban"]
REGIONS = ["US", "GB"]


def redacted(*texts, kinds=ALL, regions=REGIONS):
    now, _ = redact_texts(texts, kinds, regions)
    return now[0] if len(now) == 1 else now


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Write to bob.smith+films@mail.example.co.uk!", "Write to ⟨EMAIL_1⟩!"),
        ("mailto:bob@example.com, <al@example.org>", "mailto:⟨EMAIL_1⟩, <⟨EMAIL_2⟩>"),
        ("jürgen@müller.de", "⟨EMAIL_1⟩"),
        ("call (202) 555-0123 now", "call ⟨PHONE_1⟩ now"),
        ("202.555.0123 or +1 202-555-0123", "⟨PHONE_1⟩ or ⟨PHONE_1⟩"),
        ("020 7946 0958", "⟨PHONE_1⟩"),
        ("(020) 7946 0958 or +44 (0)20 7946 0958", "⟨PHONE_1⟩ or ⟨PHONE_1⟩"),
        ("mobile 07911 123456, +447911123456", "mobile ⟨PHONE_1⟩, ⟨PHONE_1⟩"),
        ("0161 496 0000, or 212 555 0187 ext. 4", "⟨PHONE_1⟩, or ⟨PHONE_2⟩"),
        ("from abroad +49 30 901820", "from abroad ⟨PHONE_1⟩"),
        ("at 192.168.0.17.", "at ⟨IP_1⟩."),
        ("http://10.0.0.1:8080/ or 10.0.0.1/24", "http://⟨IP_1⟩:8080/ or ⟨IP_1⟩/24"),
        ("[2001:db8::8a2e:370:7334] is 2001:DB8:0:0:0:8A2E:370:7334", "[⟨IP_1⟩] is ⟨IP_1⟩"),
        ("paid with 4111 1111 1111 1111 12/25", "paid with ⟨CARD_1⟩ 12/25"),
        ("4111-1111-1111-1111 and 4111111111111111", "⟨CARD_1⟩ and ⟨CARD_1⟩"),
        ("::ffff:192.0.2.128 and fe80::1ff:fe23:4567:890a", "⟨IP_1⟩ and ⟨IP_2⟩"),
        ("Amex 3782 822463 10005", "Amex ⟨CARD_1⟩"),
        ("4222222222222, 5555 5555 5555 4444, 6304 0000 0000 0000", "⟨CARD_1⟩, ⟨CARD_2⟩, ⟨CARD_3⟩"),
        ("to DE89 3704 0044 0532 0130 00 please", "to ⟨IBAN_1⟩ please"),
        ("DE89370400440532013000, de89370400440532013000", "⟨IBAN_1⟩, ⟨IBAN_1⟩"),
        ("GB82 WEST 1234 5698 7654 32", "⟨IBAN_1⟩"),
        ("NO93 8601 1117 947 or FR14 2004 1010 0505 0001 3M02 606", "⟨IBAN_1⟩ or ⟨IBAN_2⟩"),
    ],
)
def test_personal_data_is_replaced(text, hidden):
    assert redacted(text) == hidden
    rows = pl.DataFrame({"text": ["a row beside it", text]})
    assert redact(rows, ["text"], ALL, REGIONS)[0]["text"].to_list() == ["a row beside it", hidden], "by Polars too"


@pytest.mark.parametrize(
    "text",
    [
        "@anonymous said hi, and a@b replied",
        "from 1914 to 1918, 1939-1945, 2001/2002/2003",
        "in 1998 2002 2006 2010",
        "on 2024-05-06 12:30:45 or 06/05/2024",
        "$2,025,550,123 or 3.2025550123",
        "10/10, 3-2, 21-14 21-17 21-19",
        "ISBN 978-0-306-40615-7, ISBN 8-5857-9659-6",
        "version 1.2.3.4, v10.0.0.1, section 4.3.2.1, EC 2.7.3.2",
        "256.1.1.1 and 1.2.3.4.5 and 1.2.3",
        "std::vector, a::b, ::1, 12:30:45, 00:1a:2b:3c:4d:5e",
        "Windows 10.0.19045.3693 and 3.14159265358979",
        "9/10, 8.5/10, $19.99, £1,299.00, 100,000,000",
        "4111 1111 1111 1112",
        "3782 822463 10006, 5555555555554445",
        "order 20240506123045123, id 1234567890123456",
        "rated 5 4 3 4 5 3 2 4 5 3 4 5 4",
        "DE00 3704 0044 0532 0130 00",
        "AB12 is a room",
    ],
)
def test_what_only_looks_like_personal_data_stays(text):
    assert redacted(text) == text


def test_the_same_address_gets_the_same_number_across_a_rows_texts():
    texts = ("b@x.org wrote to A@x.org", None, "a@X.org to b@x.org; c@x.org")
    assert redacted(*texts) == ["⟨EMAIL_1⟩ wrote to ⟨EMAIL_2⟩", None, "⟨EMAIL_2⟩ to ⟨EMAIL_1⟩; ⟨EMAIL_3⟩"]


def test_numbers_begin_anew_in_every_row_and_occurrences_are_counted():
    rows = pl.DataFrame({"id": ["1", "2", "3"], "text": ["a@x.org a@x.org", None, "b@x.org from 10.1.2.3"]})
    now, counts = redact(rows, ["text"], ALL, REGIONS)
    assert now["text"].to_list() == ["⟨EMAIL_1⟩ ⟨EMAIL_1⟩", None, "⟨EMAIL_1⟩ from ⟨IP_1⟩"]
    assert now["id"].to_list() == ["1", "2", "3"]
    assert counts == {"card": 0, "email": 3, "iban": 0, "ip": 1, "phone": 0}


def test_only_the_kinds_that_are_named_are_looked_for():
    text = "a@x.org from 10.1.2.3"
    assert redacted(text, kinds=["ip"]) == "a@x.org from ⟨IP_1⟩"
    rows = pl.DataFrame({"text": [text]})
    assert redact(rows, ["text"], [], [])[0].equals(rows)


def test_without_regions_only_international_numbers_are_telephone_numbers():
    assert redacted("202-555-0123 or +44 20 7946 0958", regions=[]) == "202-555-0123 or ⟨PHONE_1⟩"


def test_pseudonyms_that_stand_there_already_keep_their_numbers():
    assert redacted("⟨EMAIL_1⟩ and a@x.org") == "⟨EMAIL_1⟩ and ⟨EMAIL_2⟩"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("020 7946 0958, then 202-555-0123, then 020 7946 0958", "⟨PHONE_1⟩, then ⟨PHONE_2⟩, then ⟨PHONE_1⟩"),
        # The first of these two is found when the second has gone.
        ("202-555-0123.(212) 555-0187, 020 7946 0958", "⟨PHONE_1⟩.⟨PHONE_2⟩, ⟨PHONE_3⟩"),
        ("⟨EMAIL_7⟩ b@x.orgDE89370400440532013000a@x.org b@x.org", "⟨EMAIL_7⟩ ⟨EMAIL_8⟩⟨EMAIL_9⟩ ⟨EMAIL_10⟩"),
    ],
)
def test_numbers_count_up_as_a_reader_meets_them(text, hidden):
    assert redacted(text) == hidden


def test_rows_at_once_and_one_by_one_give_the_same(reviews):
    texts = ["call 202-555-0123", "a@x.org", "4111111111111111 GB82WEST12345698765432", "10.1.2.3", "2001:db8::8a2e:1"]
    mixed = pl.DataFrame({"text": [f"{text} {kind}" for text, kind in zip(reviews["text"], texts * 120, strict=True)]})
    now, _ = redact(mixed, ["text"], ALL, REGIONS)
    assert now["text"].to_list() == [redacted(text) for text in mixed["text"]]
    assert now["text"].str.contains("⟨").all()


NUMBERS = "202-555-0123|+44 20 7946 0958|10.1.2.3|2001:db8::8a2e:1|4111111111111111|4111 1111|DE89370400440532013000"
PIECES = st.sampled_from([*NUMBERS.split("|"), "a@x.org", "⟨IP_3⟩", *" -.,:+@(x1é", "22"])


@settings(max_examples=200)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=20), min_size=1, max_size=3))
def test_redacting_twice_changes_nothing_more(texts):
    rows = pl.DataFrame({"text": texts})
    once, _ = redact(rows, ["text"], ALL, REGIONS)
    twice, counts = redact(once, ["text"], ALL, REGIONS)
    assert twice.equals(once)
    assert sum(counts.values()) == 0


@settings(max_examples=200)
@given(st.lists(PIECES.filter(lambda piece: piece != "⟨IP_3⟩"), max_size=12).map("".join))
def test_no_number_appears_before_the_one_below_it(text):
    met = {}
    for kind, number in PSEUDONYM.findall(redacted(text)):
        numbers = met.setdefault(kind, [])
        if int(number) not in numbers:
            numbers.append(int(number))
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in met.values())


@pytest.mark.parametrize("text", ["ann@example.org", "(202) 555-0123", "192.168.0.17", "4111 1111 1111 1111"])
def test_one_look_suspects_a_text_that_is_redacted_and_not_one_without(text):
    rows = pl.DataFrame({"text": [f"write or call {text}", "a film of 1994, 3.5 stars", None]})
    assert rows.select(suspect("text", ALL)).to_series().to_list() == [True, False, None]
    assert not rows.select(suspect("text", [])).to_series().any()
