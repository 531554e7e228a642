package badgerledger

import (
	"log/slog"
	"testing"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
	"pairsync/internal/ledger/ledgertest"
)

var quiet = slog.New(slog.DiscardHandler)

// testConfig has the quotas that the suite asks for.
var testConfig = Config{MaxEntries: ledgertest.QuotaEntries, MaxBytes: ledgertest.QuotaBytes}

// openDB opens a store that is closed with t, if it is still open then.
func openDB(t testing.TB, dir string, p badgerdb.Profile) *badgerdb.DB {
	t.Helper()
	db, err := badgerdb.Open(dir, p, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func newLedger(t testing.TB, db *badgerdb.DB, cfg Config) *Ledger {
	t.Helper()
	l, err := New(db, cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestConformance(t *testing.T) {
	for _, p := range []badgerdb.Profile{badgerdb.Server, badgerdb.Device} {
		t.Run(p.String(), func(t *testing.T) {
			ledgertest.Run(t, func(t *testing.T) (ledger.Ledger, func() ledger.Ledger) {
				dir := t.TempDir()
				db := openDB(t, dir, p)
				return newLedger(t, db, testConfig), func() ledger.Ledger {
					if err := db.Close(); err != nil {
						t.Fatal(err)
					}
					db = openDB(t, dir, p)
					return newLedger(t, db, testConfig)
				}
			})
		})
	}
}
