"""Fine-tuning: tokens a second and accuracy, this project's stage beside a stock transformers Trainer script.

    python -m tests.benchmarks.training [--epochs 2]

Both learn from the same rows of data/reviews/clean (made by `make run`) for as many epochs with batches of the same
size, one after the other on the same machine, and answer the same test rows. Only tokens that are no padding count; for
both, the time of steps counts, and that of evaluations and checkpoints does not.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import polars as pl
import torch
import transformers

from tasks import problems
from tasks.params import load_model
from tasks.paths import Paths
from tasks.pretrained import locate, quiet
from tasks.shards import read_json, read_rows
from tasks.tokens import load_tokens
from tasks.train import train


def main() -> None:
    """Print a line for each, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=None, help="as params.yaml says, where not given")
    epochs = parser.parse_args().epochs
    quiet()
    paths, params = Paths("reviews"), load_model("reviews")
    section = params.train.model_copy(update={"epochs": epochs or params.train.epochs, "early_stopping": None})
    torch.set_num_threads(params.threads)
    test = read_rows(paths.clean).filter(pl.col("split") == "test")
    figures = {"stock Trainer": stock(paths, section, test), "modelmill": ours(paths, params, section, test)}
    print(f"{'':15} {'tokens/s':>9} {'accuracy':>9}   ({section.epochs} epochs, {len(test)} test rows)")
    for name, (rate, accuracy) in figures.items():
        print(f"{name:15} {rate:9.0f} {accuracy:9.4f}")
    print(f"{'ratio':15} {figures['modelmill'][0] / figures['stock Trainer'][0]:9.2f}")


def stock(paths: Paths, section, test: pl.DataFrame) -> tuple[float, float]:
    """What a Trainer script from a tutorial does: fp32, a padding collator, rows in random order, rate 5e-5."""
    base = locate(load_model(paths.model).base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    learned = load_tokens(paths.tokens, "train")
    rows = [
        {"input_ids": ids, "labels": label}
        for ids, label in zip(learned["input_ids"].to_list(), learned["label"].to_list(), strict=True)
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)

    class Stopwatch(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.started = time.monotonic()

        def on_train_end(self, *_, **__):
            self.seconds = time.monotonic() - self.started

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=section.epochs,
            per_device_train_batch_size=section.batch_size,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        collator = transformers.DataCollatorWithPadding(tokenizer)
        trainer = transformers.Trainer(model, arguments, collator, train_dataset=rows, callbacks=[watch])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    labels = read_json(paths.tokens / "manifest.json")["signature"]["labels"]
    num_tokens = section.epochs * int(learned["input_ids"].list.len().sum())
    return num_tokens / watch.seconds, _accuracy(model, tokenizer, test, labels)


def ours(paths: Paths, params, section, test: pl.DataFrame) -> tuple[float, float]:
    """The stage train, as the line runs it."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        train(
            paths.tokens,
            out / "checkpoint",
            out / "train.json",
            out / "loss.json",
            out / "live",
            out / "work",
            params=section,
            base=params.base,
            threads=params.threads,
            problem=problems.load(params.problem),
        )
        rate = json.loads((out / "live" / "metrics.json").read_text())["train"]["mean_tokens_per_second"]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(out / "checkpoint")
        tokenizer = transformers.AutoTokenizer.from_pretrained(out / "checkpoint" / "tokenizer")
        labels = read_json(paths.tokens / "manifest.json")["signature"]["labels"]
        return rate, _accuracy(model, tokenizer, test, labels)


def _accuracy(model, tokenizer, test: pl.DataFrame, labels: list[str]) -> float:
    right = 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(test), 64):
            part = test[start : start + 64]
            inputs = tokenizer(
                part["text"].to_list(), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            answers = [labels[k] for k in model(**inputs).logits.argmax(-1).tolist()]
            right += sum(a == b for a, b in zip(answers, part["label"], strict=True))
    return right / len(test)


if __name__ == "__main__":
    main()
