"""Models on a hub, through huggingface_hub: pushed with a card of what was measured, fetched and made ready to run.

Nothing here is called by anything but its user: what goes over the network was asked for. Credentials are
huggingface_hub's own business (`hf auth login`, HF_TOKEN), or given as `token`.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebit.errors import ConfigError, DataError, MissingExtraError
from onebit.formats.convert import FORMS, form_of, open_any, write_any
from onebit.formats.model_card import model_card, without_paths
from onebit.formats.onebit_file import OneBitFile, write

if TYPE_CHECKING:
    from onebit.engine import Model

__all__ = ["from_pretrained", "push_to_hub"]

# What a repository may hold that a model is made of; nothing else is fetched, and nothing that is a pickle.
_WANTED = ("*.1bit", "*.gguf", "*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_SUFFIX_OF = {"1bit": ".1bit", "gguf": ".gguf"}


def push_to_hub(
    source: str | Path | OneBitFile,
    repo_id: str,
    *,
    forms: tuple[str, ...] = ("1bit", "hf"),
    gguf_type: str | None = None,
    linear_class: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Add the model",
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Write a model in each of `forms`, with a card, and upload it as one commit; returns the commit's address.

    source: anything that `onebit convert` reads, or a model in memory. forms: of `convert.FORMS`, one folder of
    transformers at most; all of them are written before anything is sent. The repository is made when it is not there.
    Raises ConfigError for forms that do not go together and for what a form cannot hold, DataError when the hub does
    not take it.
    """
    folders = [form for form in forms if form not in _SUFFIX_OF]
    if unknown := [form for form in forms if form not in FORMS]:
        raise ConfigError(f"forms: {unknown[0]!r}, expected some of {', '.join(FORMS)}")
    if len(folders) > 1 or not forms:
        raise ConfigError(
            f"forms are {', '.join(forms) or 'none'}; a repository has room for one folder of transformers"
        )
    file = source if isinstance(source, OneBitFile) else open_any(Path(source))
    if file.manifest is not None:
        file = replace(file, manifest=without_paths(file.manifest))
    api = _api(token, endpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        options = {"gguf": {"gguf_type": gguf_type}, "hf": {"linear_class": linear_class}}
        for form in [*folders, *(form for form in forms if form in _SUFFIX_OF)]:
            folder.mkdir(exist_ok=True)
            name = repo_id.rpartition("/")[2] + _SUFFIX_OF[form] if form in _SUFFIX_OF else ""
            write_any(folder / name, file, form, lossy=True, **options.get(form, {}))  # type: ignore[arg-type]
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        card = model_card(file, repo_id, sizes, base_model=base_model, license=license)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return _upload(api, folder, repo_id, private, revision, commit_message)


def _upload(api: Any, folder: Path, repo_id: str, private: bool, revision: str | None, commit_message: str) -> str:
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    except Exception as error:  # of its own and of the HTTP library beneath it
        raise DataError(f"the hub did not take '{repo_id}': {_first_line(error)}") from error
    return str(commit.commit_url)


def from_pretrained(
    repo_id: str | Path,
    *,
    revision: str | None = None,
    threads: int | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
) -> Model:
    """A model of a hub, or of a folder or file here, ready to run in the engine.

    A `.1bit` file in the repository is run as it is; a GGUF file or a folder of transformers is converted in the cache
    of downloads, once, with the float embeddings of a folder rounded to int8. Raises DataError when the hub has no
    such model.
    """
    from onebit.engine import Model

    path = Path(repo_id)
    if path.exists():
        return _open_here(path, threads)
    return Model(_runnable(Path(_download(str(repo_id), revision, token, endpoint, cache_dir))), threads=threads)


def _open_here(path: Path, threads: int | None) -> Model:
    """A model of a path of the user's, where nothing is written."""
    from onebit.engine import Model

    if path.is_file() and form_of(path) == "1bit":
        return Model(path, threads=threads)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "model.1bit"
        write(target, open_any(path, lossy=form_of(path) != "gguf"))
        return Model(target, threads=threads, copy=True)


def _download(
    repo_id: str, revision: str | None, token: str | None, endpoint: str | None, cache_dir: str | Path | None
) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise MissingExtraError("formats", "fetching a model from a hub") from error
    try:
        return str(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                endpoint=endpoint,
                cache_dir=cache_dir,
                allow_patterns=list(_WANTED),
            )
        )
    except Exception as error:  # of its own and of the HTTP library beneath it
        raise DataError(f"'{repo_id}': neither a path here nor a model of the hub: {_first_line(error)}") from error


def _runnable(folder: Path) -> Path:
    """The `.1bit` file of what was fetched; made in its folder, which is the cache's, where there is none."""
    inside = sorted(folder.glob("*.1bit")) or sorted(folder.glob("*.gguf"))
    if len(inside) > 1:
        names = ", ".join(each.name for each in inside)
        raise ConfigError(f"{folder} holds several models ({names}); give the path of one of them")
    source = inside[0] if inside else folder
    if form_of(source) == "1bit":
        return source
    target = folder / "converted-by-onebit.1bit"
    write(target, open_any(source, lossy=not inside))
    return target


def _api(token: str | None, endpoint: str | None) -> Any:
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise MissingExtraError("formats", "pushing a model to a hub") from error
    return HfApi(endpoint=endpoint, token=token)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
