"""Stage train: transformers' Trainer on memory-mapped tokens, resumable at any step to the same bits.

What makes it fast on a processor: batches of like length (no padding), bf16 matmuls where the processor has them, no
dropout (its random numbers cost as much as the forward pass), and frozen embeddings (half of MiniLM's weights).
"""

import contextlib
import fcntl
import hashlib
import inspect
import json
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
import transformers
from torch.utils.data import Dataset, Sampler

from tasks.adapters import adapt
from tasks.augment import Change, augmenting
from tasks.errors import LineStopped, ParamsError
from tasks.params import Scratch, Train
from tasks.pretrained import quiet
from tasks.problems import Problem, Signature
from tasks.problems._text import specials
from tasks.shards import atomic_folder, explained_when_full, read_json, require_space, sha256_of, write_json
from tasks.tokens import load_tokens
from tasks.training import Journal, Progress, last_whole_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Batches are sorted by length within this many of them, and their order is drawn anew: long enough for batches without
# padding, short enough that no two epochs have the same batches.
_BATCHES_SORTED_TOGETHER = 50


def train(
    tokens: Path,
    checkpoint: Path,
    report: Path,
    curve: Path,
    live: Path,
    work: Path,
    *,
    params: Train,
    base: str | Scratch,
    threads: int,
    problem: Problem,
) -> None:
    """Write the weights of the best epoch to `checkpoint`, and to `report` and `curve` how they were found.

    `work` keeps unfinished training under a hash of all that decides its result; killed and run again, it goes on from
    the last whole checkpoint there and ends in the same bytes. `live` is DVCLive's folder, which holds rates.
    """
    facts = read_json(tokens / "manifest.json")
    taught = problem.learned(load_tokens(tokens, "train"), params.seed)
    learned = problem.packed(taught, facts["max_tokens"], params.seed)
    change = _augmenting(tokens, params, problem, learned)
    # Drawn like what is learned from. All windows without an answer, of which long passages have many, would outweigh
    # the others, and the best epoch would be the one that is least sure of any answer.
    held_out = problem.learned(load_tokens(tokens, "validation"), params.seed)
    torch.set_num_threads(threads)
    quiet()
    precision = choose_precision(params.precision)
    unfinished = work / _key(tokens, params, base, threads, precision)
    with only_one(work):
        for other in work.glob("*/"):
            if other != unfinished:  # of other data or params: nothing will ever go on from it
                shutil.rmtree(other)
        model = build(problem, base, facts["vocabulary"], facts["signature"], params)
        _check_reach(model, base, facts)
        # Two checkpoints with their optimizer's state, the best weights, and the result: about ten times the weights.
        require_space(checkpoint, 10 * sum(p.numel() * p.element_size() for p in model.parameters()))
        journal = Journal(unfinished, live, params, threads)
        trainer = make_trainer(
            model, learned, held_out, params, precision, problem, facts["pad_id"], unfinished, journal, change
        )
        resumed = last_whole_checkpoint(unfinished)
        has_ended = resumed is not None and journal.restore(resumed)
        if not has_ended:
            with contextlib.closing(journal), explained_when_full(unfinished):
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        _publish(tokens, checkpoint, journal.best_folder, facts, base, problem)
        write_json(report, {**journal.summary(), "precision": precision, "threads": threads})
        write_json(curve, journal.curve())
        shutil.rmtree(unfinished)


def _augmenting(tokens: Path, params: Train, problem: Problem, learned: pl.DataFrame) -> Change | None:
    """None where rows are learned from as they are."""
    if params.augment is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokens / "tokenizer" / "tokenizer.json"))
    return augmenting(problem, params.augment, specials(tokenizer), params.seed, learned)


def _publish(
    tokens: Path, checkpoint: Path, best: Path, facts: dict[str, Any], base: str | Scratch, problem: Problem
) -> None:
    """Put the best weights beside the tokenizer and what their outputs mean."""
    with atomic_folder(checkpoint) as folder:
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(best / name, folder / name)
        shutil.copytree(tokens / "tokenizer", folder / "tokenizer")
        kept = {name: facts[name] for name in ("max_tokens", "pad_id", "signature", "tidy", "vocabulary")}
        write_json(folder / "signature.json", {**kept, "base": _json(base), "problem": problem.name})


@contextlib.contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold `work` alone: two trainings in it would clear away each other's checkpoints. Raises LineStopped at once."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LineStopped(
                f"Another training of this model is running in {work}. Wait for it, or end it: its checkpoints stay."
            ) from None
        yield


def choose_precision(asked: str) -> str:
    """`auto` is bf16 where the processor multiplies it natively, else fp32."""
    if asked != "auto":
        return asked
    has = torch.cpu.get_capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "fp32"


def build(
    problem: Problem, base: str | Scratch, vocabulary: int, signature: Signature, params: Train
) -> "PreTrainedModel":
    """The model with its frozen parts, its new weights drawn from the seed. Raises ParamsError for a name in `freeze`
    that no module has.
    """
    torch.manual_seed(params.seed)
    model = problem.build(base, vocabulary, signature, dropout=params.dropout, attention=params.attention)
    if params.lora:
        adapt(model, params.lora)
    body = model.base_model
    for prefix in params.freeze:
        frozen = [weights for name, weights in body.named_parameters() if f"{name}.".startswith(f"{prefix}.")]
        if not frozen:
            known = sorted({".".join(name.split(".")[:3]) for name, _ in body.named_parameters()})
            raise ParamsError(
                f"train.freeze names {prefix!r}, but the model has no such module. Known: {', '.join(known)}."
            )
        for weights in frozen:
            weights.requires_grad_(False)
    return model


