package badgerdb

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// badgerLog gives badger's log lines to slog and watches them: badger only
// logs when the fsync of a value log failed (value.go, "curlf sync"), and
// answers the transaction as if it were on disk.
type badgerLog struct {
	log   *slog.Logger
	fault func(error)
}

// maxLine bounds one line; badger prints whole keys.
const maxLine = 512

func (l *badgerLog) Errorf(format string, v ...any) {
	l.print(slog.LevelError, format, v)
	if strings.Contains(format, "curlf sync") || strings.HasPrefix(format, "writeRequests") {
		l.fault(fmt.Errorf(strings.TrimSpace(format), v...))
	}
}

func (l *badgerLog) Warningf(format string, v ...any) { l.print(slog.LevelWarn, format, v) }
func (l *badgerLog) Infof(format string, v ...any)    { l.print(slog.LevelDebug, format, v) }

// Debugf is dropped: badger calls it several times for each transaction.
func (l *badgerLog) Debugf(string, ...any) {}

func (l *badgerLog) print(level slog.Level, format string, v []any) {
	ctx := context.Background() // badger has none to give
	if !l.log.Enabled(ctx, level) {
		return
	}
	line := strings.TrimSpace(fmt.Sprintf(format, v...))
	if len(line) > maxLine {
		line = line[:maxLine] + "…"
	}
	l.log.Log(ctx, level, "badger", "line", line)
}
