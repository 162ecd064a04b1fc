"""Stage tokenize: text to memory-mapped token shards, with the tokenizer that made them beside them."""

import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tasks.errors import DataError
from tasks.params import Scratch, Tokenize, TrainedTokenizer
from tasks.problems import Problem
from tasks.progress import progress
from tasks.shards import (
    MANIFEST,
    atomic_file,
    atomic_folder,
    read_json,
    read_shards,
    require_space,
    sha256_of,
    write_json,
    write_parquet,
)
from tasks.vocabulary import too_long_reason, unread_reasons

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerBase

LEFT_OUT = "left_out.parquet"

# Test rows are not among them: they are read by what is exported, from text, as a caller's would be.
LEARNED_FROM = ("train", "validation")


def tokenize(
    clean: Path, tokens: Path, tally: Path, *, params: Tokenize, base: str | Scratch, problem: Problem
) -> None:
    """Write a shard of tokens for each split and shard of `clean`, and to `tally` how many rows were too long.

    Raises DataError where no row of a split is left.

    `tokens` holds `<split>-<shard>.arrow` (uncompressed Arrow IPC, so that train maps it into memory), `tokenizer/`,
    and a manifest with the signature: what the model's outputs will mean. Rows that nothing can be learned from are
    left out; `left_out.parquet` names them with their reasons, where there are any.
    """
    shards = read_shards(clean)
    # Uncompressed int32 tokens are about as large as the compressed text they come from, four times over.
    require_space(tokens, 4 * sum(shard.path.stat().st_size for shard in shards))
    learned = pl.concat([shard.read().select("split", *problem.signs) for shard in shards])
    signature = problem.signature(learned.filter(pl.col("split") == "train"))
    counts = {split: {"rows": 0, "tokens": 0, "truncated": 0} for split in LEARNED_FROM}
    left_out = []
    too_long = too_long_reason([" or ".join((*problem.inputs, *problem.target_texts))], params.max_tokens)
    with atomic_folder(tokens) as folder:
        tokenizer = _tokenizer(params, base, clean, problem)
        tokenizer.save_pretrained(folder / "tokenizer")
        backend = tokenizer.backend_tokenizer
        entries = []
        with progress("tokenize", total=len(learned), unit="rows") as advance:
            for number, shard in enumerate(shards):
                rows = shard.read()
                for split in LEARNED_FROM:
                    part = rows.filter(pl.col("split") == split)
                    reasons = unread_reasons(part, problem.texts, backend)
                    left_out.append(part.select("id", "split", reason=reasons).drop_nulls("reason"))
                    part = part.filter(reasons.is_null())
                    encoded = problem.encode(part, backend, signature, params.max_tokens)
                    if problem.reads_whole:
                        cut = encoded.filter("truncated").select("id", split=pl.lit(split), reason=pl.lit(too_long))
                        left_out.append(cut)
                        encoded = encoded.filter(~pl.col("truncated"))
                    path = folder / f"{split}-{number:05d}.arrow"
                    with atomic_file(path) as unfinished:
                        encoded.write_ipc(unfinished, compression="uncompressed")
                    entries.append({"name": path.name, "rows": len(encoded), "sha256": sha256_of(path)})
                    counts[split]["rows"] += len(encoded)
                    counts[split]["tokens"] += int(encoded["input_ids"].list.len().sum())
                    counts[split]["truncated"] += int(encoded["truncated"].sum())
                advance(len(rows))
        facts = {
            "max_tokens": params.max_tokens,
            "pad_id": _pad_id(tokenizer),
            "shards": entries,
            "signature": signature,
            "tidy": read_json(clean / MANIFEST)["tidy"],
            "vocabulary": len(tokenizer),
        }
        went = pl.concat(left_out)
        for split in LEARNED_FROM:
            counts[split]["left_out"] = int((went["split"] == split).sum())
            if counts[split]["left_out"] and not counts[split]["rows"]:
                commonest = went.filter(pl.col("split") == split)["reason"].mode().sort()[0]
                raise DataError(
                    f"Every row of the {split} split is left out, the most of them because {commonest}. Raise "
                    "tokenize.max_tokens, or take a base or a tokenizer that fits the texts."
                )
        if len(went):
            write_parquet(folder / LEFT_OUT, went)
        write_json(folder / "manifest.json", facts)
    write_json(tally, {"splits": counts, "vocabulary": len(tokenizer)})


