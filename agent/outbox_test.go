package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// send puts a photo into the agent's outbox.
func send(t *testing.T, a *Agent, caption string) Outcome {
	t.Helper()
	out, err := a.outbox.add(t.Context(), testJPEG(t, len(caption)), caption, QualityDefault)
	if err != nil {
		t.Fatal(err)
	}
	if out.State != StateQueued {
		t.Errorf("state = %q, want queued", out.State)
	}
	return out
}

// outcome waits up to d for what became of a photo.
func outcome(t *testing.T, a *Agent, id string, d time.Duration) Outcome {
	t.Helper()
	limit := time.After(d)
	for {
		out, changed, err := a.outbox.outcome(id)
		if err != nil {
			t.Fatal(err)
		}
		if out.State != StateQueued {
			return out
		}
		select {
		case <-changed:
		case <-limit:
			if out, _, err = a.outbox.outcome(id); err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
}

// captions returns the captions of photos, in order.
func captions(ps []mqttlink.Publish) []string {
	out := []string{}
	for _, p := range ps {
		if !strings.Contains(p.Topic, "/photos/") {
			continue
		}
		for _, prop := range p.Properties {
			if prop.Key == moment.PropCaption {
				out = append(out, prop.Value)
			}
		}
	}
	return out
}

func TestSend(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		out := send(t, a, "hello")
		if got := outcome(t, a, out.Moment, time.Second); got.State != StateSent {
			t.Fatalf("outcome = %+v, want sent", got)
		}
		b.get(func(b *fakeBroker) {
			for _, p := range b.answered {
				if !strings.Contains(p.Topic, "/photos/") {
					continue
				}
				want := []moment.Property{{Key: "caption", Value: "hello"}, {Key: "device", Value: testDevice}}
				if diff := cmp.Diff(want, p.Properties); diff != "" {
					t.Errorf("properties (-want +got):\n%s", diff)
				}
				if p.Topic != photoTopic(testUser, out.Moment) || p.ContentType != "image/jpeg" || p.QoS != 1 {
					t.Errorf("published to %s, %s, QoS %d", p.Topic, p.ContentType, p.QoS)
				}
			}
		})
		synctest.Wait()
		if sums := mustTotals(t, a.store); sums.OutPhotos != 0 || sums.OutBytes != 0 {
			t.Errorf("totals = %+v, want an empty outbox", sums)
		}
	})
}

func TestSendKeepsOrderAcrossOfflineAndRestart(t *testing.T) {
	b := newFakeBroker()
	cfg := testConfig(t)
	worldOf(t, b, cfg, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.away = true })
		awaitView(t, a, "offline", func(v view) bool { return !v.connected })
		for _, caption := range []string{"one", "two", "three"} {
			send(t, a, caption)
		}
		time.Sleep(time.Hour)
		if st, err := a.status(); err != nil || len(st.Outbox) != 3 || st.Outbox[0].State != "queued" {
			t.Errorf("status = %+v, %v", st, err)
		}
	})
	b.away = false
	worldOf(t, b, cfg, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "an empty outbox", func(v view) bool { return v.ready && mustTotals(t, a.store).OutPhotos == 0 })
	})
	if diff := cmp.Diff([]string{"one", "two", "three"}, captions(b.answered)); diff != "" {
		t.Errorf("arrived (-want +got):\n%s", diff)
	}
}

func TestAttempts(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.silent, b.connects, b.sent = true, nil, 0 })
		start := time.Now()
		out := send(t, a, "x")
		waits := func() string { o, _, _ := a.outbox.outcome(out.Moment); return o.Reason }
		for waits() == "" {
			time.Sleep(100 * time.Millisecond)
		}
		// 3 attempts of 3 s, 1 s and 2 s between.
		if took := time.Since(start).Round(time.Second); took != 12*time.Second {
			t.Errorf("rested in the queue after %v, want 12 s", took)
		}
		b.get(func(b *fakeBroker) {
			if len(b.connects) != 2 {
				t.Errorf("reconnected %d times, want 2", len(b.connects))
			}
			if n := len(captions(b.published)); n != 1 {
				t.Errorf("published %d times by the outbox, want once: the session resends", n)
			}
			if b.sent != 3 {
				t.Errorf("sent %d times, want 3", b.sent)
			}
		})
		b.set(func(b *fakeBroker) { b.silent = false })
		if got := outcome(t, a, out.Moment, time.Second); got.State != StateSent {
			t.Errorf("outcome = %+v, want sent as soon as the answer comes", got)
		}
	})
}

