"""params.yaml as frozen, closed types. Whatever changes a result stands in that file: no field has a default.

`load` reports every mistake at once. Secrets never stand here: a URL may name an environment variable (`$NAME`).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from tasks.errors import ParamsError, did_you_mean
from tasks.mistakes import listed, mistakes_of

MODEL_NAME = r"^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$"

# Windows and Git both refuse some of these as a path or a ref; the others are this project's own folders.
RESERVED_NAMES = frozenset({"samples", "code", "aux", "con", "nul", "prn", "head", "index", "portal"})

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

# An expectation as Great Expectations names it, and its arguments.
Expectation = Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]


class Section(BaseModel):
    """A block of params.yaml: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Collect(Section):
    """What every source has in common: which columns the problem gets, and from which rows."""

    columns: Annotated[dict[str, Text], Field(min_length=1)]  # the problem's name: a column, or SQL over the columns
    where: Text | None  # SQL over the source's columns; null takes every row
    rows_per_shard: Count


FileFormat = Literal["auto", "csv", "jsonl", "parquet", "text", "image", "audio"]


class CollectFiles(Collect):
    """A path, folder or glob on this machine."""

    path: Text
    format: FileFormat


class CollectSql(Collect):
    """A query on any database that SQLAlchemy knows."""

    url: Text  # `$NAME` is taken from the environment; a password written out here is refused
    query: Text
    watermark: Text | None  # a column that only grows; null pins the whole result


class CollectObjects(Collect):
    """Objects behind a URL: s3://, gs://, http(s)://, with credentials from the environment."""

    url: Text
    format: FileFormat


class CollectPackage(Collect):
    """A file inside an installed Python package."""

    package: Text
    file: Text
    format: FileFormat


class CollectFeedback(Collect):
    """Predictions whose right answers came later, out of the server's journal."""

    model: Text  # whose predictions
    url: Text | None  # the journal, as flows.journal.url has it; null takes .mill/journal.sqlite


COLLECT: Mapping[str, type[Collect]] = {
    "files": CollectFiles,
    "sql": CollectSql,
    "objects": CollectObjects,
    "package": CollectPackage,
    "feedback": CollectFeedback,
}


class Validate(Section):
    """Expectations on rows and on the table, and how much quarantine is too much."""

    rows: list[Expectation]
    table: list[Expectation]
    max_quarantined: Share
    max_quarantined_per_label: Share


class NearDuplicates(Section):
    """MinHash over word shingles: two rows are near where their estimated Jaccard similarity reaches `threshold`."""

    threshold: Share
    num_permutations: Annotated[int, Field(ge=16, le=512)]
    shingle_words: Annotated[int, Field(ge=1, le=20)]
    seed: Seed


class SplitByHash(Section):
    """Shares drawn by a hash of the row's id, or of `column`, so that a group never straddles two splits."""

    by: Literal["id", "group"]
    column: Text | None
    validation: Share
    test: Share
    seed: Seed

    @model_validator(mode="after")
    def _column_goes_with_group(self) -> Self:
        if (self.by == "group") != (self.column is not None):
            raise ValueError("by: group needs a column, and by: id takes none (column: null)")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave no share for train")
        return self


class SplitByTime(Section):
    """Fixed moments, so that later data never moves an earlier row."""

    by: Literal["time"]
    column: Text
    validation_from: Text
    test_from: Text


class Tidy(Section):
    """What is done to a text before a model reads it: to those it learns from, and to those it is asked about."""

    unicode: Literal["NFC", "NFKC"]
    strip_markup: bool
    redact: list[Literal["email", "phone", "ip", "card", "iban"]]
    phone_regions: list[Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]]


class Clean(Tidy):
    """How texts are tidied and compared, and how rows are split."""

    min_chars: Annotated[int, Field(ge=0)]
    max_chars: Count
    near_duplicates: NearDuplicates | None
    min_rows: Count
    split: Annotated[SplitByHash | SplitByTime, Field(discriminator="by")]


