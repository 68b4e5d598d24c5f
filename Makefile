# On a fresh Debian machine with Python 3.11: `make train` and `make test` do everything, without root.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torchrun says at length that it sets this to 1; the training script wants the same
export OMP_NUM_THREADS ?= 1

.PHONY: help train test check audit bench evidence clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z%-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | column -t -s '|'

# The CPU build of torch is what these targets are measured with; a user's own torch >= 2.6 serves the package as well.
$(VENV)/.torch:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is not here: apt-get install python3-venv, or make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0 "numpy>=2,<3"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/pip install --quiet -e ".[launch,tensorboard,test]"
	@touch $@

$(VENV)/.checkers: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[check]"
	@touch $@

train: $(VENV)/.installed  ## train ResNet-8 on Fashion-MNIST with 2 processes, 0.1 % of the gradient sent
	$(BIN)/torchrun --standalone --nproc-per-node 2 launch/train.py \
	  --task image --model resnet8 --data fashion-mnist --epochs 4 --batch-size 64 \
	  --compress dgc --density 0.001 --warmup-epochs 1

test: $(VENV)/.installed  ## run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.checkers  ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

audit: $(VENV)/.installed  ## look for known vulnerabilities in the dependencies
	@$(BIN)/pip install --quiet pip-audit || { echo "audit: NOT DONE, pip-audit can't be installed"; exit 0; }; $(BIN)/python .ci/audit

bench: bench-accuracy  ## DGC beside dense DDP and its peers, four tasks (goes on where it was interrupted)

evidence: $(VENV)/.installed  ## write docs/evidence.html and .md from benchmarks/results
	$(BIN)/python -m benchmarks.report

bench-%: $(VENV)/.installed  ## run one script of benchmarks/
	$(BIN)/python benchmarks/$*.py

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
