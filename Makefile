# `make up` and `make test` do everything on a machine that has Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: up demo test check format faults bench lock clean

up: $(VENV)/.complete
	@$(BIN)/ackline up $(ARGS)

demo: $(VENV)/.complete
	@$(BIN)/ackline up --demo $(ARGS)

test: $(VENV)/.complete
	@$(BIN)/pytest $(ARGS)

# Also brings the whole of docker-compose.yml up, where Docker answers.
.PHONY: test-compose
test-compose: $(VENV)/.complete
	@ACKLINE_TEST_COMPOSE=1 $(BIN)/pytest tests/compose $(ARGS)

faults: $(VENV)/.complete
	@ACKLINE_TEST_LONG=1 $(BIN)/pytest tests/faults $(ARGS)

# Side by side with what it compares to, which is installed first; ARGS: --short, names of benchmarks.
bench: $(VENV)/.complete
	@$(BIN)/pip install -qq --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m tests.benchmarks $(ARGS)

check: $(VENV)/.complete
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.complete
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(VENV)/.complete
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --no-emit-index-url \
		--no-header --no-annotate pyproject.toml -o requirements.lock

$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Ackline needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
