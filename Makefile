# `make demo` and `make test` do all their own set-up; the second time they are quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest

.PHONY: demo lint test test-deep e2e test-lowest bench bench-compare drills soak locks sbom audit setup clean

demo: $(STAMP)
	$(BIN)/lhydra demo
	@echo "The command lives in $(BIN): . $(BIN)/activate"

# What needs no running: formatting, lint, types, import contracts, generated code. About a minute.
lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

# Two processes, each with whole files of tests, the long ones first (tests/conftest.py): most of the time is training, which
# keeps to one core, and a long file that came last would leave the other core idle.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The same with all that tests.harness.deep stands for (CONTRIBUTING.md): hours, by hand, before a release.
test-deep: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile=deep -o timeout=3600

# What needs a tool of its own: Envoy, which pip installs, gRPC for Node and what builds the page, which npm installs, and Prometheus
# with promtool and chromium, which Debian has. Where a tool is missing its tests are skipped, loudly.
e2e: $(STAMP)
	-@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group e2e
	-@npm install --silent --no-fund --no-audit --prefix .cache/node @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1
	-@npm ci --no-fund --no-audit --loglevel error --prefix server/lhydra_server/web/page_source
	$(BIN)/python -m pytest tests/e2e

# The tests against the lowest supported numpy, grpcio, protobuf and onnxruntime. By hand, and before a release.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(STAMP)
	@test -d demo/store || $(BIN)/lhydra demo
	$(BIN)/python -m benchmarks.latency --store demo/store --dataset demo/dataset

# Exit code 1 where a request has become slower beyond noise, 2 where nothing can be said.
bench-compare: $(STAMP)
	@test -d demo/store || $(BIN)/lhydra demo
	$(BIN)/python -m benchmarks.compare demo/dataset demo/store --against benchmarks/results/compare.json

# Which files of which versions a client, a server and a developer install; deploy/locks/README.md says how to use them.
LOCK = $(BIN)/uv pip compile --constraint constraints.txt --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command "make locks" --quiet
locks: $(VENV)/.supply
	$(LOCK) pyproject.toml --output-file deploy/locks/client.txt
	$(LOCK) pyproject.toml --extra server --extra redis --output-file deploy/locks/serve.txt
	echo "torch; python_version < '0'" | $(LOCK) pyproject.toml --extra all --group dev --overrides - --output-file deploy/locks/dev.txt
	printf 'hatchling\ncython\nsetuptools\n' | $(LOCK) - --output-file deploy/locks/build.txt

# What a server is made of (CycloneDX), read from an environment that holds its lock and nothing else.
sbom: $(VENV)/.supply
	rm -rf build/serve build/wheel
	$(PYTHON) -m venv --without-pip build/serve
	$(BIN)/python -m pip --python build/serve/bin/python install --quiet --require-hashes --requirement deploy/locks/serve.txt
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel
	$(BIN)/python -m pip --python build/serve/bin/python install --quiet --no-deps build/wheel/*.whl
	$(BIN)/cyclonedx-py environment build/serve/bin/python --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json
	@echo "build/sbom.json"

# Whether the locks name a version with a known flaw. Fails too where nobody could look.
audit: $(VENV)/.supply
	$(BIN)/python deploy/audit.py $(BIN)/pip-audit deploy/locks/client.txt deploy/locks/serve.txt \
		deploy/locks/dev.txt deploy/locks/build.txt

$(VENV)/.supply: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group supply
	touch $@

# Promises of a server, each tried on a real one: at most twenty minutes, and both cores. Redis and a C compiler help.
drills: $(STAMP)
	$(BIN)/python -m benchmarks.drills .cache/drills --out .cache/drills.json

# Ten minutes at half load, with a swap every ten seconds and plays.
soak: $(STAMP)
	$(BIN)/python -m benchmarks.drills .cache/drills --parts soak --out .cache/soak.json

setup: $(STAMP)

# torch first and pinned: a plain request for it can fetch gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard lhydra/kernels/*.p[yx]*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt hatch_build.py $(wildcard lhydra/kernels/*.p[yx]*)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[all]" --group dev
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .cache demo
