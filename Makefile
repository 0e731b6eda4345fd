# A fresh machine needs Python 3.11, make and pip. Every target first makes .venv from requirements.lock, once, and
# again only when requirements.lock or pyproject.toml has changed.
#   make figures   train the studies and regenerate every figure     (ARGS="..." goes to `peftkit figures`)
#   make test      package tests, then every notebook, smoke tier    (ARGS="..." goes to pytest)
#   make lab       JupyterLab on notebooks/
#   make env       the environment alone
PYTHON ?= python3
# torch built for the CPU; for an NVIDIA card: make env TORCH_INDEX=https://pypi.org/simple
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=

TORCH := $(shell grep '^torch==' requirements.lock)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# The kernel `python3` is the one of .venv, whatever else the user's Jupyter folders and start-up files hold.
export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter
export JUPYTER_PREFER_ENV_PATH := 1
export IPYTHONDIR := $(CURDIR)/.venv/ipython
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: figures test lab env

figures: $(READY)
	$(BIN)/peftkit figures $(ARGS)

test: $(READY)
	PEFTKIT_TIER=smoke $(BIN)/python -m pytest tests $(NOTEBOOKS) \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(ARGS)

lab: $(READY)
	$(BIN)/jupyter lab notebooks

env: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("peftkit needs Python 3.11 or newer, this is " \
		+ sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@echo "Setting up .venv from requirements.lock (once, one to five minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) --no-deps --retries 2 --extra-index-url $(TORCH_INDEX) $(TORCH)  # its dependencies: next line
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import matplotlib.font_manager'  # its font cache, whose notice would land in a notebook's stderr
	@touch $@
