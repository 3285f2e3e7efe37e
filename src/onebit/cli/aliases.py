"""The seed's binaries under their old names: each is one `onebit` command, with the same flags."""

from __future__ import annotations

import sys
from typing import NoReturn

from onebit.cli.main import run

__all__ = ["chat", "eval_config", "export", "search", "test_generate", "train"]


def train() -> NoReturn:
    """onebit-train"""
    run(["train", *sys.argv[1:]])


def export() -> NoReturn:
    """onebit-export"""
    run(["export", *sys.argv[1:]])


def chat() -> NoReturn:
    """onebit-chat"""
    run(["chat", *sys.argv[1:]])


def test_generate() -> NoReturn:
    """onebit-test-generate"""
    run(["generate", *sys.argv[1:]])


def search() -> NoReturn:
    """onebit-search"""
    run(["search", *sys.argv[1:]])


def eval_config() -> NoReturn:
    """onebit-eval-config"""
    run(["eval-config", *sys.argv[1:]])
