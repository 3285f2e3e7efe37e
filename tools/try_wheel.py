"""Try a built wheel as a stranger would: an empty environment, no torch, no compiler, no source tree.

    python tools/try_wheel.py dist/onebit-....whl   makes the environment, installs the wheel and tries it
    python tools/try_wheel.py --here                tries the onebit of the environment that runs this

Prints one line per check and stops at the first that fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Seconds for `onebit generate` on the model in the wheel, start included: the promise is an answer within five.
ANSWER_SECONDS = 5.0


def fail(message: str) -> None:
    """Say what failed and leave."""
    sys.exit(f"error: {message}")


def install(wheel: Path, folder: Path) -> None:
    """An environment that holds the wheel and the core's dependencies, under the versions CI runs with."""
    if wheel.name.split("-")[2:4] != ["py3", "none"]:
        fail(f"{wheel.name}: expected a py3-none wheel")
    print(f"-- {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB")
    venv.create(folder, with_pip=True)
    limits = folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    limits.write_text("\n".join(line for line in lines if not line.startswith("torch")), encoding="utf-8")
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run([python, "-m", "pip", "install", "-qq", "-c", str(limits), str(wheel.resolve())], check=True)


def run(scripts: Path, *command: str, expect: int = 0) -> str:
    """Run a command with nothing but the environment's own programs on the path; returns what it printed."""
    suffix = ".exe" if os.name == "nt" else ""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ONEBIT"))}
    environment["PATH"] = str(scripts)
    done = subprocess.run(
        [str(scripts / f"{command[0]}{suffix}"), *command[1:]],
        cwd=scripts,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    if done.returncode != expect:
        fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def check(scripts: Path) -> None:
    """Everything a person without torch and compiler can do."""
    code = "import importlib.util as u, onebit; print(onebit.__file__, u.find_spec('torch') is None)"
    home, without_torch = run(scripts, "python", "-c", code).split()
    if "site-packages" not in home or without_torch != "True":
        fail(
            f"this is no clean environment: onebit at {home}, torch {'absent' if without_torch == 'True' else 'there'}"
        )
    print("ok  import onebit, without torch")
    if "generate" not in run(scripts, "onebit", "--help"):
        fail("onebit --help does not list its commands")
    print("ok  onebit --help")
    run(scripts, "onebit", "doctor", "--json")
    print("ok  onebit doctor")
    run(scripts, "onebit-run", "--help")
    print("ok  onebit-run")
    tiny = Path(home).parent / "tiny" / "tiny.1bit"
    if not tiny.is_file():
        print("--  no tiny model in this wheel: generate not tried")
        return
    started = time.monotonic()
    text = run(scripts, "onebit", "generate", "tiny", "def ", "--max-new-tokens", "40", "--seed", "1")
    seconds = time.monotonic() - started
    if len(text.strip()) < 10 or seconds > ANSWER_SECONDS:
        fail(f"onebit generate: {len(text)} characters after {seconds:.1f} s, expected text within {ANSWER_SECONDS} s")
    print(f"ok  onebit generate, {seconds:.1f} s")


def main() -> None:
    """Read the one argument."""
    if sys.argv[1:] == ["--here"]:
        check(Path(sysconfig.get_path("scripts")))
    elif len(sys.argv) == 2:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "env"
            install(Path(sys.argv[1]), place)
            check(place / ("Scripts" if os.name == "nt" else "bin"))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
