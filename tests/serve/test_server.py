"""What clients of no library see: hostile requests, limits, health, figures, the description, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from .conftest import Running

ASKED = {"model": "bytes", "prompt": "x", "max_tokens": 4, "temperature": 0}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "bytes", "prompt": ' + b"[" * 5000, b'{"model": 3}',
        b'{"model": "bytes", "prompt": [-1]}', b'{"model": "bytes", "prompt": [999999]}',
        b'{"model": "bytes", "prompt": [[1], []]}',
        b'{"model": "bytes", "prompt": "x", "temperature": NaN}',
        b'{"model": "bytes", "prompt": "x", "seed": 1e400}', b'{"model": "bytes", "prompt": {"a": 1}}',
        b'{"model": "bytes", "prompt": "x", "stop": [1]}', b'{"model": "bytes", "prompt": "x", "logprobs": 99}',
        b'{"model": "bytes", "prompt": "x", "max_tokens": "4"}', b'{"model": "bytes"}',
    ],
)  # fmt: skip
def test_bodies_that_say_nothing_are_400(server: Running, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.address}/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert httpx.post(f"{server.address}/v1/completions", json=ASKED).status_code == 200


def test_large_bodies_are_413_whether_they_say_so_or_not(run_server: Callable[..., Running]) -> None:
    address = f"{run_server(max_body_bytes=2000).address}/v1/completions"
    large = json.dumps({**ASKED, "user": "x" * 2000}).encode()
    headers = {"content-type": "application/json"}

    def pieces() -> Any:
        for at in range(0, len(large), 100):
            yield large[at : at + 100]

    for content in (large, pieces()):  # the second one is sent in chunks, without a length
        answer = httpx.post(address, content=content, headers=headers)
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["code"] == "body_too_large"
    assert httpx.post(address, json=ASKED).status_code == 200


def test_a_limit_of_new_tokens(run_server: Callable[..., Running]) -> None:
    address = run_server(max_new_tokens=3).address
    refused = httpx.post(f"{address}/v1/completions", json=ASKED)
    assert refused.status_code == 400
    assert "3 are the most" in refused.json()["error"]["message"]
    chat = {"model": "bytes", "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=chat).json()
    assert answer["usage"]["completion_tokens"] == 3


def test_the_key_guards_v1_alone(run_server: Callable[..., Running]) -> None:
    address = run_server(api_key="s3cret").address
    for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "s3cret"}):
        answer = httpx.get(f"{address}/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/", "/healthz", "/metrics", "/openapi.json", "/about.json"):
        assert httpx.get(address + path).status_code == 200


def test_health_and_figures(run_server: Callable[..., Running]) -> None:
    server = run_server()
    assert httpx.get(f"{server.address}/healthz").json() == {"status": "ok"}
    httpx.post(f"{server.address}/v1/completions", json=ASKED)
    httpx.post(f"{server.address}/v1/completions", content=b"{")
    page = httpx.get(f"{server.address}/metrics").text
    assert 'onebit_requests_total{path="/v1/completions",status="200"} 1.0' in page
    assert 'onebit_requests_total{path="/v1/completions",status="400"} 1.0' in page
    assert 'onebit_tokens_total{kind="new"} 4.0' in page
    assert 'onebit_tokens_total{kind="prompt"} 1.0' in page
    assert "onebit_open_requests 0.0" in page
    server.worker.batch.step = lambda: 1 / 0
    assert httpx.post(f"{server.address}/v1/completions", json=ASKED).status_code == 503
    assert httpx.get(f"{server.address}/healthz").status_code == 503


def test_the_page_comes_with_nothing_from_elsewhere(server: Running) -> None:
    page = httpx.get(server.address + "/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in page.text
    settings = httpx.get(server.address + "/page.json").json()
    assert settings == {"transport": "server", "title": "bytes", "model": "bytes"}
    assert httpx.get(server.address + "/about.json").json() == {
        "contextLength": 96, "isChat": True, "hasSystem": True
    }  # fmt: skip
    for name in ("chat.js", "server-transport.js", "chat.css"):
        assert httpx.get(f"{server.address}/{name}").status_code == 200
    for name in ("../app.py", "%2e%2e/app.py", "onebit.wasm", "nix"):
        assert httpx.get(f"{server.address}/{name}").status_code == 404


def test_half_a_request_disturbs_nobody(server: Running) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    lazy = [socket.create_connection((host, int(port))) for _ in range(20)]
    for one in lazy:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert httpx.post(f"{server.address}/v1/completions", json=ASKED).status_code == 200
    for one in lazy:
        one.close()
    assert httpx.post(f"{server.address}/v1/completions", json=ASKED).status_code == 200


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_lets_an_answer_end(sent: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "onebit.cli.main",
        "serve",
        "--port",
        "0",
        "--threads",
        "1",
        "--shutdown-seconds",
        "20",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1].rstrip("/")
        texts: list[str] = []
        started = threading.Event()

        def read() -> None:
            body = {"model": "tiny", "prompt": "def f(", "max_tokens": 200, "stream": True, "temperature": 0}
            with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
                for line in answer.iter_lines():
                    texts.append(line)
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(30)
        process.send_signal(sent)
        reader.join(60)
        assert "data: [DONE]" in texts
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_an_address_in_use_is_one_line(server: Running) -> None:
    port = server.address.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "onebit.cli.main", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr
