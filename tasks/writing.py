"""How a decoder writes: token by token, each from what the cache remembers of those before it.

A decoder alone goes on with a prompt. One that has an encoder writes what the encoder has read, in another language.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.problems._decoder import KEPT, KEPT_ON
from tasks.problems._encoder_decoder import START
from tasks.problems._text import ends, specials

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

_KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the likeliest at temperature 0, else from the `top_k` likeliest (0: all of them)
    and of those from the fewest that have `top_p` of the probability together (Holtzman et al. 2020).
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


# What the monitor reads of it in the journal, where it stands beside the answer.
SAMPLING = pl.Schema({"sampling": pl.Struct({"temperature": pl.Float64()})})


def prompts_of(
    texts: Sequence[str], tokenizer: "Tokenizer", max_tokens: int, new: int, *, cut: bool
) -> list[list[int]]:
    """Token numbers to go on from. What leaves no room for `new` more in the window loses its beginning, or is refused.

    Raises DataError, naming the text's place, where it may not be cut.
    """
    first, _ = ends(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    prompts = []
    for place, encoding in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        ids = [first, *encoding.ids]
        if len(ids) + new > max_tokens:
            if not cut:
                raise DataError(
                    f"Prompt {place + 1} has {len(ids)} tokens, and {new} more would not fit into the {max_tokens} "
                    "that the model reads. Shorten it, or ask for fewer new tokens."
                )
            ids = ids[new - max_tokens :]
        prompts.append(ids)
    return prompts


def sources_of(
    texts: Sequence[str], tokenizer: "Tokenizer", max_tokens: int, new: int, *, cut: bool
) -> list[list[int]]:
    """Token numbers for an encoder to read. What is longer than the model loses its end, or is refused.

    Raises DataError, naming the text's place, where it may not be cut; and where more than the model writes is asked.
    """
    if new >= max_tokens:
        most = max_tokens - 1  # beside the start
        raise DataError(f"{new} new tokens would not fit into the {most} that the model writes. Ask for fewer.")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    encodings = tokenizer.encode_batch(list(texts))
    for place, encoding in enumerate(encodings):
        if encoding.overflowing and not cut:
            num = len(encoding.ids) + sum(len(more.ids) for more in encoding.overflowing)
            raise DataError(
                f"Prompt {place + 1} has about {num} tokens, which would not fit into the {max_tokens} that the model "
                "reads, and half a translation is none. Shorten it, or translate it in parts."
            )
    return [encoding.ids for encoding in encodings]


def write(
    session: "InferenceSession",
    prompts: Sequence[Sequence[int]],
    last: int,
    sampling: Sampling,
    heard: Callable[[int, int], None] = lambda _row, _token: None,
    never: Sequence[int] = (),
) -> list[list[int]]:
    """The tokens that follow each prompt, side by side, one at least, up to `last` (left out) or `max_new_tokens`.

    `heard` gets the prompt's number and each token as soon as it is drawn; what it raises ends the writing. A prompt's
    draws depend on the seed and on no other prompt. Of the tokens `never` none is drawn.
    """
    written: list[list[int]] = [[] for _ in prompts]
    if not prompts or sampling.max_new_tokens < 1:
        return written
    draws = [np.random.default_rng((sampling.seed, row)) for row in range(len(prompts))]
    kind: type[_Translating] | type[_GoingOn] = _Translating if has_encoder(session) else _GoingOn
    cache = kind(session, prompts)
    next_B: NDArray[np.int64] | None = None
    is_open_B = np.ones(len(prompts), np.bool_)
    for step in range(sampling.max_new_tokens):
        logits_BV = cache.read(next_B)
        logits_BV[:, list(never)] = -np.inf
        if step == 0:
            logits_BV[:, last] = -np.inf  # whoever asks for more of a text is not told that it is over
        next_B = np.array([_drawn(logits_BV[row], sampling, draws[row]) for row in range(len(prompts))])
        is_open_B &= next_B != last
        for row in np.flatnonzero(is_open_B):
            written[row].append(int(next_B[row]))
            heard(int(row), int(next_B[row]))
        # What has ended is no longer looked at, and keeps its place beside the others.
        if not is_open_B.any():
            break
    return written


@dataclass(frozen=True)
class Writer:
    """A decoder with the tokenizer that it learned with, and how many tokens it reads at most, and writes at most."""

    session: "InferenceSession"
    tokenizer: "Tokenizer"
    max_tokens: int

    @property
    def translates(self) -> bool:
        """Whether it writes what a prompt says in another language, and not what follows on it."""
        return has_encoder(self.session)

    def prompts(self, texts: Sequence[str], new: int, *, cut: bool) -> list[list[int]]:
        """What `prompts_of` says, or `sources_of` for one that translates."""
        return (sources_of if self.translates else prompts_of)(texts, self.tokenizer, self.max_tokens, new, cut=cut)

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens can be written for this prompt."""
        return self.max_tokens - (1 if self.translates else len(prompt))

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        heard: Callable[[int, int], None] = lambda _row, _token: None,
    ) -> list[list[int]]:
        """What `write` says, with tokens that stand for text alone."""
        _, last = ends(self.tokenizer)
        never = [token for token in specials(self.tokenizer) if token != last]
        return write(self.session, prompts, last, sampling, heard, never)


