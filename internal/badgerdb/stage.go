package badgerdb

// Staged is a large value that is in a segment already and waits for the
// transaction that stores it. It belongs to its owner until SetStaged or
// Unstage, one of which must follow; after a crash that is made up for.
type Staged struct{ ref ref }

// Stage writes a value of 4 KiB or more ahead of its transaction, on the
// caller's goroutine: values of several callers are written while an earlier
// transaction is being synced. It is durable when the transaction is. A smaller
// value is not staged: nil, nil. It fails as Submit's done does: ErrFull,
// ErrTooLarge, ErrUnhealthy or ErrClosed.
func (db *DB) Stage(value []byte) (*Staged, error) {
	if len(value) < valueThreshold {
		return nil, nil
	}
	if len(value) > db.MaxValue() {
		return nil, ErrTooLarge
	}
	if err := db.Healthy(); err != nil {
		return nil, err
	}
	free, err := db.Free()
	if err == nil {
		err = db.roomToPut(free, len(value), int64(len(value)))
	}
	if err != nil {
		return nil, err
	}
	r, err := db.segments.append(value)
	if err != nil {
		return nil, err
	}
	return &Staged{r}, nil
}

// Unstage gives the space of a value back that is not stored after all. It does
// nothing for nil.
func (db *DB) Unstage(v *Staged) {
	if v == nil {
		return
	}
	db.viewMu.Lock()
	defer db.viewMu.Unlock()
	db.ripe = append(db.ripe, v.ref) // nobody has ever seen it
	db.keeper.poke()
}

// SetStaged is Set for a staged value. It is the transaction's then, and must
// not be staged for another; if the function fails it is the caller's again.
func (tx *Tx) SetStaged(key []byte, v *Staged) error {
	return tx.put(write{key: key, staged: v})
}
