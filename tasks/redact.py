"""Personal data in text, replaced by pseudonyms: ⟨EMAIL_1⟩, ⟨PHONE_1⟩, ⟨IP_1⟩, ⟨CARD_1⟩, ⟨IBAN_1⟩.

The same address twice in a row gets the same number; numbers count up in the order of appearance across a row's texts,
and mean nothing outside of the row.

What is taken for personal data, and what is not:
- email: with a dot in its domain. `@name` alone is not.
- phone: valid under the numbering plan of one of the regions, or of any country where it begins with `+`.
- ip: four numbers up to 255, unless the words before say that it is a version or a section (`v1.2.3.4`, `release
  1.2.3.4`, `section 1.2.3.4`); version 6 with four hexadecimal digits at least, so that `a::b` and `::1` stay.
- card: 13 to 19 digits, in groups or not, that begin like a payment card's and pass Luhn's check.
- iban: check digits and the length of its country are right, in groups or not.
"""

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import polars as pl

Kind = Literal["email", "phone", "ip", "card", "iban"]

PSEUDONYM = re.compile(r"⟨(EMAIL|PHONE|IP|CARD|IBAN)_([0-9]+)⟩")
_KIND_OF: Mapping[str, Kind] = {"EMAIL": "email", "PHONE": "phone", "IP": "ip", "CARD": "card", "IBAN": "iban"}


class _Found(NamedTuple):
    start: int
    end: int
    value: str  # in one spelling, so that two spellings of the same get one pseudonym


_Finder = Callable[[str], Iterator[_Found]]


def redact(
    rows: pl.DataFrame, columns: Sequence[str], kinds: Sequence[Kind], phone_regions: Sequence[str]
) -> tuple[pl.DataFrame, dict[Kind, int]]:
    """The rows with pseudonyms in `columns`, and how many of each kind were put in.

    Redacting twice changes nothing more. Polars looks which rows may have what; only those get the slow look.
    """
    counts: Counter[Kind] = Counter(dict.fromkeys(sorted(kinds), 0))
    suspicions = rows.select(
        pl.any_horizontal(pl.col(column).str.contains(_SUSPICION[kind]) for column in columns).alias(kind)
        for kind in sorted(set(kinds))
    )
    suspects = suspicions.select(pl.any_horizontal(pl.all()).fill_null(value=False)).to_series() if kinds else None
    if suspects is None or not suspects.any():
        return rows, dict(counts)
    numbers = suspects.arg_true()
    of_suspects = rows.select(columns).filter(suspects)
    redacted = []
    for texts, suspicion in zip(of_suspects.rows(), suspicions.filter(suspects).iter_rows(named=True), strict=True):
        suspected: list[Kind] = [kind for kind in kinds if suspicion[kind]]
        now, found = redact_texts(texts, suspected, phone_regions)
        redacted.append(now)
        counts.update(found)
    changed = pl.DataFrame(redacted, schema=dict.fromkeys(columns, pl.String), orient="row")
    return rows.with_columns(rows[column].scatter(numbers, changed[column]) for column in columns), dict(counts)


def suspect(column: str, kinds: Sequence[Kind]) -> pl.Expr:
    """Whether `redact` may change a text."""
    return pl.any_horizontal(pl.lit(value=False), *(pl.col(column).str.contains(_SUSPICION[kind]) for kind in kinds))


def redact_texts(
    texts: Sequence[str | None], kinds: Sequence[Kind], phone_regions: Sequence[str]
) -> tuple[list[str | None], dict[Kind, int]]:
    """The texts of one row with pseudonyms, and how many of each kind were put in."""
    finders = list(_finders(kinds, phone_regions))
    counts: Counter[Kind] = Counter()
    numbers: dict[tuple[Kind, str], int] = {}
    there_before = _numbers_in_use(texts)
    used = there_before.copy()
    now = list(texts)
    # Again until nothing is found: what stood beside a match may be one itself once that is gone.
    while any(found := [_find(text, finders) if text else [] for text in now]):
        for kind, match in itertools.chain.from_iterable(found):
            if (kind, match.value) not in numbers:
                used[kind] += 1
                numbers[kind, match.value] = used[kind]
            counts[kind] += 1
        now = [text and _replace(text, matches, numbers) for text, matches in zip(now, found, strict=True)]
    return _numbered_by_appearance(now, there_before), dict(counts)


