# Two commands do everything: `make lab` and `make test`. The others are for those who change the course.
# They need Python >= 3.10 (with venv and pip), make and git; all the rest goes into .venv. Windows: see README.md.

PYTHON ?= python3
PORT ?= 8888
ARGS ?=

VENV := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
LESSON := $(firstword $(wildcard notebooks/00_*.ipynb))

.PHONY: help lab test lint notebooks site bench constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# An install runs again only when what it installs has changed.
INSTALLS := pyproject.toml constraints.txt tools/install.py tools/jupyter_settings.py

.venv/ready: $(INSTALLS)
	@$(PYTHON) tools/install.py

.venv/ready-%: $(INSTALLS)
	@$(PYTHON) tools/install.py $(subst -, ,$*)

lab: .venv/ready-llm-onnx  ## JupyterLab on lesson 0; PORT=8888, ARGS="--no-browser" and the like
	@echo "qlab: JupyterLab starts; open the address with ?token= that it prints. Ctrl-C twice ends it."
	@$(VENV)/jupyter lab --port=$(PORT) --log-level=WARN --LabApp.default_url=/lab/tree/$(or $(LESSON),README.md) \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

# Two workers with one thread each: two threads a worker would fight over two cores. Every test file, and every notebook,
# stays on one worker (loadscope), because a notebook's cells need each other; tests/conftest.py puts the longest first.
# What a solved copy has beside its lesson, the exercises, runs in tests/test_notebooks.py.
test: .venv/ready-test lint  ## every test, every docstring's example, every notebook; ARGS="-k affine" and the like
	@OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --cov=qlab --cov-fail-under=95 \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=120 qlab tests $(NOTEBOOKS) $(ARGS)

lint: .venv/ready-test  ## how code looks and whether its types agree; `.venv/bin/ruff format` mends the looks
	@$(VENV)/ruff check --quiet
	@$(VENV)/ruff format --check --quiet
	@$(VENV)/mypy --no-error-summary

notebooks: .venv/ready-test  ## notebooks/source/*.py -> notebooks/*.ipynb, executed
	@$(VENV)/python tools/build_notebooks.py $(ARGS)

site: .venv/ready-llm-onnx-site  ## the course as a web site in build/site/html; SERVE=1 shows it on PORT, ARGS=01_rounding builds one lesson
	@$(VENV)/python tools/build_site.py $(ARGS) $(if $(SERVE),--serve $(PORT))

bench: .venv/ready-bench  ## int8 speed beside other libraries', same weights, same run
	@$(VENV)/python tools/bench_int8.py $(ARGS)

# The packages that torch itself asks for by exact version (CUDA's, triton) are left out: a torch from another source, built
# for another CUDA, needs other ones.
constraints: .venv/ready  ## the exact versions that a clone installs, anew and as new as pyproject.toml lets them be
	@uv="$$(command -v uv || echo $(VENV)/uv)"; \
	"$$uv" pip compile --quiet --universal --python-version 3.10 --upgrade --all-extras --no-header --no-annotate \
		--no-emit-index-url pyproject.toml > .venv/constraints.txt
	@{ echo "# The exact versions that a clone installs, on every Python and system. Made by \`make constraints\`."; \
	   grep -v -E '^(nvidia-|cuda-|triton)' .venv/constraints.txt; } > constraints.txt
	@echo "qlab: $$(grep -c == constraints.txt) versions stand in constraints.txt"

clean:  ## remove .venv and what tests leave behind (not data/)
	rm -rf .venv build dist artifacts .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* *.egg-info