func TestReconnectEndsTheRest(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.silent = true })
		out := send(t, a, "x")
		time.Sleep(15 * time.Second) // the attempts are over
		b.set(func(b *fakeBroker) { b.away, b.bounces = true, 0 })
		time.Sleep(time.Hour)
		b.set(func(b *fakeBroker) {
			if b.bounces != 0 {
				t.Errorf("%d attempts while offline, want none", b.bounces)
			}
			b.away, b.silent = false, false
		})
		if got := outcome(t, a, out.Moment, time.Second); got.State != StateSent {
			t.Errorf("outcome = %+v, want sent at once after the reconnect", got)
		}
		b.get(func(b *fakeBroker) {
			if n := len(captions(b.published)); n != 1 {
				t.Errorf("published %d times, want once", n)
			}
		})
	})
}

func TestASlowLinkIsNotADeadOne(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.silent, b.creeping, b.connects = true, true, nil })
		out := send(t, a, "x")
		time.Sleep(time.Minute)
		b.set(func(b *fakeBroker) { b.silent = false })
		if got := outcome(t, a, out.Moment, time.Second); got.State != StateSent {
			t.Errorf("outcome = %+v, want sent", got)
		}
		b.get(func(b *fakeBroker) {
			if len(b.connects) != 0 {
				t.Errorf("reconnected %d times although bytes moved", len(b.connects))
			}
		})
	})
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		code byte
		want State // after a minute
	}{
		{mqttlink.CodeNotAuthorized, StateFailed},
		{mqttlink.CodeRefused, StateFailed},
		{mqttlink.CodePacketTooLarge, StateFailed},
		{0x99, StateFailed},
		{mqttlink.CodeQuotaExceeded, StateQueued},
	}
	for _, tt := range tests {
		refusal := &mqttlink.ReasonError{Code: tt.code, Reason: "because"}
		t.Run(refusal.Error(), func(t *testing.T) {
			b := newFakeBroker()
			world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
				awaitView(t, a, "ready", ready)
				b.set(func(b *fakeBroker) { b.refusal = refusal })
				first := send(t, a, "one")
				got := outcome(t, a, first.Moment, time.Minute)
				if got.State != tt.want || !strings.Contains(got.Reason, "because") {
					t.Errorf("outcome = %+v, want %q with the reason", got, tt.want)
				}
				st, err := a.status()
				if err != nil || len(st.Outbox) != 1 || st.Outbox[0].State != string(tt.want) {
					t.Errorf("status = %+v, %v", st.Outbox, err)
				}
				b.set(func(b *fakeBroker) { b.refusal = nil })
				second := send(t, a, "two")
				if got := outcome(t, a, second.Moment, 10*time.Minute); got.State != StateSent {
					t.Errorf("the next photo: %+v, want sent", got)
				}
			})
		})
	}
}

func TestEntriesOfAFormerPairAreHeld(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.away = true })
		awaitView(t, a, "offline", func(v view) bool { return !v.connected })
		send(t, a, "for the former")
		b.set(func(b *fakeBroker) { b.away, b.pair, b.answered = false, "p2", nil })
		awaitView(t, a, "p2", func(v view) bool { return v.ready && v.Pair == "p2" })
		out := send(t, a, "for the new")
		if got := outcome(t, a, out.Moment, time.Minute); got.State != StateSent {
			t.Errorf("outcome = %+v", got)
		}
		b.get(func(b *fakeBroker) {
			if diff := cmp.Diff([]string{"for the new"}, captions(b.answered)); diff != "" {
				t.Errorf("arrived (-want +got):\n%s", diff)
			}
		})
		synctest.Wait()
		st, err := a.status()
		if err != nil || len(st.Outbox) != 1 || st.Outbox[0].State != "held" || st.Outbox[0].Pair != testPair {
			t.Errorf("status = %+v, %v, want one held entry", st.Outbox, err)
		}
	})
}

