# pairsync: two commands are enough.
#   make demo   a photo travels before your eyes
#   make test   everything that is proven, with all set-up it needs

GO      ?= go
VERSION ?= $(shell git describe --tags --always 2>/dev/null || echo 0.1.0-dev)
LDFLAGS := -s -w -X pairsync/internal/version.Version=$(VERSION)
BIN     := bin
export CGO_ENABLED ?= 0

.PHONY: demo build test test-go test-race test-e2e torture bench bench-go bench-peer lint cover deps clean check-go

demo: build ## run the whole of pairsync in one process until Ctrl-C
	$(BIN)/pairsync demo

build: check-go ## both programs, static, into bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/pairsync ./cmd/pairsync-agent

test: check-go deps test-go test-race test-e2e ## everything; under 12 minutes on 2 cores

test-go: ## formatting, vet and the tests of every package but e2e
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt differs:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) test $$($(GO) list ./... | grep -v '^pairsync/e2e')

# The packages where goroutines meet, once more under the race detector.
test-race:
	@GO='$(GO)' .ci/race ./broker/ ./bridge/... ./agent/ ./internal/ledger/... ./internal/mqttlink/ ./internal/memnet/ ./internal/simtest/ ./internal/registry/

test-e2e: ## real clients, real processes, kill -9
	$(GO) test -count=1 -timeout 20m ./e2e/...

torture: check-go deps ## kill -9 of server and agent, 50 rounds
	PAIRSYNC_E2E_ROUNDS=50 $(GO) test -count=1 -timeout 60m -run Crash -v ./e2e/

bench: bench-go bench-peer ## the benchmarks, five rounds each; on a machine that does nothing else

bench-go: check-go
	$(GO) test -run '^$$' -bench . -benchmem -count=5 ./internal/ledger/... ./internal/token/ ./internal/mqttlink/ ./bridge/... ./broker/

# Beside mosquitto: the table of speed and size, also in bench-out/speed.md.
bench-peer: build
	@.ci/deps bench
	$(GO) run ./e2e/bench -rounds 5

lint: ## golangci-lint, built at the version of .golangci.yml
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...

cover: ## coverage of the package tests, as cover.html
	$(GO) test -coverprofile cover.out $$($(GO) list ./... | grep -v '^pairsync/e2e')
	$(GO) tool cover -func cover.out | tail -1
	$(GO) tool cover -html cover.out -o cover.html

deps: ## what the end-to-end tests need: mosquitto's clients, gcc, npm packages
	@.ci/deps

clean:
	rm -rf $(BIN) cover.out cover.html bench-out e2e/node_modules

check-go:
	@command -v $(GO) >/dev/null || { echo "pairsync needs Go 1.26 or newer (https://go.dev/dl): '$(GO)' was not found"; exit 1; }
