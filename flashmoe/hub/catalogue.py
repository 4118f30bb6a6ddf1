"""The models that the project knows by itself, and the user's own additions: what can be shown without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from flashmoe.hub.errors import HubError
from flashmoe.hub.names import check_repo, show
from flashmoe.hub.selection import usual
from flashmoe.paths import config_dir, display

_MAX_BYTES = 1 << 20
_SIZE = re.compile(r"^([0-9]+(?:\.[0-9]+)?)\s*(GiB|GB|MiB|MB)$", re.IGNORECASE)
_UNITS = {"gib": 1 << 30, "gb": 10**9, "mib": 1 << 20, "mb": 10**6}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CatalogueQuant(Struct, frozen=True):
    """One file (or split set) and its size when the catalogue was written."""

    label: str
    size: int


class CatalogueModel(Struct, frozen=True, kw_only=True):
    """One model. 0 or empty: the catalogue doesn't say."""

    name: str
    repos: tuple[str, ...]
    quants: tuple[CatalogueQuant, ...]
    n_layers: int = 0
    n_experts: int = 0
    n_expert_used: int = 0
    context: int = 0
    licence: str = ""
    architecture: str = ""
    note: str = ""
    own: bool = False
    """From the user's file."""

    @property
    def repo(self) -> str:
        return self.repos[0]

    def expert_bytes_per_token(self, quant: CatalogueQuant) -> int | None:
        """At most so many bytes of experts are read for a token: the file's share of used experts."""
        return quant.size * self.n_expert_used // self.n_experts if self.n_experts else None

    def default_quant(self) -> CatalogueQuant:
        """The quant that a bare ``pull`` takes where the disk has room for any."""
        return self.quants[usual([(q.label, q.size) for q in self.quants], None)[0]]


class Catalogue(Struct, frozen=True):
    """All entries, and a sentence for each that is broken."""

    models: tuple[CatalogueModel, ...]
    problems: tuple[str, ...] = ()


def builtin_path() -> Path:
    return Path(__file__).parent / "catalogue.yaml"


def user_path() -> Path:
    return config_dir() / "catalogue.yaml"


def load_catalogue(*files: Path) -> Catalogue:
    """Reads `files` (default: the project's and the user's); later entries replace earlier ones of their name."""
    models: dict[str, CatalogueModel] = {}
    problems: list[str] = []
    for path in files or (builtin_path(), user_path()):
        own = path != builtin_path()
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{display(path)} can't be read: {error.strerror}.")
            continue
        for item in _items(raw, path, problems):
            model = _model(item, path, own, problems)
            if model is not None:
                models[model.name.lower()] = model
    return Catalogue(tuple(models.values()), tuple(problems))


def _items(raw: bytes, path: Path, problems: list[str]) -> list[Any]:
    if len(raw) > _MAX_BYTES:
        problems.append(f"{display(path)} is larger than 1 MiB: that isn't a catalogue.")
        return []
    try:
        data = yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problems.append(
            f"{display(path)}{where} isn't YAML: {show(str(getattr(error, 'problem', '') or 'broken'), 80)}."
        )
        return []
    except (RecursionError, ValueError):
        problems.append(f"{display(path)} isn't a catalogue.")
        return []
    items = data.get("models") if isinstance(data, dict) else data
    if data is None or items is None:
        return []
    if not isinstance(items, list):
        problems.append(f"{display(path)}: “models” must be a list of entries.")
        return []
    return items


def _model(item: Any, path: Path, own: bool, problems: list[str]) -> CatalogueModel | None:
    name = item.get("name") if isinstance(item, dict) else None
    where = f"{display(path)}: entry “{show(str(name), 60)}”"
    if not isinstance(item, dict) or not isinstance(name, str) or not name.strip():
        problems.append(f"{display(path)}: an entry without a name is left out.")
        return None
    try:
        repos = [check_repo(str(r)) for r in item.get("repos") or []]
        quants = [CatalogueQuant(show(str(k), 40), _size(v)) for k, v in (item.get("quants") or {}).items()]
        shape = item.get("shape") or [0, 0, 0]
        layers, experts, used = (int(n) for n in shape)
        if not repos or not quants or min(layers, experts, used) < 0 or used > experts:
            raise ValueError("it needs repos, quants and a valid shape")
        return CatalogueModel(
            name=show(name, 80), repos=tuple(repos), quants=tuple(sorted(quants, key=lambda q: q.size)),
            n_layers=layers, n_experts=experts, n_expert_used=used, context=max(0, int(item.get("context") or 0)),
            licence=show(str(item.get("licence") or ""), 40), architecture=show(str(item.get("arch") or ""), 40),
            note=show(str(item.get("note") or ""), 300), own=own,
        )  # fmt: skip
    except HubError as error:
        problems.append(f"{where} is left out: {error.message}")
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        problems.append(f"{where} is left out: {show(str(error), 120)}.")
    return None


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a size is bytes, or a number with GiB or GB")
    if isinstance(value, str):
        match = _SIZE.match(value.strip())
        if not match:
            raise ValueError(f"“{show(value, 30)}” isn't a size such as 20.5 GiB")
        value = float(match[1]) * _UNITS[match[2].lower()]
    size = int(value)
    if not 0 < size < 1 << 60:
        raise ValueError("a size must be positive")
    return size
