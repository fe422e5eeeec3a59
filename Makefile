# Two commands matter: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SEED   ?= 1
# Tests wait for processes more than they compute, so two at a time take little more than half the time of one.
TEST_WORKERS ?= 2
VLLM_VENV ?= .venv-vllm
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo demo-fast test lint format typecheck bench clean install install-dev wheel-check vllm vllm-test

demo: install  ## the whole job on this machine: agents -> Kafka's protocol -> LanceDB -> curated windows -> students -> evaluation
	$(BIN)/stillhouse demo --seed $(SEED)

demo-fast: install  ## the same code on a tiny random model, for CI: no claims
	$(BIN)/stillhouse demo --fast --seed $(SEED)

test: install-dev  ## every test, with the coverage floor
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered --skip-empty

lint: install-dev  ## ruff, its formatter, and the one-way rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m stillhouse.schemas.compat

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: install-dev
	$(BIN)/mypy

bench: install-dev  ## side-by-side figures, each a ratio in one run
	for script in bench/*.py; do case $$script in *_*) continue;; esac; echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script || exit 1; done

wheel-check: install-dev  ## `stillhouse demo --fast` from the built wheel
	.ci/wheel-check $(BIN)/python

vllm: $(VLLM_VENV)/.installed  ## vLLM for a CPU, in an environment of its own

vllm-test: install-dev vllm  ## the engines' contract suite on vLLM
	STILLHOUSE_TEST_VLLM=$(VLLM_VENV)/bin/python $(BIN)/pytest tests/serving/engine -k vllm

clean:
	rm -rf $(VENV) $(VLLM_VENV) .venv-wheel dist build .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.* .hypothesis .import_linter_cache

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Stillhouse needs Python 3.11 or newer as '$(PYTHON)'; name another one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and by itself: a CPU build where one is offered, and nothing after it replaces it.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(VLLM_VENV)/.installed: deploy/vllm/requirements.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q -r deploy/vllm/requirements.txt
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@