def _finders(kinds: Sequence[Kind], phone_regions: Sequence[str]) -> Iterator[tuple[Kind, _Finder]]:
    """From the most certain kind to the least; what one has found is hidden from the next."""
    certain: Mapping[Kind, _Finder] = {"email": _emails, "iban": _ibans, "card": _cards, "ip": _ips}
    for kind, finder in certain.items():
        if kind in kinds:
            yield kind, finder
    if "phone" in kinds:
        for region in phone_regions or (None,):
            yield "phone", _phones_of(region)


def _find(text: str, finders: Iterable[tuple[Kind, _Finder]]) -> list[tuple[Kind, _Found]]:
    """What is in the text, in its order, without overlaps."""
    hidden = PSEUDONYM.sub(lambda match: "\0" * len(match[0]), text)
    found: list[tuple[Kind, _Found]] = []
    for kind, finder in finders:
        matches = list(finder(hidden))
        if matches:
            hidden = _with(hidden, [(match, "\0" * (match.end - match.start)) for match in matches])
            found += [(kind, match) for match in matches]
    return sorted(found, key=lambda item: item[1].start)


def _replace(text: str, found: Iterable[tuple[Kind, _Found]], numbers: Mapping[tuple[Kind, str], int]) -> str:
    return _with(text, [(match, f"⟨{kind.upper()}_{numbers[kind, match.value]}⟩") for kind, match in found])


def _with(text: str, replacements: Iterable[tuple[_Found, str]]) -> str:
    parts, end = [], 0
    for match, replacement in replacements:
        parts += [text[end : match.start], replacement]
        end = match.end
    return "".join([*parts, text[end:]])


def _numbers_in_use(texts: Iterable[str | None]) -> Counter[Kind]:
    """The highest number of each kind among pseudonyms that are there already."""
    used: Counter[Kind] = Counter()
    for text in texts:
        for name, number in PSEUDONYM.findall(text or ""):
            used[_KIND_OF[name]] = max(used[_KIND_OF[name]], int(number))
    return used


def _numbered_by_appearance(texts: Iterable[str | None], there_before: Counter[Kind]) -> list[str | None]:
    """What one round found may stand behind what a later one did: count up from those that were there before."""
    used = there_before.copy()
    renamed: dict[str, str] = {}

    def in_order(match: re.Match[str]) -> str:
        kind = _KIND_OF[match[1]]
        if int(match[2]) <= there_before[kind]:
            return match[0]
        if match[0] not in renamed:
            used[kind] += 1
            renamed[match[0]] = f"⟨{match[1]}_{used[kind]}⟩"
        return renamed[match[0]]

    return [text and PSEUDONYM.sub(in_order, text) for text in texts]


# Hyphens and dashes, full stops, slashes, brackets and spaces, as telephone numbers are written in print.
_BETWEEN_DIGITS = r"[ .()/\xa0‐-―−－\[\]~-]{0,4}"

# For Polars: matches wherever the kind's finder finds something, and in few other rows.
_SUSPICION: Mapping[Kind, str] = {
    "email": r"[\w.+%'-]@[\w-]+\.",
    "phone": rf"\d(?:{_BETWEEN_DIGITS}\d){{6}}",
    "ip": r"\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]:[0-9A-Fa-f:]*:[0-9A-Fa-f]",
    "card": r"\d(?:[ .-]?\d){12}",
    "iban": r"[A-Za-z]{2}\d{2}[ -]?(?:[A-Za-z0-9][ -]?){11}",
}

# Looked at from its first character only, so that a long word without `@` is read once.
_EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]+@(?:[\w-]+\.)+(?:xn--[\w-]+|[^\W\d_]{2,})")


def _emails(text: str) -> Iterator[_Found]:
    for match in _EMAIL.finditer(text):
        address = match[0].lstrip("'.-")
        if not address.startswith("@"):
            yield _Found(match.end() - len(address), match.end(), address.casefold())


_IP = re.compile(
    r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])"
    r"|(?:(?<![\w.:])|(?<=[g-zG-Z]:))(?=[0-9A-Fa-f]*:)[0-9A-Fa-f:]{2,}(?:\.[0-9]+){0,3}(?!\w)"
)
# Four numbers after one of these are a version, a section, or an enzyme's class.
_NO_ADDRESS = re.compile(
    r"(?:\b(?:v|ver|version|release|rev|revision|build|firmware|section|sect|sec|chapter|clause|paragraph|article|rule|"
    r"table|figure|fig|ec)\b\.?:?\s?|§\s?|[^\W\d_]-)$",
    re.IGNORECASE,
)


