package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// saveProfiles fetches a CPU profile and an allocation profile over that long
// from the debug listener and saves them as DIR/NAME.cpu.pb.gz and
// DIR/NAME.allocs.pb.gz. It returns when both are there; what is to be profiled
// runs meanwhile.
func saveProfiles(ctx context.Context, debug, dir, name string, length time.Duration) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	seconds := max(1, int(length.Round(time.Second)/time.Second))
	errs := make(chan error, 2)
	for file, kind := range map[string]string{".cpu.pb.gz": "profile", ".allocs.pb.gz": "allocs"} {
		go func() {
			url := fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", debug, kind, seconds)
			errs <- fetch(ctx, url, filepath.Join(dir, name+file))
		}()
	}
	return errors.Join(<-errs, <-errs)
}

func fetch(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.200s", url, resp.Status, body)
	}
	return os.WriteFile(file, body, 0o644)
}
