# Bare `make` lists the targets. Each makes its own .venv and installs what it needs (tools/bootstrap.sh).
#   TORCH=...         another torch than constraints.txt names     PYTHON=...  the interpreter .venv is made with
#   PYTEST_ARGS=...   further arguments for pytest                 DEMO_ARGS=... for `onebit demo`
PY := .venv/bin/python
# Tests and builds find the environment's own programs first: CMake and Ninja come from there on a bare machine.
WITH_TOOLS := PATH="$(CURDIR)/.venv/bin:$$PATH"
# What tests and checks need: every extra that the tests touch.
EXTRAS := train,search,serve,eval,dev
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench wheel wasm docs clean

help:  ## list these targets
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  ##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | \
	  while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

demo:  ## train, export and run a ternary model in a few minutes; writes demo/report.html
	@tools/bootstrap.sh train
	@.venv/bin/onebit demo $(DEMO_ARGS)

test:  ## the test suite (at most 10 minutes on 2 cores)
	@tools/bootstrap.sh $(EXTRAS)
	@echo "-- running the tests"
	@$(WITH_TOOLS) $(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow:  ## the long tests that `make test` leaves out
	@tools/bootstrap.sh $(EXTRAS)
	@$(WITH_TOOLS) $(PY) -m pytest -m slow $(PYTEST_ARGS)

check:  ## ruff, mypy --strict, import arrows, stale docs pages
	@tools/bootstrap.sh $(EXTRAS)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) tools/make_cli_pages.py --check
	$(PY) tools/make_numbers.py --check

bench:  ## list the benchmarks; each is one script that writes benchmarks/results/
	@tools/bootstrap.sh train
	@for script in benchmarks/*.py; do \
	  printf '  .venv/bin/python %-34s %s\n' "$$script" \
	    "$$($(PY) -c 'import ast,sys; print(ast.get_docstring(ast.parse(open(sys.argv[1]).read())).splitlines()[0])' $$script)"; done

wheel:  ## build the wheel of this platform and try it in an empty environment
	@tools/bootstrap.sh $(EXTRAS)
	@echo "-- building the wheel"
	@rm -rf dist && $(WITH_TOOLS) $(PY) -m build --wheel --no-isolation --outdir dist . >/dev/null
	@$(PY) tools/try_wheel.py dist/*.whl

wasm:  ## build the engine for browsers into src/onebit/web (needs clang-16 and lld-16)
	@engine/wasm/build.sh src/onebit/web/onebit.wasm
	@RELAXED=1 engine/wasm/build.sh src/onebit/web/onebit-relaxed.wasm
	@ls -l src/onebit/web/*.wasm

docs:  ## regenerate the CLI pages and the README's numbers, and build the documentation into site/
	@tools/bootstrap.sh docs
	@$(PY) tools/make_cli_pages.py
	@$(PY) tools/make_numbers.py
	@.venv/bin/mkdocs build --quiet --strict
	@echo "open site/index.html"

clean:  ## remove what was built; keeps .venv
	rm -rf build dist site wheelhouse .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