class TrainedTokenizer(Section):
    """A tokenizer learned from the train split."""

    algorithm: Literal["bpe", "wordpiece", "unigram"]
    vocabulary: Annotated[int, Field(ge=300)]


class Tokenize(Section):
    """Which tokenizer, and how long a row may be."""

    tokenizer: Literal["base"] | TrainedTokenizer
    max_tokens: Annotated[int, Field(ge=8)]


class EarlyStopping(Section):
    """Stop after `patience` evaluations that improve validation loss by less than `min_improvement`."""

    patience: Count
    min_improvement: NotNegative


class Augment(Section):
    """How much of a row chance changes before it is learned from, in each epoch anew."""

    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]  # of its tokens, left out
    swap: Share  # of its pairs of neighbouring tokens, exchanged


class Lora(Section):
    """Low-rank additions that learn instead of the weights, and are merged into them at the end."""

    rank: Count
    alpha: Count  # they count alpha / rank times
    dropout: Share
    targets: Annotated[list[Text], Field(min_length=1)]  # linear modules by the end of their name: q_proj, query


class Train(Section):
    """How the weights are found."""

    seed: Seed
    epochs: Count
    learning_rate: Positive
    batch_size: Count
    gradient_accumulation: Count
    warmup: Share
    weight_decay: NotNegative
    max_gradient_norm: Positive
    dropout: Share
    attention: Literal["eager", "sdpa"]
    augment: Augment | None
    freeze: list[Text]  # modules by name, a prefix each: embeddings, encoder.layer.0
    lora: Lora | None
    precision: Literal["auto", "bf16", "fp32"]  # auto is bf16 where the processor multiplies it
    early_stopping: EarlyStopping | None
    checkpoint_steps: Count


class Export(Section):
    """Which variants are made, and how far one may stand from the checkpoint; the first within the limits is kept."""

    variants: Annotated[list[Literal["fp32", "int8", "int8_blocks"]], Field(min_length=1)]  # tasks/compression.py
    check_rows: Count
    max_probability_difference: Share
    max_changed_answers: Share
    max_perplexity_difference: (
        NotNegative | None
    )  # 0.01: 1 % above the checkpoint's; null where no tokens are predicted


class Evaluate(Section):
    """Which intervals, slices and baselines the report has."""

    confidence: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Seed
    slices: list[Text]  # columns of the clean rows, or length_quartile
    calibration_bins: Annotated[int, Field(ge=2)]


class Card(Section):
    """What the model card says that no measurement can."""

    licence: Text
    language: Text
    purpose: Text
    limits: Text


class Deploy(Section):
    """The absolute gate, and what the release carries besides the model."""

    floors: dict[str, float]
    must_beat_baselines: bool
    golden_rows: Count
    reference_rows: Count
    card: Card


class Scratch(Section):
    """A transformer with no weights yet."""

    architecture: Text  # transformers' model_type: bert, distilbert, …
    hidden_size: Count
    layers: Count
    heads: Count
    feed_forward_size: Count
    max_positions: Count


class Model(Section):
    """One line, from a source to a release."""

    problem: Text
    source: Text
    pin: Text  # what collect depends on: the data itself, or data/<model>/source.json as `mill pull` writes it
    base: Text | Scratch  # package:NAME/FOLDER, a folder, or a hub id
    threads: Count  # part of what decides the bits of a float sum
    collect: InstanceOf[Collect]  # the type that COLLECT names for the source; `load` reads it first
    feedback: CollectFeedback | None  # labels that came back, learned from as well; null learns from the source alone
    # Named validation: pydantic has a method `validate`, and the stage keeps the word.
    validation: Annotated[Validate, Field(alias="validate")]
    clean: Clean
    tokenize: Tokenize
    train: Train
    export: Export
    evaluate: Evaluate
    deploy: Deploy

    @field_validator("problem")
    @classmethod
    def _problem_has_a_file(cls, value: str) -> str:
        return _one_of(value, _files_in("problems"))

    @field_validator("source")
    @classmethod
    def _source_has_a_file(cls, value: str) -> str:
        return _one_of(value, _files_in("sources"))

    @model_validator(mode="after")
    def _feedback_has_the_same_columns(self) -> Self:
        if self.feedback is None or not self.collect.columns:
            return self
        told, wanted = set(self.feedback.columns), {*self.collect.columns, "id"}
        if different := sorted(told ^ wanted):
            said = f"feedback.columns {'has' if different[0] in told else 'lacks'} {different[0]!r}"
            raise ValueError(f"{said}, and all rows of a model have the same columns: {listed(wanted)}")
        return self

    @model_validator(mode="after")
    def _pin_is_what_is_read(self) -> Self:
        path = self.collect.path if isinstance(self.collect, CollectFiles) else None
        if Path(self.pin).name != "source.json" and (path is None or Path(path) != Path(self.pin)):
            one_file = f"; where the source is one file of the repository, pin: {path}" if path else ""
            raise ValueError(
                f"pin is {self.pin!r}, which is not what collect reads, so DVC would not see its changes. Write pin: "
                f"data/<model>/source.json{one_file}"
            )
        return self


