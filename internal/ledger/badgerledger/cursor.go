package badgerledger

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
)

// cursors holds the places of all sessions in every log that was asked about
// and has cursors. Memory is ahead of the disk by what Advance has not flushed.
type cursors struct {
	db *badgerdb.DB

	mu    sync.Mutex // guards byLog, and is held while a log's cursors are loaded
	byLog map[ledger.LogID]map[string]ledger.Seq
}

func (c *cursors) init(db *badgerdb.DB) {
	c.db = db
	c.byLog = make(map[ledger.LogID]map[string]ledger.Seq)
}

// of returns the cursors of log, read from disk the first time. c.mu is held.
func (c *cursors) of(log ledger.LogID) (map[string]ledger.Seq, error) {
	if have, ok := c.byLog[log]; ok {
		return have, nil
	}
	places := make(map[string]ledger.Seq)
	prefix := logPrefix(recCursor, log)
	err := c.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan(prefix, nil, false, func(key []byte, value func() ([]byte, error)) error {
			v, err := value()
			if err != nil {
				return err
			}
			places[string(key[len(prefix):])], err = seqOfValue(v)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("cursors of log %q: %w", string(log), err)
	}
	if len(places) > 0 {
		c.byLog[log] = places
	}
	return places, nil
}

// SetCursor implements ledger.Ledger.
func (l *Ledger) SetCursor(ctx context.Context, session string, log ledger.LogID, at ledger.Seq) error {
	if err := l.checkCursor(log, session); err != nil {
		return err
	}
	c := &l.cursors
	return failure(l.db.Update(ctx, 0, func(tx *badgerdb.Tx) error {
		s, err := readState(tx, log)
		if err != nil {
			return err
		}
		if s.deleted {
			return ledger.ErrDeleted
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		places, err := c.of(log)
		if err != nil {
			return err
		}
		// Before the commit: an Advance that comes in between is then newer
		// than this Set, on disk too.
		places[session] = at
		c.byLog[log] = places
		return tx.Set(cursorKey(log, session), seqValue(at))
	}))
}

// Cursor implements ledger.Ledger.
func (l *Ledger) Cursor(ctx context.Context, session string, log ledger.LogID) (ledger.Seq, error) {
	places, err := l.Cursors(ctx, log)
	if err != nil {
		return 0, err
	}
	at, ok := places[session]
	if !ok {
		return 0, fmt.Errorf("cursor of %q in log %q: %w", session, string(log), ledger.ErrNotFound)
	}
	return at, nil
}

// Cursors implements ledger.Ledger.
func (l *Ledger) Cursors(ctx context.Context, log ledger.LogID) (map[string]ledger.Seq, error) {
	if err := l.usable(ctx, log); err != nil {
		return nil, err
	}
	l.cursors.mu.Lock()
	defer l.cursors.mu.Unlock()
	places, err := l.cursors.of(log)
	return maps.Clone(places), failure(err)
}

// Advance implements ledger.Ledger.
func (l *Ledger) Advance(ctx context.Context, session string, log ledger.LogID, to ledger.Seq) error {
	if err := l.usable(ctx, log); err != nil {
		return err
	}
	c := &l.cursors
	c.mu.Lock()
	defer c.mu.Unlock()
	places, err := c.of(log)
	if err != nil {
		return failure(err)
	}
	if at, ok := places[session]; ok && to > at {
		places[session] = to
		l.db.SetLazy(string(cursorKey(log, session)), seqValue(to))
	}
	return nil
}

// DropCursor implements ledger.Ledger.
func (l *Ledger) DropCursor(ctx context.Context, session string, log ledger.LogID) error {
	if err := l.checkCursor(log, session); err != nil {
		return err
	}
	c := &l.cursors
	return failure(l.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		places, err := c.of(log)
		if err != nil {
			return err
		}
		delete(places, session)
		return tx.Delete(cursorKey(log, session))
	}))
}

func (l *Ledger) checkCursor(log ledger.LogID, session string) error {
	if err := checkLog(log); err != nil {
		return err
	}
	return checkSession(session)
}

// usable is what every method checks before it answers from memory or disk.
func (l *Ledger) usable(ctx context.Context, log ledger.LogID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkLog(log); err != nil {
		return err
	}
	return failure(l.db.Healthy())
}

// forget drops the cursors of a log that is being deleted, and what Advance
// has not flushed of them. It runs on the writer goroutine.
func (c *cursors) forget(log ledger.LogID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for session := range c.byLog[log] {
		c.db.DropLazy(string(cursorKey(log, session)))
	}
	c.byLog[log] = make(map[string]ledger.Seq)
}
