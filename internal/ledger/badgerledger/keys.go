package badgerledger

import (
	"encoding/binary"
	"fmt"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// The layout on disk, version 1. Every key begins with 'l' and a letter; <log>
// is the LogID's text, 0 a zero byte (ids cannot hold one), numbers are big
// endian, seq has 8 bytes.
//
//	key                                     value
//	l v                                     uint32 layout version
//	l g <log>                               log record: state.append
//	l h <log> 0 seq                         header: appendHeader
//	l p <log> 0 seq                         payload, as it came; absent when empty
//	l i <log> 0 user 0 kind 0 id            identity: seq
//	l m <log> 0 user 0 kind 0 message-id    second identity: seq
//	l c <log> 0 session                     cursor: seq
//	l x <log>                               present while a deleted log is being emptied
//
// Headers and payloads are apart so that looking through a log never reads a
// photo. The log record changes in the transaction of the entry it counts.
// Identities live as long as their entry and get a TTL of ledger.IdentityLife
// when it goes. The record of a deleted log stays for good.
const layoutVersion = 1

const (
	recLog      = 'g'
	recHeader   = 'h'
	recPayload  = 'p'
	recIdentity = 'i'
	recMessage  = 'm'
	recCursor   = 'c'
	recPurge    = 'x'
)

var versionKey = []byte{'l', 'v'}

// maxTextBytes bounds a message id and a session's name, the only parts of a
// key that are not ids.
const maxTextBytes = 4 << 10

func logKey(rec byte, log ledger.LogID) []byte {
	return append([]byte{'l', rec}, log...)
}

// logPrefix is what all keys of one kind in one log begin with.
func logPrefix(rec byte, log ledger.LogID) []byte {
	return append(logKey(rec, log), 0)
}

func seqKey(rec byte, log ledger.LogID, seq ledger.Seq) []byte {
	b := make([]byte, 0, 2+len(log)+1+8)
	b = append(append(append(b, 'l', rec), log...), 0)
	return binary.BigEndian.AppendUint64(b, uint64(seq))
}

// seqOf returns the seq that ends a header's key.
func seqOf(key []byte) ledger.Seq {
	return ledger.Seq(binary.BigEndian.Uint64(key[len(key)-8:]))
}

// identityKey returns the key of an identity, or with rec recMessage and id a
// message id, of a second identity.
func identityKey(rec byte, log ledger.LogID, user string, kind moment.Kind, id string) []byte {
	b := make([]byte, 0, 5+len(log)+len(user)+len(kind)+len(id))
	b = append(append(append(b, 'l', rec), log...), 0)
	b = append(append(b, user...), 0)
	b = append(append(b, kind...), 0)
	return append(b, id...)
}

func cursorKey(log ledger.LogID, session string) []byte {
	return append(logPrefix(recCursor, log), session...)
}

func seqValue(seq ledger.Seq) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(seq))
}

func seqOfValue(v []byte) (ledger.Seq, error) {
	if len(v) != 8 {
		return 0, fmt.Errorf("place of %d bytes, want 8", len(v))
	}
	return ledger.Seq(binary.BigEndian.Uint64(v)), nil
}

// checkLog refuses what is not the name of a log.
func checkLog(log ledger.LogID) error {
	id, ok := log.Pair()
	if !ok {
		id, ok = log.User()
	}
	if !ok {
		id, ok = log.Later()
	}
	if !ok {
		return fmt.Errorf("log %q: neither pair:<id>, user:<id> nor later:<id>", string(log))
	}
	if err := moment.CheckID("log", id); err != nil {
		return fmt.Errorf("log %q: %w", string(log), err)
	}
	return nil
}

func checkSession(session string) error {
	if session == "" || len(session) > maxTextBytes {
		return fmt.Errorf("session name of %d bytes: must have 1 to %d", len(session), maxTextBytes)
	}
	return nil
}
