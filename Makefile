# `make demo` and `make test` set up what they need: nothing else has to be installed first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles what it imports; pip would compile all 18,000 files, which takes longer than the rest of installing.
INSTALL := $(BIN)/pip install -q --no-compile -c constraints.txt
# Processes that share the tests, file by file; each takes up to 2 GB.
WORKERS ?= 2

ifdef CI
export PIP_PROGRESS_BAR := off
endif

.PHONY: demo test lint types cover bench clean

demo: $(VENV)/.demo
	$(BIN)/lsr demo

test: $(VENV)/.dev lint
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -q tests/test_kernels.py tests/test_index.py tests/test_storage.py \
		tests/test_queries.py tests/test_seismic_graph.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# mypy wants to see one package: the four folders, laid out as they are installed.
types: $(VENV)/.dev
	rm -rf build/typing && mkdir -p build/typing
	cp -r lsr build/typing/lsr
	cp -r index training eval build/typing/lsr/
	$(BIN)/mypy

cover: $(VENV)/.dev
	NUMBA_DISABLE_JIT=1 $(BIN)/coverage run -m pytest -q && $(BIN)/coverage report

bench: $(VENV)/.dev
	$(INSTALL) -e ".[bench]"
	$(BIN)/lsr bench --vectors ../shared/vectors/wiki-112k.splade-tiny.npz \
		--queries ../shared/vectors/squad-dev-questions.splade-tiny.npz

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "installing into $(VENV): half a minute, once"
	$(INSTALL) -e ".[encode,eval]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "installing into $(VENV): a minute, once"
	$(INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
