"""Hugging Face data sets by name, without minutes of retries when the hub is out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from onebit.errors import DataError, MissingExtraError

__all__ = ["load_hub_dataset"]

_TIMEOUT = 10.0  # seconds for the hub's first answer


def load_hub_dataset(name: str, config: str | None, *, streaming: bool = False, allow_download: bool = True) -> Any:
    """The splits of a data set; from the cache alone when the hub does not answer or no download is allowed.

    Raises:
        DataError: it cannot be had; the message is the reason, in one line.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("train", f"the data set '{name}'") from None
    answers = allow_download and _hub_answers(name)
    try:
        with nullcontext() if answers else _cache_only():
            return datasets.load_dataset(name, config, streaming=streaming)
    except Exception as error:  # the hub client raises many kinds, all of which mean: not to be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        absent = "the hub does not answer, and it is not in the cache" if allow_download else "it is not in the cache"
        raise DataError(reason if answers else absent) from None


def _hub_answers(name: str) -> bool:
    """Ask once: `datasets` itself would ask six times, waiting longer after each, and print every failure."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT)
    except HfHubHTTPError:
        return True  # it answered that there is no such set, or none for us: `datasets` says which
    except Exception:  # no network, no name server, a proxy that refuses: the kinds depend on the client's version
        return False
    return True


@contextmanager
def _cache_only() -> Iterator[None]:
    """Keep `datasets` off the network for a moment."""
    from datasets import config
    from huggingface_hub import constants

    places: list[Any] = [config, constants]  # each has its own copy of the switch
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