def empty(session: "InferenceSession", name: str, num_rows: int, num_places: int) -> NDArray[Any]:
    """Zeros for an input of the model: a row each, and `num_places` where else the model leaves a size open."""
    given = next(one for one in session.get_inputs() if one.name == name)
    sizes = [size if isinstance(size, int) else num_places for size in given.shape[1:]]
    return np.zeros((num_rows, *sizes), _KINDS[given.type])


def has_encoder(session: "InferenceSession") -> bool:
    """Whether the model reads apart from what it writes."""
    return any(one.name == "past_memory_mask" for one in session.get_inputs())


class _Cache:
    """The keys and values of what was read or written, handed back to the model as they came from it."""

    def __init__(self, session: "InferenceSession", num_rows: int) -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._names = [one.name for one in session.get_inputs() if one.name.startswith(KEPT)]
        self._kept = [OrtValue.ortvalue_from_numpy(empty(session, name, num_rows, 0)) for name in self._names]

    def logits(self, given: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The logits (BV) for what comes after what is given, which is remembered from now on."""
        from onnxruntime import OrtValue

        feed = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
        feed.update(zip(self._names, self._kept, strict=True))
        wanted = ["logits", *(KEPT_ON + name.removeprefix(KEPT) for name in self._names)]
        logits, *self._kept = self._session.run_with_ort_values(wanted, feed)
        return np.asarray(logits.numpy())


class _GoingOn:
    """A decoder, and which places of its cache hold something."""

    def __init__(self, session: "InferenceSession", prompts: Sequence[Sequence[int]]) -> None:
        self._ids_BT, self._mask_BT = _side_by_side(prompts)
        self._cache = _Cache(session, len(prompts))
        self._past_mask_BP = self._mask_BT[:, :0]

    def read(self, next_B: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """The logits (BV) for what comes after the prompts, where nothing was written yet, or after these tokens."""
        if next_B is not None:
            self._past_mask_BP = np.concatenate([self._past_mask_BP, self._mask_BT], 1)
            self._ids_BT, self._mask_BT = next_B[:, None], np.ones((len(next_B), 1), np.int64)
        return self._cache.logits(
            {
                "input_ids": self._ids_BT,
                "attention_mask": self._mask_BT,
                "counted": np.zeros_like(self._mask_BT),
                "past_mask": self._past_mask_BP,
            }
        )


class _Translating:
    """An encoder, which has nothing to read after the first time, and its decoder."""

    def __init__(self, session: "InferenceSession", prompts: Sequence[Sequence[int]]) -> None:
        self._ids_BT, self._mask_BT = _side_by_side(prompts)
        self._cache = _Cache(session, len(prompts))
        self._past_mask_BP = self._mask_BT[:, :0]

    def read(self, next_B: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """The logits (BV) for how the translations begin, where nothing was written yet, or for what comes next."""
        if next_B is None:
            next_B = np.full(len(self._ids_BT), START)
        else:
            self._past_mask_BP = np.concatenate([self._past_mask_BP, self._mask_BT], 1)
            self._ids_BT, self._mask_BT = self._ids_BT[:, :0], self._mask_BT[:, :0]
        return self._cache.logits(
            {
                "input_ids": self._ids_BT,
                "attention_mask": self._mask_BT,
                "written": next_B[:, None],
                "written_mask": np.ones((len(next_B), 1), np.int64),
                "past_memory_mask": self._past_mask_BP,
            }
        )


def _side_by_side(prompts: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens (BT), and which of them are no padding."""
    lengths_B = np.array([len(prompt) for prompt in prompts])
    mask_BT = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
    ids_BT = np.zeros_like(mask_BT)
    ids_BT[mask_BT == 1] = np.concatenate([np.asarray(prompt) for prompt in prompts])
    return ids_BT, mask_BT


def _drawn(logits_V: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    if sampling.temperature <= 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled_V, kind="stable")
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    weight = np.exp(scaled_V[order] - scaled_V[order[0]])
    share = np.cumsum(weight) / weight.sum()
    kept = order[: int(np.searchsorted(share, sampling.top_p)) + 1] if sampling.top_p < 1 else order
    reached = share[: len(kept)] / share[len(kept) - 1]
    return int(kept[min(int(np.searchsorted(reached, random.random(), side="right")), len(kept) - 1)])


class Speaker:
    """Says the tokens of one text as they come: each piece as soon as its characters are whole."""

    def __init__(self, tokenizer: "Tokenizer", say: Callable[[str], None]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._say = tokenizer, say
        self._stream = DecodeStream(skip_special_tokens=True)
        self._waiting: list[int] = []

    def hear(self, token: int) -> None:
        """Say what this token makes whole."""
        self._waiting.append(token)
        if piece := self._stream.step(self._tokenizer, token):
            self._waiting.clear()
            self._say(piece)

    def end(self) -> None:
        """Say what is left, with a replacement character for bytes that have become none."""
        if piece := self._tokenizer.decode(self._waiting):
            self._say(piece)
