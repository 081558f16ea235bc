package obs

import (
	"fmt"
	"io"
	"log/slog"
)

// NewLogger returns a logger that writes to w, one line a record.
//
// level is debug, info, warn or error, the least that is written; format is
// text (key=value, for people and journals) or json. Anything else is an error
// that names the choices. Messages are constant and lower-case; what changes
// stands in the attributes.
//
// The logger is safe for concurrent use; it calls w.Write once a record, never
// concurrently.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var opts slog.HandlerOptions
	switch level {
	case "debug":
		opts.Level = slog.LevelDebug
	case "info":
		opts.Level = slog.LevelInfo
	case "warn":
		opts.Level = slog.LevelWarn
	case "error":
		opts.Level = slog.LevelError
	default:
		return nil, fmt.Errorf("obs: log level %q: want debug, info, warn or error", level)
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &opts)), nil
	}
	return nil, fmt.Errorf("obs: log format %q: want text or json", format)
}