func TestReceiptsAreSentOnce(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		for range 2 {
			for _, id := range []string{"m1", "m2", "m3"} {
				b.deliver(photoTopic(testPartner, id), testJPEG(t, 1))
			}
		}
		awaitView(t, a, "3 receipts sent", func(view) bool {
			sums := mustTotals(t, a.store)
			return sums.Photos == 3 && sums.OutReceipts == 0
		})
		var got []string
		b.get(func(b *fakeBroker) {
			for _, p := range b.answered {
				if top, err := moment.ParseTopic(p.Topic); err == nil && top.Kind == moment.Receipt {
					got = append(got, top.ID)
				}
			}
		})
		want := []string{}
		for _, id := range []string{"m1", "m2", "m3"} {
			want = append(want, moment.ReceiptID(testPartner, id, testDevice, moment.StatusStored))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("receipts (-want +got):\n%s", diff)
		}
	})
}

// A new pair drops the receipts of the former one, also those that the lane has
// sent and not yet dropped itself.
func TestAnEntryIsDroppedOnce(t *testing.T) {
	s := newTestStore(t)
	for _, id := range []string{"m1", "m2", "m3"} {
		putPhoto(t, s, id, testJPEG(t, 1))
	}
	sent, err := s.entries(moment.Receipt, func(entry) bool { return true })
	if err != nil || len(sent) != 3 {
		t.Fatalf("%d receipts, %v", len(sent), err)
	}
	for range 2 {
		if err := s.drop(t.Context(), sent[:2]...); err != nil {
			t.Fatal(err)
		}
	}
	if sums := mustTotals(t, s); sums.OutReceipts != 1 {
		t.Errorf("%d receipts are waiting, want 1", sums.OutReceipts)
	}
}

// What a transaction cannot hold goes in several.
func TestManyEntriesAreDropped(t *testing.T) {
	s := newTestStore(t)
	many := make([]entry, 1000)
	for i := range many {
		many[i] = *newReceipt(testMember, testPartner, "m", moment.StatusStored, time.Now())
		many[i].Seq = uint64(i + 1)
	}
	for chunk := range slices.Chunk(many, 20) {
		put(t, s, change{apply: func(tx *badgerdb.Tx) error {
			sums, err := readTotals(tx)
			for i := range chunk {
				err = errors.Join(err, enqueueReceipt(tx, &sums, &chunk[i]))
			}
			return errors.Join(err, writeTotals(tx, sums))
		}})
	}
	if err := s.drop(t.Context(), many...); err != nil {
		t.Fatal(err)
	}
	if sums := mustTotals(t, s); sums.OutReceipts != 0 {
		t.Errorf("%d receipts are waiting, want none", sums.OutReceipts)
	}
}

// A photo whose bytes are gone must not hold up those behind it.
func TestALostPayloadDoesNotBlockTheOutbox(t *testing.T) {
	b := newFakeBroker()
	b.away = true
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		if err := a.store.setMember(t.Context(), testMember); err != nil {
			t.Fatal(err)
		}
		a.board.set(func(v *view) { v.membership = testMember })
		lost, next := send(t, a, "lost"), send(t, a, "next")
		put(t, a.store, change{apply: func(tx *badgerdb.Tx) error { return tx.Delete(partKey(moment.Photo, 1, 0)) }})
		b.set(func(b *fakeBroker) { b.away = false })
		if got := outcome(t, a, next.Moment, time.Minute); got.State != StateSent {
			t.Errorf("the photo behind it: %+v, want sent", got)
		}
		if got := outcome(t, a, lost.Moment, time.Minute); got.State != StateFailed {
			t.Errorf("the lost one: %+v, want failed", got)
		}
	})
}

func TestSendRefusesAtOnce(t *testing.T) {
	b := newFakeBroker()
	b.pair = ""
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		if _, err := a.outbox.add(t.Context(), testJPEG(t, 1), "", QualityDefault); !errors.Is(err, errUnpaired) {
			t.Errorf("without a pair: err = %v", err)
		}
		if _, err := a.outbox.add(t.Context(), []byte("text"), "", QualityDefault); err == nil {
			t.Error("not a photo: no error")
		}
		if _, err := a.outbox.add(t.Context(), testJPEG(t, 1), "", "best"); err == nil {
			t.Error("unknown quality: no error")
		}
		if _, err := a.outbox.add(t.Context(), testJPEG(t, 1), strings.Repeat("x", moment.MaxCaptionBytes+1), ""); err == nil {
			t.Error("long caption: no error")
		}
		if sums := mustTotals(t, a.store); sums.OutPhotos != 0 {
			t.Errorf("totals = %+v, want nothing saved", sums)
		}
	})
}
