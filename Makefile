# make demo    measure every ready method on the embedded target, print the table, write board.html
# make test    the whole test suite                 make test ARGS="-k registry"
# make lint    ruff, mypy, import-linter
# make clean   forget the virtual environment
#
# Each makes .venv first where it is missing or pyproject.toml, setup.py or constraints.txt changed.
# Another Python: make demo PYTHON=/path/to/python3.12

PYTHON ?=
ARGS ?=
BIN := .venv/bin
# Contents, not dates: a fresh checkout of the same files must not install again.
KEY := $(shell { cat pyproject.toml setup.py constraints.txt; echo '$(PYTHON)'; } | cksum | cut -d ' ' -f 1)
STAMP := .venv/installed-$(KEY)
CHECK_VERSION := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test lint install clean

demo: $(STAMP)
	$(BIN)/specbench run demo --repeats 1
	$(BIN)/specbench leaderboard -o board.html

# Where Python is told to write no bytecode, each of the hundred processes of the tests compiles the package anew.
test: $(STAMP)
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(STAMP)
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports || status=1; \
	exit $$status

install: $(STAMP)

$(STAMP):
	@python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
	  for name in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	    if "$$name" -c '$(CHECK_VERSION)' >/dev/null 2>&1; then python="$$name"; break; fi; \
	  done; \
	fi; \
	if ! "$$python" -c '$(CHECK_VERSION)' >/dev/null 2>&1; then \
	  found=$$("$${python:-python3}" --version 2>/dev/null) || found="no $${python:-python3}"; \
	  echo "specbench needs Python 3.11 or newer; here is $$found." >&2; \
	  echo "  try  apt install python3 python3-venv   (Debian 12, Ubuntu 24.04 or newer)" >&2; \
	  echo "       brew install python@3.12           (macOS)" >&2; \
	  echo "       make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),demo)" >&2; \
	  exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	  echo "$$python cannot make virtual environments: its venv module is not installed." >&2; \
	  echo "  try  apt install python3-venv" >&2; \
	  exit 1; \
	fi; \
	version='import sys; print(sys.version_info[:2])'; \
	have=$$($(BIN)/python -c "$$version" 2>/dev/null || true); \
	if [ -z "$$have" ] || { [ -n '$(PYTHON)' ] && [ "$$have" != "$$("$$python" -c "$$version")" ]; }; then \
	  rm -rf .venv && "$$python" -m venv .venv || exit 1; \
	fi; \
	echo "installing specbench into .venv with $$($(BIN)/python --version); torch makes this some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f .venv/installed-* && touch $@

clean:
	rm -rf .venv