def _tokenizer(params: Tokenize, base: str | Scratch, clean: Path, problem: Problem) -> "PreTrainedTokenizerBase":
    from tasks.errors import ParamsError
    from tasks.pretrained import load_tokenizer

    if isinstance(params.tokenizer, TrainedTokenizer):
        return train_tokenizer(params.tokenizer, _train_texts(clean, problem))
    if isinstance(base, Scratch):
        raise ParamsError(
            "tokenize.tokenizer is 'base', but base is a scratch architecture, which has none. Name an algorithm and a "
            "vocabulary: {algorithm: bpe, vocabulary: 8000}."
        )
    return load_tokenizer(base)


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """What fills up a batch. GPT-2's tokenizer and Llama's have no token for it, and any will do: the mask goes by
    length.
    """
    return next((number for number in (tokenizer.pad_token_id, tokenizer.eos_token_id) if number is not None), 0)


def _train_texts(clean: Path, problem: Problem) -> Iterator[str]:
    for shard in read_shards(clean):
        rows = shard.read().filter(pl.col("split") == "train")
        # What is read, and what has to be written.
        for column in (*problem.texts, *(problem.target_texts if problem.writes else ())):
            yield from rows[column].drop_nulls()


def train_tokenizer(params: TrainedTokenizer, texts: Iterable[str]) -> "PreTrainedTokenizerBase":
    """Learn a vocabulary from `texts`. BPE and Unigram fall back to bytes, so that no character is unknown to them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    names: list[str] = list(special.values())
    trainer: Any
    match params.algorithm:
        case "bpe":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=params.vocabulary,
                special_tokens=names,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
        case "wordpiece":
            tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
            texts = list(texts)
            inner = [f"##{letter}" for letter in _letters(texts, tokenizer)]
            trainer = trainers.WordPieceTrainer(
                vocab_size=params.vocabulary, special_tokens=names + inner, show_progress=False
            )
        case "unigram":
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
            pieces = _unigram_pieces(texts, byte_level, params.vocabulary - len(names))
            tokenizer = Tokenizer(models.Unigram([(name, 0.0) for name in names] + pieces, unk_id=names.index("[UNK]")))
            tokenizer.pre_tokenizer = byte_level
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.add_special_tokens(names)
            trainer = None
    if trainer is not None:
        tokenizer.train_from_iterator(texts, trainer)
    if params.algorithm == "wordpiece":
        tokenizer = _without_special_letters(tokenizer, names)
    first, last = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", first), ("[SEP]", last)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _letters(texts: Iterable[str], tokenizer: "Tokenizer") -> list[str]:
    """Every character that is left after normalisation, sorted."""
    return sorted(
        {letter for text in texts for letter in tokenizer.normalizer.normalize_str(text) if not letter.isspace()}
    )


def _without_special_letters(trained: "Tokenizer", names: list[str]) -> "Tokenizer":
    """The same tokenizer with no special tokens but `names`.

    The trainer numbers the letters inside of words (##a) in the order of a hash map with a random seed, and breaks ties
    by those numbers, so that each run gives another vocabulary. Letters declared special are numbered as given.
    """
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = trained.decoder
    tokenizer.add_special_tokens(names)
    return tokenizer


def _unigram_pieces(texts: Iterable[str], byte_level: "ByteLevel", vocabulary: int) -> list[tuple[str, float]]:
    """Pieces with their log probabilities (Kudo 2018), every byte among them.

    By sentencepiece on one thread, since tokenizers' own trainer gives other probabilities at each run.
    """
    import sentencepiece

    words = Counter(word for text in texts for word, _ in byte_level.pre_tokenize_str(text))
    counted = sorted(words.items()) + [(letter, 1) for letter in sorted(byte_level.alphabet())]
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as file:
        file.writelines(f"{word}\t{count}\n" for word, count in counted)
        file.flush()
        sentencepiece.SentencePieceTrainer.train(
            input=file.name,
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary + 1,  # its own unknown piece is left out below
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    learned = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(learned.id_to_piece(number), learned.get_score(number)) for number in range(1, learned.get_piece_size())]