def _ips(text: str) -> Iterator[_Found]:
    for match in _IP.finditer(text):
        end = match.end()
        spelling = match[0]
        if spelling.endswith(":") and not spelling.endswith("::"):  # the colon of a sentence
            spelling, end = spelling[:-1], end - 1
        try:
            address = ipaddress.ip_address(spelling)
        except ValueError:
            continue
        if address.version == 6:
            unlikely = len(spelling.replace(":", "")) < 4 or not re.search("[0-9]", spelling)
        else:
            unlikely = _NO_ADDRESS.search(text[max(0, match.start() - 20) : match.start()]) is not None
        if not unlikely:
            yield _Found(match.start(), end, str(address))


_DIGIT_GROUPS = re.compile(r"(?<!\w)(?<!\d[.,])\d+(?:[ .-]\d+)*(?!\w)")
# Visa 4, Mastercard 51 to 55 and 2221 to 2720, American Express and others 3, Mir 2200, Maestro and UnionPay 5 and 6.
_CARD_START = re.compile(r"[456]|3[04-9]|2[2-6]|27[012]")


def _cards(text: str) -> Iterator[_Found]:
    from stdnum import luhn

    for run in _DIGIT_GROUPS.finditer(text):
        groups = [(run.start() + group.start(), group[0]) for group in re.finditer(r"\d+", run[0])]
        first = 0
        while first < len(groups):
            for last, digits in _numbers_of_card_length(groups, first):
                if _CARD_START.match(digits) and luhn.is_valid(digits):
                    yield _Found(groups[first][0], groups[last][0] + len(groups[last][1]), digits)
                    first = last
                    break
            first += 1


def _numbers_of_card_length(groups: Sequence[tuple[int, str]], first: int) -> list[tuple[int, str]]:
    """The last group and the digits from `first` to it, the longest first. Cards are not printed with lone digits."""
    digits, numbers = "", []
    for last in range(first, len(groups)):
        group = groups[last][1]
        digits += group
        if len(digits) > 19 or (last > first and (len(group) < 2 or len(groups[first][1]) < 4)):
            break
        if len(digits) >= 13:
            numbers.append((last, _ascii_digits(digits)))
    return numbers[::-1]


_IBAN_START = re.compile(r"(?<![^\W_])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")
_IBAN_REST = re.compile(r"(?:[ -]?[A-Za-z0-9]){11,30}")


def _ibans(text: str) -> Iterator[_Found]:
    from stdnum import iban

    end = 0
    for start in _IBAN_START.finditer(text):
        rest = _IBAN_REST.match(text, start.end())
        if start.start() < end or rest is None:
            continue
        for last in range(rest.end(), start.end() + 10, -1):
            # A country's own length says where it ends, since words may follow; the end of a group must be one.
            whole_groups = text[last - 1].isalnum() and not text[last : last + 1].isalnum()
            if whole_groups and iban.is_valid(text[start.start() : last], check_country=False):
                yield _Found(start.start(), last, iban.compact(text[start.start() : last]))
                end = last
                break


_PHONE_LIKE = re.compile(rf"[+＋]?[(\[]?\d(?:{_BETWEEN_DIGITS}\d){{6,}}")
# The decimals of a number are no telephone number, nor is a piece of a longer word, nor the number of a book.
_NO_PHONE = re.compile(r"(?:\d[.,]|\w|\b(?:ISBN|ISSN|DOI)(?:-1[03])?:?\s?)$", re.IGNORECASE)


def _phones_of(region: str | None) -> _Finder:
    def phones(text: str) -> Iterator[_Found]:
        from phonenumbers import PhoneMetadata, PhoneNumberFormat, PhoneNumberMatcher, format_number

        metadata = PhoneMetadata.metadata_for_region(region) if region else None
        general = metadata.general_desc if metadata else None
        least_digits = min(general.possible_length) if general else None
        # Its pattern is slow, so that it sees what could be a number alone, with the sign before and an extension.
        last = 0
        for like in _PHONE_LIKE.finditer(text):
            international = like[0][0] in "+＋"
            if not international and (least_digits is None or sum(map(str.isdigit, like[0])) < least_digits):
                continue
            before = max(last, like.start() - 1)
            for match in PhoneNumberMatcher(text[before : like.end() + 16], region):
                start, end = before + match.start, before + match.end
                if start < like.end() and not _NO_PHONE.search(text[max(0, start - 10) : start]):
                    last = end
                    yield _Found(start, end, format_number(match.number, PhoneNumberFormat.E164))

    return phones


def _ascii_digits(digits: str) -> str:
    """Digits of any script as 0 to 9."""
    return "".join(str(int(digit)) for digit in digits)
