"""`onebit serve`: a model behind OpenAI's interface, with a chat page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebit.cli.sampling import Isa, Kv, ModelDir, Threads
from onebit.errors import ConfigError

__all__ = ["serve"]


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A .1bit file, a checkpoint folder, or 'tiny' (the default): the model inside onebit."
        ),
    ] = None,
    model_dir: ModelDir = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", help="What clients call the model [default: its file's name]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="ONEBIT_API_KEY", show_envvar=True, help="Asked of every client of /v1."),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", help="Answers written at once.")] = 8,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Requests that may wait; more are told to return.")
    ] = 256,
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens of a slot, prompt and answer [default: the model's]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="Of an answer [default: what the context holds]")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option("--max-body-bytes", help="Of a request.")] = 2**20,
    shutdown_seconds: Annotated[
        float, typer.Option("--shutdown-seconds", help="What open answers have to end after Ctrl-C or SIGTERM.")
    ] = 30.0,
    threads: Threads = None,
    isa: Isa = None,
    kv: Kv = "default",
) -> None:
    """Serve a model to OpenAI's clients, and a chat page to browsers.

    /v1/chat/completions, /v1/completions and /v1/models answer many requests at once; /healthz, /metrics and
    /openapi.json tell of the server itself. Ctrl-C lets open answers end; a second one does not.
    """
    from onebit.cli.model_path import resolve_model
    from onebit.engine import Model
    from onebit.serve.app import create_app
    from onebit.serve.listen import listen
    from onebit.serve.settings import ServeSettings

    if model_dir is not None and model is not None:
        raise ConfigError(f"--model-dir and MODEL ('{model}') both name a model; drop one of them")
    path = resolve_model(model_dir or model)
    settings = ServeSettings(
        name=name or (path.stem if model in (None, "tiny") else Path(model_dir or model or "").stem),
        api_key=api_key,
        slots=slots,
        max_queue=max_queue,
        context=context,
        kv=kv,
        max_new_tokens=max_new_tokens,
        max_body_bytes=max_body_bytes,
        shutdown_seconds=shutdown_seconds,
    )
    app = create_app(Model(path, threads=threads, isa=isa), settings)
    if host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
        typer.secho("Whoever reaches this machine can use it: there is no --api-key.", fg="yellow", err=True)

    def tell(address: str) -> None:
        typer.echo(f"{settings.name}: {address}/ is the chat page, {address}/v1 OpenAI's interface. Ctrl-C ends it.")

    if not listen(app, host, port, shutdown_seconds, tell):
        raise ConfigError(f"{host}:{port} cannot be listened on; give another --port, or 0 for any that is free")