def _check_reach(model: "PreTrainedModel", base: str | Scratch, facts: dict[str, Any]) -> None:
    """Raises ParamsError where rows are longer, or tokens more, than the model has places for."""
    max_tokens, positions = facts["max_tokens"], getattr(model.config, "max_position_embeddings", None)
    if positions is not None and 0 < positions < max_tokens:
        known, more = (
            ("base.max_positions", f"base.max_positions to {max_tokens}")
            if isinstance(base, Scratch)
            else (f"base {base!r}", "base to one that reads more")
        )
        raise ParamsError(
            f"tokenize.max_tokens is {max_tokens}, but {known} gives the model {positions} positions. Set "
            f"tokenize.max_tokens to {positions} at most, or {more}."
        )
    vocabulary, known_tokens = facts["vocabulary"], len(model.get_input_embeddings().get_parameter("weight"))
    if vocabulary > known_tokens:
        raise ParamsError(
            f"tokenize.tokenizer has {vocabulary:,} tokens, but base {base!r} has weights for {known_tokens:,}. Set "
            "tokenize.tokenizer to base, or to fewer tokens; or begin with a base from scratch."
        )


class Rows(Dataset[int]):
    """Row numbers. The collator fetches all rows of a batch at once, which is what a column store does well."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> int:
        return row


class LengthGroupedSampler(Sampler[int]):
    """Row numbers in an order drawn from (seed, epoch) alone, rows of like length next to each other.

    transformers' own draws from the global generator, which a resumed run has left elsewhere.
    """

    def __init__(self, lengths: np.ndarray[Any, Any], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The one that is being drawn; a batch is fetched while it is."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self._seed, self._epoch))
        order = random.permutation(len(self._lengths))
        together = self._batch_size * _BATCHES_SORTED_TOGETHER
        batches: list[np.ndarray[Any, Any]] = []
        for start in range(0, len(order), together):
            group = order[start : start + together]
            group = group[np.argsort(-self._lengths[group], kind="stable")]
            batches += [group[first : first + self._batch_size] for first in range(0, len(group), self._batch_size)]
        # Only the last batch may be short, or the loader would cut all that follow at other places.
        whole = [batch for batch in batches if len(batch) == self._batch_size]
        short = [batch for batch in batches if len(batch) < self._batch_size]
        for number in random.permutation(len(whole)):
            yield from whole[number].tolist()
        for batch in short:
            yield from batch.tolist()


def make_trainer(
    model: "PreTrainedModel",
    learned: pl.DataFrame,
    held_out: pl.DataFrame,
    params: Train,
    precision: str,
    problem: Problem,
    pad_id: int,
    folder: Path,
    journal: Journal,
    change: Change | None,
) -> transformers.Trainer:
    """transformers' Trainer over the encoded rows, with this project's sampler, checkpoints and journal."""
    held_out = held_out.sort(pl.col("input_ids").list.len(), "id")
    lengths = learned["input_ids"].list.len().to_numpy()
    sampler = LengthGroupedSampler(lengths, params.batch_size, params.seed)
    read = inspect.signature(model.forward).parameters

    def collate(encoded: pl.DataFrame, rows: list[int]) -> dict[str, torch.Tensor]:
        batch = encoded[rows]
        journal.saw(batch["id"])
        return read_by_model(change(batch, rows, sampler.epoch) if change else batch)

    def read_by_model(encoded: pl.DataFrame) -> dict[str, torch.Tensor]:
        # What only the exported module reads stays here: not every architecture knows of it.
        arrays = problem.batch(encoded, pad_id)
        return {name: torch.from_numpy(array) for name, array in arrays.items() if name in read}

    class LineTrainer(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
            return sampler

        def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader[Any]:
            return torch.utils.data.DataLoader(
                Rows(len(held_out)),
                batch_size=params.batch_size,
                collate_fn=lambda rows: read_by_model(held_out[rows]),
            )

        def training_step(
            self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> torch.Tensor:
            loss = super().training_step(model, inputs, num_items_in_batch)
            # Rows that are packed have no padding, and no mask of it.
            mask = inputs.get("attention_mask")
            journal.learned(float(loss), inputs["input_ids"].numel() if mask is None else int(mask.sum()))
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        seed=params.seed,
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation,
        learning_rate=params.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=params.warmup,  # below 1 it is a share of all steps
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_gradient_norm,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=params.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = LineTrainer(
        model=model,
        args=arguments,
        train_dataset=Rows(len(learned)),
        eval_dataset=Rows(len(held_out)),
        data_collator=lambda rows: collate(learned, rows),
        callbacks=[journal, Progress()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _key(tokens: Path, params: Train, base: str | Scratch, threads: int, precision: str) -> str:
    """A hash of all that decides the result: data, params, code, versions of the frameworks."""
    here = Path(__file__).parent
    code = [here / f"{name}.py" for name in ("adapters", "augment", "pretrained", "tokens", "train", "training")]
    parts = {
        "base": _json(base),
        "code": [sha256_of(path) for path in (*code, *sorted(here.glob("problems/*.py")))],
        "params": params.model_dump(mode="json"),
        "precision": precision,
        "threads": threads,
        "tokens": sha256_of(tokens / "manifest.json"),
        "versions": [torch.__version__, transformers.__version__, *([version("peft")] if params.lora else [])],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _json(base: str | Scratch) -> Any:
    return base if isinstance(base, str) else base.model_dump(mode="json")
