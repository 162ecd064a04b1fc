"""What each rival serves: the release's ONNX model with its tokenizer, on all cores, its batches sorted by length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Model:
    """Answers lists of texts."""

    def __init__(self, release: Path, threads: int = 2, batch: int = 32) -> None:
        facts = json.loads((release / "runtime.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(release / "model.onnx"),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # as tasks.runtime has it
        )
        self._tokenizer = Tokenizer.from_file(str(release / "tokenizer.json"))
        self._tokenizer.enable_truncation(facts["max_tokens"])
        self._tokenizer.no_padding()
        self._labels = facts["signature"]["labels"]
        self._batch = batch

    def answer(self, texts: list[str]) -> list[dict[str, Any]]:
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        answers: list[dict[str, Any]] = [{} for _ in texts]
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            width = max(len(ids[row]) for row in rows)
            tokens = np.zeros((len(rows), width), dtype=np.int64)
            mask = np.zeros_like(tokens)
            for place, row in enumerate(rows):
                tokens[place, : len(ids[row])] = ids[row]
                mask[place, : len(ids[row])] = 1
            logits = self._session.run(["logits"], {"input_ids": tokens, "attention_mask": mask})[0]
            exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
            for row, probabilities in zip(rows, exponents / exponents.sum(axis=1, keepdims=True), strict=True):
                best = int(probabilities.argmax())
                answers[row] = {"label": self._labels[best], "probabilities": probabilities.tolist()}
        return answers