class Params(Section):
    """The whole of params.yaml."""

    models: Annotated[dict[str, Model], Field(min_length=1)]
    # When lines run and what is promoted: no stage reads it, and flows/params.py checks it.
    flows: dict[str, Any] = {}


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check the file. Raises ParamsError with every mistake in it."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: expected a mapping with the key 'models' at the top.")
    mistakes = list(wrong_names(raw.get("models"), path))
    raw, collect_mistakes = _read_collect_sections(raw, path)
    mistakes += collect_mistakes
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        mistakes += mistakes_of(error, path, Params)
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return params


def load_model(name: str, path: Path = Path("params.yaml")) -> Model:
    """The parameters of one model. Raises ParamsError where there is none of that name."""
    models = load(path).models
    if name not in models:
        raise ParamsError(f"{path}: there is no model {name!r}.{did_you_mean(name, models)} Known: {listed(models)}.")
    return models[name]


def read_yaml(path: Path) -> Any:
    """The file's content by YAML 1.2, as DVC reads it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is not here. Run the command at the top of the repository.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def wrong_names(models: Any, path: Path) -> Iterable[str]:
    """A sentence for each key of `models` that cannot be a model's name."""
    for name in models if isinstance(models, dict) else ():
        if not isinstance(name, str) or not re.match(MODEL_NAME, name) or name in RESERVED_NAMES:
            yield (
                f"{path}: models.{name} cannot be a model's name, because it becomes a path, a DVC address and a Git "
                "tag. Allowed: 1 to 63 of a-z, 0-9 and '-', a letter first, no '-' last, and none of "
                f"{listed(RESERVED_NAMES)}."
            )


# Stands in for a section whose mistakes are reported already.
_UNREAD = Collect.model_construct(columns={}, where=None, rows_per_shard=1)


def _read_collect_sections(raw: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read each `collect` as its source's own type, so that its errors name that source's keys and no other's.

    A section with mistakes is passed on unchecked, so that the rest of its model is still looked at.
    """
    mistakes: list[str] = []
    models = raw.get("models")
    if not isinstance(models, dict):
        return raw, mistakes
    read = {}
    for name, model in models.items():
        section = model.get("collect") if isinstance(model, dict) else None
        kind = COLLECT.get(str(model.get("source"))) if isinstance(section, dict) else None
        if kind is None:
            # An unknown source is reported by its own name; nobody can say what its section should hold.
            read[name] = {**model, "collect": _UNREAD} if isinstance(section, dict) else model
            continue
        try:
            read[name] = {**model, "collect": kind.model_validate(section)}
        except ValidationError as error:
            read[name] = {**model, "collect": _UNREAD}
            mistakes += mistakes_of(error, path, kind, below=("models", name, "collect"))
    return {**raw, "models": read}, mistakes


def _files_in(folder: str) -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / folder).glob("[!_]*.py"))


def _one_of(value: str, known: list[str]) -> str:
    if value not in known:
        raise ValueError(f"{did_you_mean(value, known).strip()} Known: {listed(known)}".strip())
    return value
