# make reproduce   the whole recipe at tiny scale, then reports/tiny/index.html
# make test        ruff, mypy, import contracts, pytest
# make lab         JupyterLab on notebooks/, in the same environment
# make docs        docs/ and the API reference into site/index.html, links checked
# make lock        resolve the dependencies of pyproject.toml again into requirements.lock (environment.yml installs the same file)
# Each first makes .venv (uv by pip, the lock, the package) and does nothing twice. SCALE=small, PYTHON=python3.12 change the obvious.

PYTHON ?= python3
SCALE ?= tiny
# Processes that share the tests, a file each; up to 5 GB of memory each.
WORKERS ?= 2
BIN := .venv/bin
# Once the environment is set up, nothing is fetched: hub clients must not try.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1

.PHONY: reproduce test lab docs lock clean
.DELETE_ON_ERROR:

reproduce: .venv/.ready
	$(BIN)/moxin-lab run --scale $(SCALE)

test: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

lab: .venv/.ready
	$(BIN)/jupyter lab --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate notebooks

docs: .venv/.ready
	$(BIN)/mkdocs build --strict

.venv/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.12 or the like")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/.ready: requirements.lock pyproject.toml | .venv/bin/uv
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	touch $@

lock: .venv/bin/uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --extra dev --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --upgrade --quiet --output-file requirements.lock

clean:
	rm -rf runs reports/tiny site .import_linter_cache .pytest_cache .mypy_cache .ruff_cache
