# Every target makes what it needs: a machine with python3 (3.11 or newer, with venv) and git is enough.
#
#   .venv/.run     the programs and their dependencies
#   .venv/.dev     + pytest, hypothesis, ruff, mypy
#   .venv/.bench   + matplotlib for the chart; the bench runs without it
# The tests run in JOBS processes: a system test waits for most of its time. JOBS=0 runs them one after the other.
# The stamps depend on pyproject.toml: change a dependency and the next target installs it.

# The distribution's interpreter where it will do: its security updates arrive by themselves, and it is built with
# profile-guided optimization, which one compiled in a home directory mostly is not. PYTHON=... decides otherwise.
SYSTEM_PYTHON := $(shell /usr/bin/python3 -c \
	'import sys, venv, ensurepip; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null)
PYTHON ?= $(or $(SYSTEM_PYTHON),python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TESTS  ?= tests/unit tests/system
JOBS   ?= 3
SAMPLES ?= samples

.DEFAULT_GOAL := help
# Where `make install` puts things; DESTDIR goes before all of them, for packagers. A venv of its own holds the programs.
PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR    ?= $(SYSCONFDIR)/systemd/system
LIBDIR     := $(PREFIX)/lib/prefork-balancer
PROGRAMS   := balancer balancerctl resizer resize-client
DOCKER     ?= docker
IMAGE      ?= prefork-balancer

.PHONY: help demo test lint format bench bench-images bench-framed versus soak install uninstall image sbom clean

help:
	@echo 'make demo          three resizers, one balancer, one client; results in samples/'
	@echo 'make test          unit tests, then real processes in the short form (TESTS=path selects)'
	@echo 'make lint          ruff check, ruff format --check, mypy --strict'
	@echo 'make bench         ours beside haproxy, nginx and envoy (WORK=keepalive,tls-new PEERS=haproxy ROUNDS=5)'
	@echo 'make bench-images  the picture function, a directory, the service, thumbor and sharp servers (INPUT=directory)'
	@echo 'make bench-framed  framed mode on one connection; the original headline work (GOWORK_FRONTEND=... names it)'
	@echo 'make versus        faults, reloads, pauses and names: ours beside haproxy and nginx'
	@echo 'make soak          the long form of the system tests (hours)'
	@echo 'make install       programs, man pages, units, configuration below PREFIX, SYSCONFDIR (DESTDIR=... for packagers)'
	@echo 'make image         the container images IMAGE and IMAGE-resizer (DOCKER=podman)'
	@echo 'make sbom          build/sbom.json: what the programs are made of, in CycloneDX'
	@echo 'make clean         everything that the targets above have made'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(PYTHON) is older than 3.11: name a newer one with PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.run
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.run
	-$(PIP) -e '.[bench]'
	@touch $@

demo: $(VENV)/.run
	$(BIN)/python -m scripts.demo $(SAMPLES)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not soak' $(TESTS) $(PYTEST)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak tests $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict balancer workers scripts

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python -m scripts.bench $(if $(WORK),--work $(WORK)) $(if $(PEERS),--peers $(PEERS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(TOGETHER),--together) $(BENCH)

bench-images: $(VENV)/.bench
	$(BIN)/python -m scripts.bench_images $(if $(INPUT),--input $(INPUT)) $(BENCH)
	$(BIN)/python -m scripts.bench_directory $(if $(ROUNDS),--rounds $(ROUNDS))
	$(BIN)/python -m scripts.bench_service $(if $(INPUT),--input $(INPUT)) $(if $(ROUNDS),--rounds $(ROUNDS))
	$(BIN)/python -m scripts.bench_servers $(if $(ROUNDS),--rounds $(ROUNDS))

bench-framed: $(VENV)/.bench
	$(BIN)/python -m scripts.bench_framed $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH)

versus: $(VENV)/.dev
	$(BIN)/python -m scripts.versus $(VERSUS)

# Configuration that is there stays. The programs' first lines name the interpreter where they will lie, so that an
# installation below DESTDIR works once it is moved; nothing in it names DESTDIR, and no pip comes with it. No service is started, and no user is made: the units have dynamic ones.
install:
	$(PYTHON) -m venv --clear $(DESTDIR)$(LIBDIR)
	$(DESTDIR)$(LIBDIR)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile .
	$(DESTDIR)$(LIBDIR)/bin/python -m pip uninstall --quiet --yes pip setuptools
	find $(DESTDIR)$(LIBDIR)/bin -type f $(foreach program,$(PROGRAMS),! -name $(program)) -delete
	sed -i '/^command = /d' $(DESTDIR)$(LIBDIR)/pyvenv.cfg
	rm -f $(DESTDIR)$(LIBDIR)/lib/python*/site-packages/prefork_balancer-*.dist-info/direct_url.json
	$(DESTDIR)$(LIBDIR)/bin/python -m compileall -q -f $(if $(DESTDIR),-s $(DESTDIR) -p /) $(DESTDIR)$(LIBDIR)/lib
	install -d $(addprefix $(DESTDIR),$(PREFIX)/bin $(UNITDIR) $(SYSCONFDIR)/prefork-balancer $(PREFIX)/share/doc/prefork-balancer)
	sed -i '1s|^#!.*|#!$(LIBDIR)/bin/python|' $(addprefix $(DESTDIR)$(LIBDIR)/bin/,$(PROGRAMS))
	for program in $(PROGRAMS); do ln -sfn $(LIBDIR)/bin/$$program $(DESTDIR)$(PREFIX)/bin/$$program; done
	cp -R $(DESTDIR)$(LIBDIR)/share/. $(DESTDIR)$(PREFIX)/share/
	cp -R README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE docs $(DESTDIR)$(PREFIX)/share/doc/prefork-balancer/
	ln -sfn ../../prefork-balancer $(DESTDIR)$(PREFIX)/share/doc/prefork-balancer/conf
	for unit in conf/*.service conf/*.socket; do \
		sed 's|/usr/local/|$(PREFIX)/|g; s|/etc/prefork-balancer|$(SYSCONFDIR)/prefork-balancer|g' "$$unit" \
			> $(DESTDIR)$(UNITDIR)/$${unit##*/}; done
	for file in balancer resizer resize-client; do target=$(DESTDIR)$(SYSCONFDIR)/prefork-balancer/$$file.ini; \
		[ -e $$target ] || install -m 644 conf/$$file-minimal.ini $$target; done

uninstall:
	rm -rf $(DESTDIR)$(LIBDIR) $(DESTDIR)$(PREFIX)/share/prefork-balancer $(DESTDIR)$(PREFIX)/share/doc/prefork-balancer
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS))
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(notdir $(wildcard conf/*.service conf/*.socket)))
	rm -f $(patsubst conf/man/%,$(DESTDIR)$(PREFIX)/share/man/man1/%,$(wildcard conf/man/*.1))
	rm -f $(patsubst conf/man/%,$(DESTDIR)$(PREFIX)/share/man/man5/%,$(wildcard conf/man/*.5))
	rm -f $(patsubst conf/man/%,$(DESTDIR)$(PREFIX)/share/man/man8/%,$(wildcard conf/man/*.8))
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/balancerctl.bash
	rm -f $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_balancerctl
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/balancerctl.fish

image:
	$(DOCKER) build --target resizer --tag $(IMAGE)-resizer .
	$(DOCKER) build --tag $(IMAGE) .

# Of an environment that holds the programs and nothing else: the tool that makes the list runs in another one.
sbom: $(BIN)/python
	$(PIP) -e '.[sbom]'
	$(PYTHON) -m venv --clear build/sbom
	build/sbom/bin/python -m pip install --quiet --disable-pip-version-check .
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file build/sbom.json build/sbom

clean:
	rm -rf $(VENV) samples bench-out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find balancer workers scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -maxdepth 1 -name '*.pstats' -delete
