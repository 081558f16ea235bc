package obs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewLogger(t *testing.T) {
	for _, test := range []struct {
		level, format string
		want          string // what of the two records is written, by the word that begins its line
		wantErr       string
	}{
		{"debug", "text", "node joined;node left;", ""},
		{"info", "text", "node left;", ""},
		{"info", "json", "node left;", ""},
		{"warn", "json", "", ""},
		{"error", "text", "", ""},
		{"loud", "text", "", `log level "loud": want debug, info, warn or error`},
		{"INFO", "text", "", `log level "INFO": want debug, info, warn or error`},
		{"info", "xml", "", `log format "xml": want text or json`},
		{"info", "", "", `log format "": want text or json`},
	} {
		t.Run(test.level+" "+test.format, func(t *testing.T) {
			var out bytes.Buffer
			logger, err := NewLogger(&out, test.level, test.format)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Fatalf("got error %v, want one with %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			logger.Debug("node joined", "node", "n1")
			logger.Info("node left", "node", "n1")

			var got string
			for line := range strings.Lines(out.String()) {
				switch test.format {
				case "json":
					var record struct{ Msg, Node string }
					if err := json.Unmarshal([]byte(line), &record); err != nil || record.Node != "n1" {
						t.Errorf("line %q: node %q, error %v", line, record.Node, err)
					}
					got += record.Msg + ";"
				default:
					if !strings.HasSuffix(line, " node=n1\n") {
						t.Errorf("line %q lacks its attribute", line)
					}
					_, msg, _ := strings.Cut(line, `msg="`)
					msg, _, _ = strings.Cut(msg, `"`)
					got += msg + ";"
				}
			}
			if got != test.want {
				t.Errorf("got records %q, want %q", got, test.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	defer func(old string) { version = old }(version)
	version = ""
	if got := Version(); got == "" || got == "(devel)" {
		t.Errorf("without the linker's word: got version %q", got)
	}
	version = "v1.2.3"
	if got := Version(); got != "v1.2.3" {
		t.Errorf("got version %q, want v1.2.3", got)
	}
}

func TestMetrics(t *testing.T) {
	registry := NewRegistry()
	NewRegistry() // a second node in the same process
	registry.MustRegister(broken{prometheus.NewDesc("rookery_broken", "Never gathered.", nil, nil)})

	var log bytes.Buffer
	answer := httptest.NewRecorder()
	MetricsHandler(registry, slog.New(slog.NewTextHandler(&log, nil))).
		ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))

	if answer.Code != http.StatusOK {
		t.Errorf("got status %d, want 200", answer.Code)
	}
	for _, want := range []string{
		`rookery_build_info{goversion="go`,
		`version="` + Version() + `"} 1`,
		"\nprocess_open_fds ",
		"\ngo_goroutines ",
	} {
		if !strings.Contains(answer.Body.String(), want) {
			t.Errorf("the metrics lack %q", want)
		}
	}
	if got := log.String(); !strings.Contains(got, `msg="metrics not gathered"`) || !strings.Contains(got, "disk gone") {
		t.Errorf("got log %q, want the metric that was not gathered", got)
	}
}

// broken is a collector that fails.
type broken struct{ desc *prometheus.Desc }

func (b broken) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }
func (b broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(b.desc, errors.New("disk gone"))
}

func TestDebugHandler(t *testing.T) {
	for path, want := range map[string]int{
		"/debug/pprof/":                   http.StatusOK,
		"/debug/pprof/goroutine?debug=1":  http.StatusOK,
		"/debug/pprof/cmdline":            http.StatusOK,
		"/debug/pprof/symbol":             http.StatusOK,
		"/debug/pprof/trace?seconds=0.01": http.StatusOK,
		"/debug/pprof/nonesuch":           http.StatusNotFound,
		"/metrics":                        http.StatusNotFound,
	} {
		answer := httptest.NewRecorder()
		DebugHandler().ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
		if answer.Code != want {
			t.Errorf("GET %s: got status %d, want %d", path, answer.Code, want)
		}
	}
}

func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ln := listen(t)
	inside, finish := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		close(inside)
		<-finish
		_, _ = io.WriteString(w, "done")
	})
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, ln, mux, slog.New(slog.DiscardHandler)) }()

	// A request under way when the listener stops gets its answer.
	answered := make(chan string, 1)
	go func() {
		body, err := get("http://" + ln.Addr().String() + "/slow")
		if err != nil {
			body = err.Error()
		}
		answered <- body
	}()
	<-inside
	cancel()
	for refused := false; !refused; { // until the listener is closed
		conn, err := net.Dial("tcp", ln.Addr().String())
		if refused = err != nil; !refused {
			_ = conn.Close()
			time.Sleep(time.Millisecond)
		}
	}
	close(finish)
	if got := <-answered; got != "done" {
		t.Errorf("request under way: got %q, want done", got)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve after its context is done: got error %v, want nil", err)
	}
}

func TestServeReturnsWhenTheListenerFails(t *testing.T) {
	ln := listen(t)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	err := Serve(t.Context(), ln, http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("got error %v, want net.ErrClosed", err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// get makes one request on a connection of its own.
func get(url string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
