# Bare `make` prints what can be made. `build run test` need Go, git and make
# alone; what else a target needs is said where it is made, and its absence
# fails.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

MODULE   := github.com/rookery-mail/rookery
PROGRAMS := $(patsubst cmd/%/main.go,%,$(wildcard cmd/*/main.go))
LDFLAGS  := -X $(MODULE)/internal/obs.version=$(VERSION)

# Where two goroutines meet: the packages that are also tested with -race.
RACE := $(patsubst %,./%/...,$(wildcard raftstore server client internal/kv internal/mtls internal/obs directory/machine adapter/mupdate))

TOOLS      := bin/tools
BUF        := $(TOOLS)/buf
GENERATORS := $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc
STATICCHECK := $(TOOLS)/staticcheck
ETCD        := $(TOOLS)/etcd
POWERFS     := $(TOOLS)/powerfs

# The build tags of tests that need more than Go.
TAGS := peers,upgrade

DATA     ?= data
BENCHDIR ?= bin/bench
CLUSTERSIZE ?= 1M
FUZZTIME ?= 30s
KILLS    ?= 500

SOAK     ?= 2h
POWER_CUTS ?= 1000
POWER_SEED ?= 0
POWER_DAMAGE ?= 3

UPGRADETIME ?= 2s
FACTS    ?= 1000000

PEERS_SEEDS ?= 36
PEERS_FIRST ?= 1
ROTATION    ?= $(shell git rev-list --count HEAD 2>/dev/null || echo 1)

SIMSEEDS ?= 100
SIMFIRST ?= 1
SIMTIME  ?= 1000s
CHAOS_FAULTS     ?= 1000
CHAOS_OPERATIONS ?= $(shell expr $(CHAOS_FAULTS) '*' 2000 2>/dev/null)
CHAOS_SEED       ?= 0
CHAOS_LEAST      ?= 100
CHAOS_ARGS       ?=
LOSSES           ?= 100

POWERLOSS  := $(GO) test -tags peers ./internal/powerloss -count 1 -timeout 120m -v -run
POWER_ARGS  = -args -rookeryd $(CURDIR)/bin/rookeryd -rookeryctl $(CURDIR)/bin/rookeryctl -power.seed=$(POWER_SEED)

INTEROP_REPEATS ?= 20
INTEROP := $(GO) test -tags peers ./internal/interop -run '^TestInterop$$' -count 1 -timeout 0 -v -args -interop.programs $(CURDIR)/bin

LOADNODES    ?= 1
LOADWATCHERS ?= 200
LOADRATE     ?= 5000
LOADTIME     ?= 1m

# $(call part,name,command) runs one part of a target and prints its time.
define part
@printf '\n== %s\n' '$(1)'; start=$$(date +%s); { $(2); } && printf '== %s: %ss\n' '$(1)' "$$(($$(date +%s) - start))"
endef

.DEFAULT_GOAL := help
.PHONY: help build man run test test-peers race sim fuzz bench bench-10m bench-mupdate bench-cluster demo crash crash-leader watch-load catch-up soak-elections soak mutants generate check check-systemd clean powerloss chaos leader-loss interop upgrade testdata-release

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## build the programs of cmd/ into bin/
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

demo: build ## three nodes with certificates, a killed leader under load, nothing lost; up until ^C
	@deploy/demo/demo.sh bin testdata/cyrus

man: build ## write the man pages of rookeryctl into bin/man/man1
	bin/rookeryctl man bin/man/man1

run: build ## serve a single node on loopback, its state in ./data
	@mkdir -p $(DATA)
	exec bin/rookeryd --name n1 --data $(DATA)

test: ## what must hold: gofmt, vet, every test; Go, git and make suffice
	$(call part,gofmt,$(MAKE) -s gofmt)
	$(call part,go vet,$(GO) vet ./...)
	$(call part,go test,$(GO) test -timeout 9m ./...)

race: ## the concurrent packages again under the race detector; needs a C compiler
	@command -v "$$($(GO) env CC)" >/dev/null || { echo "make race: the race detector needs a C compiler, and $$($(GO) env CC) is not there" >&2; exit 1; }
	$(call part,go test -race,CGO_ENABLED=1 $(GO) test -race -timeout 30m $(RACE))

sim: ## SIMSEEDS (100) simulated clusters from seed SIMFIRST (1), SIMTIME (1000s) of virtual time each, on all processors
	$(GO) test ./internal/sim -run '^TestSim$$' -count 1 -timeout 0 -v -args -sim.seeds=$(SIMSEEDS) -sim.first=$(SIMFIRST) -sim.time=$(SIMTIME) -sim.workers=$$(nproc)

fuzz: ## every Fuzz function of the tree for FUZZTIME (30s) each
	@internal/tools/fuzz.sh $(FUZZTIME)

crash: build ## kill -9 rookeryd KILLS (500) times under load; every acknowledged command must be there
	$(GO) test $$($(GO) test -list '^TestKill' ./cmd/... | awk '/^TestKill/ { has = 1 } /^ok/ { if (has) print $$2; has = 0 }') \
		-run '^TestKill' -count 1 -timeout 60m -v -args -kills=$(KILLS)

crash-leader: build ## kill -9 the leader of three nodes KILLS times under load; prints how long writes wait; KILLS=100 takes minutes
	$(GO) test ./cmd/rookeryd -run '^TestKillLeader$$' -count 1 -timeout 120m -v -args -leader-kills=$(KILLS)

test-peers: build $(POWERFS) ## slices of sim, chaos, powerloss, interop and mutants, in six minutes; needs Linux, root, ip, iptables, FUSE, Debian's Cyrus
	$(call part,sim,$(GO) test ./internal/sim -run '^TestSim$$' -count 1 -timeout 0 -v -args -sim.seeds=$(PEERS_SEEDS) -sim.first=$(PEERS_FIRST) -sim.time=1000s -sim.workers=$$(nproc))
	$(call part,chaos,$(GO) test -tags peers ./internal/chaos -count 1 -timeout 0 -v)
	$(call part,powerloss,$(GO) test -tags peers ./internal/powerloss -run '^TestPowerLoss$$' -count 1 -timeout 0 -v -args -rookeryd $(CURDIR)/bin/rookeryd -rookeryctl $(CURDIR)/bin/rookeryctl)
	$(call part,interop,$(GO) test -tags peers ./internal/interop -count 1 -timeout 0 -v -args -interop.programs $(CURDIR)/bin -interop.repeats 1)
	$(call part,mirror,$(GO) test -tags peers ./adapter/mupdate/mirror -run Cyrus -count 1 -timeout 5m -v)
	$(call part,mutants,$(MAKE) -s mutants ROTATE=$(ROTATION))

powerloss: build $(POWERFS) ## cut the power of nodes POWER_CUTS (1000) times, and damage POWER_DAMAGE (3; 0: none) places of each kind of file; needs Linux, root, FUSE; in half an hour
	$(GO) -C internal/tools/powerfs test ./...
	$(call part,power cuts,$(POWERLOSS) '^TestPowerLoss$$' $(POWER_ARGS) -power.cuts=$(POWER_CUTS))
	$(if $(filter-out 0,$(POWER_DAMAGE)),$(call part,damage,$(POWERLOSS) '^TestPowerDamage$$' $(POWER_ARGS) -power.damage=$(POWER_DAMAGE)))

chaos: ## break real nodes in network namespaces CHAOS_FAULTS (1000) times, CHAOS_LEAST (100) operations a second at least, and judge every answer; needs root, ip, iptables; half an hour
	$(GO) test -tags peers ./internal/chaos -run '^TestChaos$$' -count 1 -timeout 0 -v -args -chaos.faults=$(CHAOS_FAULTS) -chaos.operations=$(CHAOS_OPERATIONS) -chaos.seed=$(CHAOS_SEED) -chaos.least=$(CHAOS_LEAST) $(CHAOS_ARGS)

interop: build ## Debian's Cyrus with 3 nodes and with 1 for its MUPDATE master, in peace and INTEROP_REPEATS (20) times with kills; needs root, ip, Debian's Cyrus; in an hour
	$(call part,interop with three nodes,$(INTEROP) -interop.nodes=3 -interop.repeats=$(INTEROP_REPEATS) $(INTEROP_ARGS))
	$(call part,interop with one node,$(INTEROP) -interop.nodes=1 -interop.repeats=$(INTEROP_REPEATS) $(INTEROP_ARGS))

leader-loss: ## take the leader of three away by kill, pause and partition, LOSSES (100) times each; prints how long writes wait; needs root, ip, iptables
	$(GO) test -tags peers ./internal/chaos -run '^TestLeaderLoss$$' -count 1 -timeout 0 -v -args -chaos.losses=$(LOSSES)

watch-load: build ## LOADWATCHERS (200) watchers in processes of their own at LOADRATE (5000) changes a second for LOADTIME (1m), with kills
	$(GO) test ./cmd/rookeryd -run '^TestWatchLoad$$' -count 1 -timeout 30m -v -args -load.nodes=$(LOADNODES) \
		-load.watchers=$(LOADWATCHERS) -load.rate=$(LOADRATE) -load.time=$(LOADTIME) -load.kill=5s -load.mailboxes=20000

catch-up: build ## a node FACTS (1000000) behind comes back under full load; a learner on a slow line; in a quarter of an hour
	$(GO) test ./cmd/rookeryd -run '^(TestCatchUp|TestSlowLearner)$$' -count 1 -timeout 120m -v -args \
		-catchup.facts=$(FACTS) -catchup.writers=64 -catchup.window=20s -catchup.share=0.5 -catchup.log=0 \
		-learner.facts=100000 -learner.writers=64 -learner.window=90s -learner.rate=1000000 -learner.log=2097152 -learner.given-up=1 \
		-learner.share=0.7 -learner.slower=2

soak-elections: build ## three nodes at 60 % of what they can do for SOAK (2h); nobody is killed, so every election is a false one
	$(GO) test ./cmd/rookeryd -run '^TestElections$$' -count 1 -timeout 0 -v -args \
		-soak.time=$(SOAK) -soak.probe=10s -soak.mailboxes=100000 -soak.false=0

mutants: $(if $(ROTATE),,$(POWERFS)) ## plant each bug of internal/mutants and see that simulation, chaos or power cuts catch it, in hours; MUTANT=expression for some, ROTATE=number for two
	$(GO) test -tags peers ./internal/mutants -run '^TestMutants$$' -count 1 -timeout 0 -v -args \
		$(if $(MUTANT),-mutants.only='$(MUTANT)',$(if $(ROTATE),-mutants.rotate=$(ROTATE),-mutants.all))

soak: build ## three nodes under all that clients and operators do for SOAK (2h); fails unless memory, descriptors, goroutines and files stay flat; below 90s it only shows them
	$(GO) test ./cmd/rookeryd -run '^TestSoak$$' -count 1 -timeout 0 -v -args -rookeryd=$(CURDIR)/bin/rookeryd -soak.time=$(SOAK)

upgrade: ## nodes of this release beside earlier ones, built from their commits: there and back under load; UPGRADETIME (2s) for each mixture
	$(call part,upgrade,$(GO) vet -tags upgrade ./internal/upgrade && $(GO) test -tags upgrade ./internal/upgrade -count 1 -timeout 60m -v -args \
		-upgrade.time=$(UPGRADETIME) -upgrade.programs=$(CURDIR)/bin/releases)

testdata-release: ## a data directory of RELEASE, made by its own programs, into internal/upgrade/testdata
	@[ -n "$(RELEASE)" ] || { echo "make testdata-release RELEASE=v0.3.0: say which, of internal/upgrade/releases.go" >&2; exit 1; }
	$(GO) test -tags upgrade ./internal/upgrade -run '^TestMakeRelease$$' -count 1 -v -args -upgrade.make=$(RELEASE) -upgrade.programs=$(CURDIR)/bin/releases
	$(GO) test ./internal/upgrade -run '^TestRelease' -count 1 -update

bench: build ## the numbers of docs/BENCHMARKS.md at 100k and 1M mailboxes, in minutes
	bin/rookery-bench --population 100k,1M --dir $(BENCHDIR) --json $(BENCHDIR)/bench.json --plot $(BENCHDIR)/bench.svg

bench-10m: build ## the same at 10M mailboxes beside 100k; takes its time and some 20 GB of disk
	bin/rookery-bench --population 100k,10M --dir $(BENCHDIR) --json $(BENCHDIR)/bench-10m.json --plot $(BENCHDIR)/bench-10m.svg

bench-mupdate: build ## MUPDATE beside the master of Debian's Cyrus at 100k and 1M mailboxes, in a quarter of an hour; needs root and its packages
	bin/rookery-bench mupdate --population 100k,1M --dir $(BENCHDIR) --json $(BENCHDIR)/bench-mupdate.json

bench-cluster: build $(ETCD) ## three nodes beside three of etcd at CLUSTERSIZE (1M) mailboxes, in half an hour
	bin/rookery-bench compare --population $(CLUSTERSIZE) --dir $(BENCHDIR) --json $(BENCHDIR)/bench-cluster-$(CLUSTERSIZE).json

generate: $(BUF) $(GENERATORS) ## generate the Go code of proto/ with the pinned tools
	$(BUF) generate

check: $(BUF) $(GENERATORS) $(STATICCHECK) ## what may not drift: generated code, contracts, modules, arrows, staticcheck
	$(call part,generated code,internal/tools/check-generated.sh $(BUF))
	$(call part,buf lint,$(BUF) lint)
	$(call part,buf breaking,internal/tools/check-breaking.sh $(BUF))
	$(call part,gofmt,$(MAKE) -s gofmt)
	$(call part,go vet,$(GO) vet ./... && $(GO) vet -tags $(TAGS) ./internal/...)
	$(call part,staticcheck,$(STATICCHECK) -tags $(TAGS) ./...)
	$(call part,go mod tidy,$(GO) mod tidy -diff && $(GO) -C internal/tools mod tidy -diff && $(GO) -C internal/tools/buf mod tidy -diff && $(GO) -C internal/tools/etcd mod tidy -diff && $(GO) -C internal/tools/powerfs mod tidy -diff)
	$(call part,arrows,$(GO) test ./internal/archtest)

check-systemd: build ## have systemd read the unit; needs systemd-analyze
	@internal/tools/check-systemd.sh bin/rookeryd 15

clean: ## remove what was built; ./data stays
	rm -rf bin

# The parts below are made by the targets above.
.PHONY: gofmt
gofmt:
	@bad=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .) || exit 1; \
	[ -z "$$bad" ] || { echo "gofmt would change:" >&2; echo "$$bad" >&2; exit 1; }

# buf has a module of its own: it asks for a newer protobuf than the generators
# are pinned to, and one module has one version of each.
$(BUF): internal/tools/buf/go.mod internal/tools/buf/go.sum
	$(GO) build -C internal/tools/buf -o ../../../$(TOOLS)/ tool

$(GENERATORS) $(STATICCHECK) &: internal/tools/go.mod internal/tools/go.sum
	$(GO) build -C internal/tools -o ../../$(TOOLS)/ tool

# The server of etcd as it is released, for what is measured beside it.
$(ETCD): internal/tools/etcd/go.mod internal/tools/etcd/go.sum
	$(GO) build -C internal/tools/etcd -o ../../../$(ETCD) go.etcd.io/etcd/server/v3

# A file system that can lose its power, in a module of its own: nothing that is
# shipped needs FUSE.
$(POWERFS): $(wildcard internal/tools/powerfs/*.go) internal/tools/powerfs/go.mod internal/tools/powerfs/go.sum
	$(GO) build -C internal/tools/powerfs -o ../../../$(POWERFS) .
