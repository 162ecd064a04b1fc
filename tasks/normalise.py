"""Text as a person reads it: one form of Unicode, one space between words, and no markup."""

from collections.abc import Callable, Sequence
from typing import Literal

import polars as pl

from tasks.params import Tidy

# What prints nothing and parts nothing: controls (of mis-decoded UTF-16, for instance), soft hyphens, zero-width spaces
# and no-break spaces, byte order marks, interlinear marks, and the bidirectional embeddings and overrides that Unicode
# advises against (UAX #9, 2.7). Zero-width joiners and non-joiners, left-to-right and right-to-left marks, isolates,
# variation selectors and tag characters stay: emoji, Persian, Hindi and mixed directions are spelt with them.
_INVISIBLE = (
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u{ad}\u{180e}\u{200b}\u{2060}-\u{2064}\u{202a}-\u{202e}\u{206a}-\u{206f}"
    r"\u{feff}\u{fff9}-\u{fffb}]"
)
_WHITE = r"[\s\x1c-\x1f]"
_UNTIDY = rf"{_WHITE}{{2}}|[^\S ]|[\x1c-\x1f]|^\s|\s$"

# Tags that begin a new line or cell in a browser, so that the words on both sides of one are two words. Those that a
# parser reads with rules of their own (title, textarea, …) stand here too: their words are words like others.
_NOT_ASCII = r"[^\x00-\x7f]"
_BLOCKS = (
    "address|article|aside|blockquote|body|br|button|caption|center|col|colgroup|dd|details|dialog|dir|div|dl|dt|"
    "fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hgroup|hr|html|iframe|img|input|legend|"
    "li|link|listing|main|menu|meta|nav|noembed|noframes|noscript|ol|optgroup|option|p|plaintext|pre|section|select|"
    "summary|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul|video|xmp"
)
_INLINE = (
    "a|abbr|acronym|applet|area|audio|b|base|bdi|bdo|big|canvas|cite|code|data|datalist|del|dfn|em|embed|font|i|ins|kbd|"
    "label|map|mark|marquee|math|meter|nobr|object|output|param|picture|progress|q|rp|rt|ruby|s|samp|script|slot|small|"
    r"source|span|strike|strong|style|sub|sup|svg|template|time|track|tt|u|var|wbr|[a-z]+(?:-[a-z0-9]+)+"
)
# An attribute has a value, or is one of those that need none: `<b and c>` is no tag.
_ATTRIBUTES = (
    r"""(?:\s+(?:[a-z_:@][\w:@.-]*\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'=<>`]+)|allowfullscreen|async|autofocus|autoplay|"""
    r"checked|compact|controls|default|defer|disabled|hidden|ismap|itemscope|loop|multiple|muted|novalidate|nowrap|open|"
    r"readonly|required|reversed|selected))*\s*/?"
)
_BLOCK_TAG = rf"(?i)</?(?:{_BLOCKS}){_ATTRIBUTES}>"
_INLINE_TAG = rf"(?i)<(/?(?:{_INLINE}){_ATTRIBUTES})>"
_COMMENT = r"(?is)<!--.*?-->|<!doctype\b[^>]*>|<\?xml\b[^>]*>"
_ENTITY = r"&(#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[a-zA-Z][a-zA-Z0-9]{1,31};)"
_MARKUP = "|".join(f"(?:{pattern})" for pattern in (_BLOCK_TAG, _INLINE_TAG, _COMMENT, _ENTITY))


def normalised(rows: pl.DataFrame, columns: Sequence[str], params: Tidy) -> pl.DataFrame:
    """The rows with the texts of `columns` in one form, without markup where `params` say so."""
    texts = [strip_markup(rows[column]) if params.strip_markup else rows[column] for column in columns]
    return rows.with_columns(normalise(text, params.unicode) for text in texts)


def untidy(column: str, params: Tidy) -> pl.Expr:
    """Whether `normalised` may change a text. Most are as they should be, and one look says so for all of them."""
    patterns = (_INVISIBLE, _NOT_ASCII, _UNTIDY, *((_MARKUP,) if params.strip_markup else ()))
    return pl.any_horizontal(pl.col(column).str.contains(pattern) for pattern in patterns)


def normalise(texts: pl.Series, form: Literal["NFC", "NFKC"]) -> pl.Series:
    """Unicode in one form, without what is invisible, one space for any white space and none at either end.

    Normalising twice changes nothing more.
    """
    texts = _where(_INVISIBLE, texts, lambda some: some.str.replace_all(_INVISIBLE, ""))
    texts = _where(_NOT_ASCII, texts, lambda some: some.str.normalize(form))
    return _where(_UNTIDY, texts, lambda some: some.str.replace_all(rf"{_WHITE}+", " ").str.strip_chars(" "))


def strip_markup(texts: pl.Series) -> pl.Series:
    """The words of texts that hold HTML tags or entities, as a browser would show them; other texts as they are.

    What is no HTML stays: `a < b`, `<3`, `<unknown>`, `AT&T`. Read once: `&amp;lt;` becomes `&lt;`.
    """
    return _where(_MARKUP, texts, _without_markup)


def _without_markup(texts: pl.Series) -> pl.Series:
    from selectolax.lexbor import LexborHTMLParser

    prepared = texts.to_frame().select(
        pl.col(texts.name)
        .str.replace_all(r"[\x00-\x08]", "")
        .str.replace_all(_COMMENT, "")
        # Before the parser, whose time grows with the square of the nesting of blocks.
        .str.replace_all(_BLOCK_TAG, " ")
        # Hide what is meant as markup, disarm what is not, and bring it back.
        .str.replace_all(_INLINE_TAG, "\x01$1\x02")
        .str.replace_all("<", "&lt;", literal=True)
        .str.replace_many(["\x01", "\x02"], ["<", ">"])
        .str.replace_all(_ENTITY, "\x03$1")
        .str.replace_all("&", "&amp;", literal=True)
        .str.replace_all("\x03", "&", literal=True)
    )

    def words(html: str) -> str:
        parser = LexborHTMLParser(html)
        for unread in parser.css("script, style, template"):
            unread.decompose()
        return parser.root.text() if parser.root else ""

    return pl.Series(texts.name, [words(html) for html in prepared.to_series()], dtype=pl.String)


def _where(pattern: str, texts: pl.Series, change: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Change the texts that match, which are few, and leave the others alone."""
    matching = texts.str.contains(pattern)
    if not matching.any():
        return texts
    return texts.scatter(matching.arg_true(), change(texts.filter(matching)))
