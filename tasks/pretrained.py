"""Where a base model comes from: a Python package that carries weights, a folder, or a model hub.

Only safetensors weights are read, or a GGUF file where `base` names one, and code that a repository brings along is
never run.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ParamsError, did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tasks.params import Scratch

PACKAGE = "package:"
GGUF = ".gguf"

# What transformers calls each size of an architecture without weights; one of two halves has two names for some.
_SIZES = {
    "hidden_size": ("hidden_size",),
    "layers": ("num_hidden_layers", "decoder_layers"),
    "heads": ("num_attention_heads", "decoder_attention_heads"),
    "feed_forward_size": (
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "hidden_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
    ),
    "max_positions": ("max_position_embeddings",),
}


def locate(base: str) -> str:
    """The folder, or the GGUF file, of `package:NAME/FOLDER` or of a path; else the hub id as it is."""
    if not base.startswith(PACKAGE):
        return base
    package, _, inside = base.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ParamsError(
            f"base is {base!r}, but there is no installed package {package!r}. Install it: pip install {package}"
        )
    found = Path(spec.submodule_search_locations[0]) / inside
    if not (found.is_file() if inside.endswith(GGUF) else found.is_dir()):
        kind = "file" if inside.endswith(GGUF) else "folder"
        raise ParamsError(f"base is {base!r}, but the package {package!r} has no {kind} {inside!r}.")
    return str(found)


def _source(base: str) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` takes: a folder or hub id, and the name of the GGUF file in it where there is one."""
    found = locate(base)
    if not found.endswith(GGUF):
        return found, {}
    if importlib.util.find_spec("gguf") is None:
        raise ParamsError(f"base is {base!r}, and reading that kind of file needs gguf: pip install 'modelmill[gguf]'")
    folder, _, file = found.rpartition("/")
    return folder or ".", {"gguf_file": file}


def quiet() -> None:
    """Silence transformers' own bars and reports; the stages say what they do."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_tokenizer(base: str) -> "PreTrainedTokenizerBase":
    """The fast tokenizer of a base model. Raises ParamsError where it has none, or cannot be reached."""
    from transformers import AutoTokenizer

    folder, file = _source(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **file)
    except (OSError, ValueError) as error:
        raise ParamsError(f"base is {base!r}, and no tokenizer loads from there: {error}") from None
    if not tokenizer.is_fast:
        raise ParamsError(f"base is {base!r}, whose tokenizer has no tokenizer.json; the server needs one.")
    return tokenizer


def build(
    head: str, base: "str | Scratch", vocabulary: int, dropout: float, attention: str, **config: Any
) -> "PreTrainedModel":
    """A model with a head, in float32. `head` is one of transformers' classes, `AutoModelFor…`; `config` is its own.

    The weights that are new come from torch's global generator: seed it before.
    """
    import torch
    import transformers

    from tasks.params import Scratch

    kind = getattr(transformers, head)
    if isinstance(base, Scratch):
        described = transformers.AutoConfig.for_model(
            base.architecture, vocab_size=vocabulary, **_sizes(base), **config
        )
        _set_dropout(described, dropout)
        scratch: PreTrainedModel = kind.from_config(described, attn_implementation=attention)
        return scratch
    folder, file = _source(base)
    try:
        described = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **file, **config)
        _set_dropout(described, dropout)
        if file:
            # What transformers gives is marked as quantised and cannot be saved as anything else; its weights can.
            weights = kind.from_pretrained(folder, dtype=torch.float32, **file).state_dict()
            unpacked: PreTrainedModel = kind.from_config(described, attn_implementation=attention)
            unpacked.load_state_dict(weights)
            if vocabulary > described.vocab_size:  # the tokenizer got an end of texts that the file has none of
                unpacked.resize_token_embeddings(vocabulary)
            return unpacked
        pretrained: PreTrainedModel = kind.from_pretrained(
            folder,
            config=described,
            attn_implementation=attention,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ParamsError(
            f"base is {base!r}, and no model with safetensors weights loads from there: {error}"
        ) from None
    return pretrained


def _sizes(base: "Scratch") -> dict[str, int]:
    """The sizes under the names that the architecture has for them. Raises ParamsError for one that it has no name for:
    transformers takes any name, and builds the size that it is used to.
    """
    import transformers

    if base.architecture not in transformers.CONFIG_MAPPING:
        raise ParamsError(
            f"base.architecture is {base.architecture!r}, which transformers does not have."
            f"{did_you_mean(base.architecture, transformers.CONFIG_MAPPING)}"
        )
    usual = transformers.AutoConfig.for_model(base.architecture)
    sizes: dict[str, int] = {}
    for key, names in _SIZES.items():
        size, known = getattr(base, key), [name for name in names if hasattr(usual, name)]
        if not known:
            raise ParamsError(
                f"base.{key} is {size}, but {base.architecture} has no size of a name that is known here "
                f"({', '.join(names)}). Use another base.architecture."
            )
        sizes.update(dict.fromkeys(known, size))
    return sizes


def _set_dropout(config: "PretrainedConfig", dropout: float) -> None:
    """Set every rate that this architecture has; transformers names them differently from one to the next."""
    for name, rate in config.to_dict().items():
        is_rate = "dropout" in name or name.endswith("_pdrop")
        if is_rate and not isinstance(rate, bool) and isinstance(rate, float | int | None):
            setattr(config, name, dropout)
