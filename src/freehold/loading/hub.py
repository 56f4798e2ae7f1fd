"""Models from the Hugging Face hub, kept in its own cache, which other programs share."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.core.errors import ArgumentError, DownloadError, FreeholdError, ModelNotFoundError
from freehold.loading.progress import Progress, watched
from freehold.loading.quoting import listed

_SOURCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(:(?P<file>[^:\\]+\.gguf))?",
    re.IGNORECASE,
)
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

_WANTED = (
    "*.safetensors",
    "*.json",
    "tokenizer*",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "LICENSE*",
)
"""What is fetched of a safetensors repository, from its top directory: weights, configuration, tokenizer."""
_NEVER = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".so")
"""Endings of files that are never fetched: they can carry code, or weights in a format that can."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository ("org/name"), and the GGUF file in it that is meant, if one is named."""

    repo: str
    file: str | None


@dataclass(frozen=True, slots=True)
class HubModel:
    """What was fetched: a directory or a .gguf file in the hub's cache, its commit, its licence if stated."""

    path: Path
    revision: str | None
    licence: str | None


def parse_source(source: str) -> HubSource | None:
    """`source` as "org/name" or "org/name:file.gguf"; None if it has another form."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        return None
    if match["file"] is not None and (match["file"].startswith("/") or ".." in match["file"].split("/")):
        raise ArgumentError(f"source is {source!r}; the file must be a path inside the repository")
    return HubSource(match["repo"], match["file"])


def fetch_from_hub(source: HubSource, progress: Progress) -> HubModel:
    """Fetch the files that are not in the cache yet; with HF_HUB_OFFLINE set, use only those that are.

    Only data is fetched: see `_WANTED` and `_NEVER`. A GGUF repository with several models needs
    `source.file`, or ArgumentError lists them. Raises ModelNotFoundError for a repository, revision or file
    that does not exist, DownloadError for everything that went wrong on the way.
    """
    import huggingface_hub
    from huggingface_hub import constants

    with _mapped_errors(source):
        if constants.HF_HUB_OFFLINE:
            return _from_cache(source)
        info = huggingface_hub.HfApi().model_info(source.repo, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    names = wanted_files(source, list(sizes))
    with _mapped_errors(source):
        total = sum(sizes[name] for name in names)
        missing = _check_space(source, {name: sizes[name] for name in names}, info.sha)
        cache = _cache_directory(source)
        with watched(cache, f"downloading {source.repo}", total - missing, total, progress):
            snapshot = huggingface_hub.snapshot_download(
                source.repo,
                allow_patterns=[glob.escape(name) for name in names],
                tqdm_class=_silent_tqdm(),
            )
    licence = info.card_data.get("license") if info.card_data else None
    path = _model_path(source, Path(snapshot), names)
    return HubModel(path, Path(snapshot).name, licence if isinstance(licence, str) else None)


def wanted_files(source: HubSource, names: list[str]) -> list[str]:
    """The files to fetch, out of those that the repository holds."""
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    if source.file is not None:
        if source.file not in ggufs:
            raise ModelNotFoundError(f"{source.repo}: holds no {source.file!r}. Its GGUF files:\n{listed(ggufs)}")
        return _parts(source.file, ggufs)
    top = [name for name in names if "/" not in name and not name.lower().endswith(_NEVER)]
    wanted = sorted(name for name in top if any(fnmatch.fnmatchcase(name, pattern) for pattern in _WANTED))
    if any(name.endswith(".safetensors") for name in wanted):
        return wanted
    if ggufs:
        parts = _parts(ggufs[0], ggufs)
        if parts == ggufs:
            return parts
        raise ArgumentError(
            f"{source.repo}: holds {len(ggufs)} GGUF files; name one of them, as in"
            f" {source.repo}:{ggufs[0]}\n{listed(ggufs, most=len(ggufs))}"
        )
    raise ModelNotFoundError(f"{source.repo}: holds neither safetensors nor GGUF files; no other format is read")


def _parts(name: str, ggufs: list[str]) -> list[str]:
    """`name`, or all parts of the split file that it is a part of."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    same = re.compile(re.escape(match["stem"]) + r"-\d{5}-of-" + match["count"] + r"\.gguf", re.IGNORECASE)
    return [other for other in ggufs if same.fullmatch(other)]


def _model_path(source: HubSource, snapshot: Path, names: list[str]) -> Path:
    if source.file is not None:
        return snapshot / source.file
    return snapshot / names[0] if names[0].lower().endswith(".gguf") else snapshot


def _from_cache(source: HubSource) -> HubModel:
    """What the cache holds, without asking the network. A missing shard shows when the model is opened."""
    import huggingface_hub

    name = source.file or "config.json"
    path = huggingface_hub.try_to_load_from_cache(source.repo, name)
    if not isinstance(path, str):
        raise DownloadError(
            f"{source.repo}: {name} is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids fetching it;"
            " unset it, or pull a local path"
        )
    snapshot = Path(path).parents[len(Path(name).parts) - 1]
    return HubModel(Path(path) if source.file else snapshot, snapshot.name, None)


def _cache_directory(source: HubSource) -> Path:
    from huggingface_hub import constants, file_download

    folder = file_download.repo_folder_name(repo_id=source.repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder


def _check_space(source: HubSource, sizes: dict[str, int], revision: str | None) -> int:
    """Bytes that are not in the cache yet. Raises DownloadError if the disk has no room for them."""
    import huggingface_hub
    from huggingface_hub import constants

    needed = 0
    for name, size in sizes.items():
        if not isinstance(huggingface_hub.try_to_load_from_cache(source.repo, name, revision=revision), str):
            needed += size
    cache = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DownloadError(
            f"{source.repo}: {needed / 1e9:.1f} GB are to be fetched, and {cache} has {free / 1e9:.1f} GB"
            " free; free some space, or set HF_HOME to another disk"
        )
    return needed


def _silent_tqdm() -> Any:
    """A progress bar class that shows nothing: progress is reported by `watched`, once."""
    from huggingface_hub.utils.tqdm import tqdm

    bar: Any = tqdm

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        bar.__init__(self, *args, **{**kwargs, "disable": True})

    return type("SilentTqdm", (bar,), {"__init__": start})


@contextlib.contextmanager
def _mapped_errors(source: HubSource) -> Iterator[None]:
    """The one place where errors of huggingface_hub, and of the HTTP library under it, become ours."""
    from huggingface_hub import errors

    try:
        yield
    except FreeholdError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{source.repo}: its owner demands that you accept terms; do so on the model's page and run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{source.repo}: no such repository, or a private one; check the spelling, or run `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise ArgumentError(f"source is {source.repo!r}: {error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise DownloadError(
            f"{source.repo}: could not be fetched: {type(error).__name__}: {reason[0]}. What has arrived is"
            " kept, and pulling again goes on from there; without a network, `freehold pull /path/to/model`"
        ) from error
