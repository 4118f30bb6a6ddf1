"""Two hundred file lists of repositories, in the ways in which public ones name their files.

Each is made of a model, a publisher's way of naming, and what lies beside the models (projectors, drafters, importance
matrices, full precision, adapters). Sizes follow from bits a weight; nothing here is anybody's real listing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from flashmoe.hub.listing import HubFile, HubRepo, quants_of
from flashmoe.hub.roles import role_of_name

BITS = {
    "UD-TQ1_0": 1.7, "UD-IQ1_S": 1.8, "UD-IQ1_M": 2.0, "IQ2_XXS": 2.3, "UD-IQ2_XXS": 2.3, "IQ2_M": 2.7, "Q2_K": 2.9,
    "UD-Q2_K_XL": 3.0, "IQ3_XXS": 3.1, "Q3_K_S": 3.5, "Q3_K_M": 3.9, "UD-Q3_K_XL": 4.0, "Q3_K_L": 4.2, "IQ4_XS": 4.3,
    "IQ4_NL": 4.5, "Q4_0": 4.5, "MXFP4": 4.3, "MXFP4_MOE": 4.4, "Q4_K_S": 4.6, "Q4_K_M": 4.85, "UD-Q4_K_XL": 4.9,
    "Q4_1": 5.0, "Q5_K_S": 5.5, "Q5_K_M": 5.7, "UD-Q5_K_XL": 5.8, "Q6_K": 6.6, "UD-Q6_K_XL": 6.9, "Q8_0": 8.5,
    "UD-Q8_K_XL": 9.5, "BF16": 16.0, "F16": 16.0, "F32": 32.0,
}  # fmt: skip
SPLIT_BYTES = 50 * 10**9


class Model(NamedTuple):
    """Billions of weights decide the sizes."""

    owner: str
    name: str
    billions: float


class Case(NamedTuple):
    """One repository, what ``pull REPO`` takes of it (None: it asks which), and what ``:QUANT`` does."""

    id: str
    repo: HubRepo
    usual: str | None
    quants: dict[str, str]


MODELS = [
    Model("Qwen", "Qwen3-30B-A3B", 30.5), Model("Qwen", "Qwen3-Coder-30B-A3B-Instruct", 30.5),
    Model("Qwen", "Qwen3-235B-A22B-Instruct-2507", 235.0), Model("Qwen", "Qwen3-Next-80B-A3B-Thinking", 80.0),
    Model("Qwen", "Qwen3.5-35B-A3B", 35.0), Model("Qwen", "Qwen3.6-35B-A3B", 35.0),
    Model("Qwen", "Qwen3.5-397B-A17B", 397.0), Model("openai", "gpt-oss-120b", 117.0),
    Model("zai-org", "GLM-4.5-Air", 110.0), Model("zai-org", "GLM-4.7-Flash", 30.0),
    Model("deepseek-ai", "DeepSeek-V3.1", 671.0), Model("moonshotai", "Kimi-K2.5", 1026.0),
    Model("MiniMaxAI", "MiniMax-M2.5", 230.0), Model("meta-llama", "Llama-4-Scout-17B-16E-Instruct", 109.0),
    Model("mistralai", "Mixtral-8x7B-Instruct-v0.1", 46.7), Model("allenai", "OLMoE-1B-7B-0125-Instruct", 6.9),
    Model("LiquidAI", "LFM2-8B-A1B", 8.3), Model("ibm-granite", "granite-4.0-h-tiny", 6.9),
    Model("google", "gemma-4-26B-A4B-it", 26.0), Model("baidu", "ERNIE-4.5-21B-A3B-PT", 21.8),
]  # fmt: skip

Style = Callable[[Model], tuple[str, list[str], dict[str, str]]]
"""A model, to (repository, paths, what each QUANT means)."""


def _size(model: Model, quant: str) -> int:
    return int(model.billions * 1e9 * BITS[quant.upper()] / 8)


def _parts(stem: str, size: int) -> list[str]:
    n = -(-size // SPLIT_BYTES)
    return [f"{stem}.gguf"] if n == 1 else [f"{stem}-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)]


def _unsloth(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """Small ones at the root, split ones and full precision in folders; an importance matrix and projectors beside."""
    paths, meant = ["imatrix_unsloth.gguf_file", "mmproj-F16.gguf", "mmproj-BF16.gguf"], {}
    for quant in ("UD-TQ1_0", "UD-IQ2_XXS", "UD-Q2_K_XL", "Q3_K_M", "Q4_K_M", "UD-Q4_K_XL", "Q6_K", "Q8_0", "BF16"):
        size = _size(model, quant)
        folder = f"{quant}/" if size > SPLIT_BYTES or quant == "BF16" else ""
        found = _parts(f"{folder}{model.name}-{quant}", size)
        paths += found
        meant[quant] = found[0]
    return f"unsloth/{model.name}-GGUF", paths, {**meant, "q4_k_xl": meant["UD-Q4_K_XL"]}


def _unsloth_mtp(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """The same with a drafter at the root, and better copies of it in a folder."""
    repo, paths, meant = _unsloth(model)
    drafters = [f"mtp-{model.name}.gguf", *(f"MTP/{model.name}-{q}-MTP.gguf" for q in ("Q8_0", "F16", "BF16"))]
    return repo, drafters + paths, meant


def _bartowski(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """The owner's name in front, split ones in a folder of their name."""
    stem = f"{model.owner}_{model.name}"
    paths, meant = [f"{stem}-imatrix.gguf", f"mmproj-{stem}-f16.gguf", f"mmproj-{stem}-bf16.gguf"], {}
    for quant in ("IQ2_M", "Q2_K", "IQ3_XXS", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M",
                  "Q5_K_M", "Q6_K", "Q8_0", "bf16"):  # fmt: skip
        size = _size(model, quant)
        folder = f"{stem}-{quant}/" if size > SPLIT_BYTES else ""
        found = _parts(f"{folder}{stem}-{quant}", size)
        paths += found
        meant[quant.upper()] = found[0]
    return f"bartowski/{stem}-GGUF", paths, meant


