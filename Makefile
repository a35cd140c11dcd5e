# `make demo` and `make test` do all the set-up on a machine that has only Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
TABLE := benchmarks/.venv-peers/bin/python benchmarks/table.py

.PHONY: demo test check lint peers bench bench-speed bench-quality bench-label clean

$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "heed needs Python 3.11 or newer, found " + sys.version.split()[0]'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/heed run

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test

# The peers that heed is measured against, in virtual environments of their own; TRL 1.12 is the last with PPO.
peers: benchmarks/.venv-peers/.installed benchmarks/.venv-ppo/.installed

benchmarks/.venv-peers/.installed: TRL := 1.16
benchmarks/.venv-ppo/.installed: TRL := 1.12
benchmarks/.venv-%/.installed: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet 'torch>=2.9,<2.14' 'trl==$(TRL).*' matplotlib --editable .
	@touch $@

# An hour and a half on two quiet cores, most of an hour of it for the speed.
bench: bench-speed bench-quality bench-label
	$(TABLE)

bench-speed: $(VENV)/.installed peers
	for name in rollout reward_model dpo groups ppo; do $(BIN)/python benchmarks/bench_$$name.py --repetitions 2 --steps 2 || exit 1; done
	for name in rollout reward_model dpo groups; do $(BIN)/python benchmarks/bench_$$name.py --shape 30m --repetitions 1 --steps 1 || exit 1; done
	for name in reward_model dpo; do $(BIN)/python benchmarks/bench_$$name.py --shape gpt2 --repetitions 1 --steps 1 || exit 1; done
	$(BIN)/python benchmarks/bench_sweeps.py
	$(TABLE)

bench-quality: $(VENV)/.installed
	$(BIN)/python benchmarks/quality_testbed.py --algorithms reinforce dpo
	$(BIN)/python benchmarks/quality_real_inputs.py
	$(BIN)/python benchmarks/quality_annotators.py
	$(BIN)/python benchmarks/quality_active.py

bench-label: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_label.py

clean:
	rm -rf $(VENV) benchmarks/.venv-peers benchmarks/.venv-ppo runs build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
