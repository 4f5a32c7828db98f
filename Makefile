# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
CORES ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")

.PHONY: setup compile demo test test-cluster test-all lint format lock

setup: .venv/ready

# torch comes first and by itself: PyPI's build for Linux brings several GB of CUDA libraries, while pip may be configured
# with an index or folder that offers the CPU build, which it then prefers. Either is checked against the digests in
# requirements.lock. The CUDA libraries are installed only where the torch at hand asks for them.
PIP := $(BIN)/pip --disable-pip-version-check -qq
LOCKED := install --compile --no-deps --require-hashes
.venv/ready: requirements.lock requirements-cuda.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "haemex needs Python 3.11; name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "haemex: setting up .venv, once, a few minutes"
	@$(PYTHON) -m venv .venv
	@echo "  1/3 torch"
	@sed -n '/^torch==/,/[^\\]$$/p' requirements.lock > .venv/torch.lock
	@$(PIP) download --no-deps --dest .venv/wheels $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' .venv/torch.lock)
	@$(PIP) $(LOCKED) --no-index --find-links .venv/wheels -r .venv/torch.lock
	@rm -r .venv/wheels
	@echo "  2/3 the other packages"
	@$(PIP) $(LOCKED) -r requirements.lock
	@if $(BIN)/python -c "import importlib.metadata as m, sys; sys.exit(not any(r.startswith('nvidia') for r in m.requires('torch')))"; then \
		echo "      this torch can use NVIDIA GPUs: its CUDA libraries (large)"; \
		$(PIP) $(LOCKED) -r requirements-cuda.lock; \
	fi
	@echo "  3/3 haemex itself"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Without a GPU, trainings run side by side on the CPU: as many as there are cores.
demo: .venv/ready compile
	@echo "haemex: the whole study on synthetic patients, about four minutes on two cores"
	@$(BIN)/snakemake --cores $(CORES) --resources gpu=$(CORES) --configfile config/demo.yaml
	@echo "The report: results/demo/report/report.html"

# Every job starts a Python: with its byte code at hand that takes half the time.
compile: .venv/ready
	@$(BIN)/python -m compileall -q haemex

# A file's tests share what they make, so they stay on one core; tests/conftest.py puts the longest file first.
test: .venv/ready compile
	$(BIN)/python -m pytest -q -m "not slow and not cluster" -n $(CORES) --dist loadfile --no-loadscope-reorder

# Debian's packages slurm-wlm and munge, and root: the tests start a cluster of one node on this machine.
test-cluster: .venv/ready compile
	$(BIN)/python -m pytest -q -m "cluster and not slow" tests/test_cluster.py

test-all: .venv/ready compile
	$(BIN)/python -m pytest -q -n $(CORES) --dist loadfile --no-loadscope-reorder

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint --configfile config/demo.yaml

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# Pin everything anew. The CPU build of torch for Linux is not on PyPI; its digest is added beside PyPI's.
TORCH_CPU_SHA256 := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
CUDA := nvidia-|cuda-|triton
lock: pyproject.toml
	uv export --quiet --no-emit-project --group dev --no-annotate --no-header --output-file all.lock
	$(PYTHON) -c "import re, pathlib; \
	blocks = re.findall(r'^[a-z0-9].*(?:\n    .*)*', pathlib.Path('all.lock').read_text(), re.M); \
	cuda = [b for b in blocks if re.match(r'$(CUDA)', b)]; \
	rest = [b for b in blocks if b not in cuda]; \
	rest = [b + ' \\\\\n    --hash=sha256:$(TORCH_CPU_SHA256)' if b.startswith('torch==') else b for b in rest]; \
	head = '# Made by \`make lock\`; every pin with the digests of its files.\n'; \
	pathlib.Path('requirements.lock').write_text(head + '\n'.join(rest) + '\n'); \
	pathlib.Path('requirements-cuda.lock').write_text(head + '\n'.join(cuda) + '\n')"
	rm all.lock uv.lock