def _ggml_org(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """Few files, quants in lower case, heads for speculative decoding beside."""
    paths = [f"eagle3-{model.name}-BF16.gguf", f"eagle3-{model.name}-Q8_0.gguf", f"dflash-{model.name}-Q8_0.gguf"]
    found = _parts(f"{model.name}-mxfp4", _size(model, "MXFP4"))
    return f"ggml-org/{model.name}-GGUF", paths + found, {"MXFP4": found[0], "mxfp4": found[0]}


def _ggml_two(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """Two quants and a projector."""
    q4, q8 = (_parts(f"{model.name}-{q}", _size(model, q)) for q in ("Q4_K_M", "Q8_0"))
    paths = [f"mmproj-{model.name}-Q8_0.gguf", f"mtp-{model.name}-Q8_0.gguf"]
    return f"ggml-org/{model.name}-GGUF", paths + q4 + q8, {"Q4_K_M": q4[0], "Q8_0": q8[0]}


def _liquid(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """Every quant at the root, full precision too; parts of a speech model beside."""
    paths, meant = [f"tokenizer-{model.name}-F16.gguf", f"vocoder-{model.name}-Q8_0.gguf"], {}
    for quant in ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"):
        found = _parts(f"{model.name}-{quant}", _size(model, quant))
        paths += found
        meant[quant] = found[0]
    return f"{model.owner}/{model.name}-GGUF", paths, meant


def _dotted(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """A dot before the quant, names in lower case."""
    stem, meant, paths = model.name.lower(), {}, []
    for quant in ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"):
        found = _parts(f"{stem}.{quant}", _size(model, quant))
        paths += found
        meant[quant] = found[0]
    return f"TheBloke/{model.name}-GGUF", paths, meant


def _weighted(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """``i1`` before the quant."""
    meant, paths = {}, [f"{model.name}.imatrix.gguf"]
    for quant in ("IQ2_M", "Q2_K", "IQ3_XXS", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"):
        found = _parts(f"{model.name}.i1-{quant}", _size(model, quant))
        paths += found
        meant[quant] = meant[f"i1-{quant}"] = found[0]
    return f"mradermacher/{model.name}-i1-GGUF", paths, meant


def _full_only(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """Nothing but full precision, with a drafter and an adapter beside it."""
    found = _parts(f"{model.name}-F16", _size(model, "F16"))
    paths = [f"draft/{model.name}-draft-Q4_K_M.gguf", f"{model.name}-lora-F16.gguf", "speculator-Q4_K_M.gguf"]
    return f"{model.owner}/{model.name}-GGUF", paths + found, {"F16": found[0], "f16": found[0]}


def _folders(model: Model) -> tuple[str, list[str], dict[str, str]]:
    """A folder for each quant, which only the folder names."""
    meant, paths = {}, [f"mtp/{model.name}.gguf", f"BF16/{model.name}-00001-of-00009.gguf"]
    for quant in ("Q2_K", "Q4_K_M", "Q8_0"):
        found = _parts(f"{quant}/{model.name}", _size(model, quant))
        paths += found
        meant[quant] = found[0]
    return f"someone/{model.name}-GGUF", paths, meant


STYLES: dict[str, tuple[Style, str]] = {
    "unsloth": (_unsloth, "UD-Q4_K_XL"),
    "unsloth-mtp": (_unsloth_mtp, "UD-Q4_K_XL"),
    "bartowski": (_bartowski, "Q4_K_M"),
    "ggml-org": (_ggml_org, "MXFP4"),
    "ggml-two": (_ggml_two, "Q4_K_M"),
    "liquid": (_liquid, "Q4_K_M"),
    "dotted": (_dotted, "Q4_K_M"),
    "weighted": (_weighted, "Q4_K_M"),
    "full-only": (_full_only, "F16"),
    "folders": (_folders, "Q4_K_M"),
}


def listing(repo: str, paths: list[str], size: Callable[[str], int] = lambda path: 1000 + len(path)) -> HubRepo:
    """A repository with these files, as a hub would list them."""
    files = [HubFile(path, size(path), "0" * 64) for path in paths if path.endswith(".gguf")]
    models = [f for f in files if role_of_name(f.path) == "model"]
    return HubRepo(repo, "c", tuple(quants_of(models)), tuple(f for f in files if f not in models))


def cases() -> Iterator[Case]:
    """All two hundred: twenty models in ten ways."""
    for model in MODELS:
        for name, (style, usual) in STYLES.items():
            repo, paths, meant = style(model)
            by_first = {first: quant for quant, first in meant.items() if quant.upper() in BITS}

            def size(path: str, model: Model = model, by_first: dict[str, str] = by_first) -> int:
                if path in by_first:
                    return _size(model, by_first[path]) // max(1, _size(model, by_first[path]) // SPLIT_BYTES)
                return 300_000_000

            yield Case(f"{name}-{model.name}", listing(repo, paths, size), meant[usual], meant)
