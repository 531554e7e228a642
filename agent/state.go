package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

const (
	// stateEvery is the least time between two states of one connection.
	stateEvery = 10 * time.Second
	// statePublishLimit bounds the wait for a state to be written.
	statePublishLimit = 10 * time.Second
)

// deviceState is the retained payload of pairs/{pair}/devices/{device}/state,
// well below the contract's 4 KiB.
type deviceState struct {
	Version   string `json:"version"`
	Photos    int    `json:"photos"`
	Bytes     int64  `json:"bytes"`
	Awake     bool   `json:"awake"`
	LastError string `json:"lastError"`
	Broken    int    `json:"broken"`
	Refused   int    `json:"refused"`
	Queued    int    `json:"queued"`
}

// reportState publishes the device's state on each connect and when it
// changes, until ctx ends. It is lossy on purpose: the next one tells all.
func (a *Agent) reportState(ctx context.Context) error {
	var last []byte
	var lastAt time.Time
	ready := false
	for {
		v, changed := a.board.get()
		if !v.ready {
			last = nil // the next connect is told again
		}
		wait := untilTold
		if v.ready && v.Pair != "" {
			if ready {
				wait = stateEvery - time.Since(lastAt)
			}
			if !ready || wait <= 0 {
				body, err := a.state(v)
				if storeFailed(err) {
					return err
				}
				if err != nil {
					a.log.Error("cannot tell the device's state", "err", err)
				}
				wait = untilTold
				if err == nil && !bytes.Equal(body, last) {
					if err := a.publishState(ctx, v, body); err == nil {
						last, lastAt = body, time.Now()
					}
				}
			}
		}
		ready = v.ready && v.Pair != ""
		if !waitChange(ctx, changed, wait) {
			return nil
		}
	}
}

// waitChange waits for changed, at most d; false when ctx ended. With a finite
// d it lasts for all of d, so that many changes become one.
func waitChange(ctx context.Context, changed <-chan struct{}, d time.Duration) bool {
	if d != untilTold {
		return pause(ctx, d)
	}
	select {
	case <-changed:
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *Agent) state(v view) ([]byte, error) {
	t, err := a.store.totals()
	if err != nil {
		return nil, fmt.Errorf("read totals: %w", err)
	}
	queued, err := a.store.entries(moment.Photo, func(e entry) bool { return e.Failed == "" })
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	return json.Marshal(deviceState{
		Version: a.version, Photos: t.Photos, Bytes: t.Bytes, Awake: true, LastError: v.lastError,
		Broken: t.Broken, Refused: v.refused, Queued: len(queued),
	})
}

func (a *Agent) publishState(ctx context.Context, v view, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, statePublishLimit)
	defer cancel()
	err := v.link.Publish(ctx, mqttlink.Publish{
		Topic: moment.StateTopic(v.Pair, v.Device), Payload: body, ContentType: "application/json", Retain: true,
	})
	if err != nil && !errors.Is(err, mqttlink.ErrDown) {
		a.log.Debug("device state not published", "err", err)
	}
	return err
}

// Status is what `pairsync-agent status` shows.
type Status struct {
	// Running is false when it was read from the store of an agent that does
	// not run; Connected is false then too.
	Running   bool   `json:"running"`
	Version   string `json:"version,omitempty"`
	User      string `json:"user"`
	Device    string `json:"device"`
	Pair      string `json:"pair"`    // empty: not paired
	Partner   string `json:"partner"` // the partner's id, empty when not paired
	Connected bool   `json:"connected"`
	Offline   string `json:"offline,omitempty"`   // why it is not connected
	LastError string `json:"lastError,omitempty"` // what went wrong last, since the start

	Photos  int   `json:"photos"`
	Bytes   int64 `json:"bytes"`
	Broken  int   `json:"broken"`  // photos that could not be shown
	Refused int   `json:"refused"` // moments from outside the pair, since the start

	Receipts int            `json:"receipts"` // waiting to be sent
	Outbox   []OutboxStatus `json:"outbox"`   // photos, oldest first
}

// OutboxStatus is one photo in the outbox.
type OutboxStatus struct {
	Moment  string    `json:"moment"`
	Pair    string    `json:"pair"`
	State   string    `json:"state"` // queued, failed, or held: saved for a former pair
	Reason  string    `json:"reason,omitempty"`
	Bytes   int       `json:"bytes"`
	SavedAt time.Time `json:"savedAt"`
}

// status returns the running agent's status.
func (a *Agent) status() (Status, error) {
	v, _ := a.board.get()
	st, err := storeStatus(a.store, v.membership)
	st.Running, st.Version = true, a.version
	st.Connected, st.Offline, st.LastError, st.Refused = v.ready, v.offline, v.lastError, v.refused
	return st, err
}

// storeStatus returns what the store alone can tell.
func storeStatus(s *store, m membership) (Status, error) {
	t, err := s.totals()
	if err != nil {
		return Status{}, err
	}
	partner, _ := m.partner()
	st := Status{
		User: m.User, Device: m.Device, Pair: m.Pair, Partner: partner.ID,
		Photos: t.Photos, Bytes: t.Bytes, Broken: t.Broken, Receipts: t.OutReceipts, Outbox: []OutboxStatus{},
	}
	err = s.scanEntries(moment.Photo, 0, func(e entry) error {
		o := OutboxStatus{Moment: e.ID, Pair: e.Pair, State: string(StateQueued), Bytes: e.Bytes, SavedAt: e.SavedAt}
		switch {
		case e.Failed != "":
			o.State, o.Reason = string(StateFailed), e.Failed
		case e.Pair != m.Pair:
			o.State, o.Reason = "held", "saved for a pair that is over"
		}
		st.Outbox = append(st.Outbox, o)
		return nil
	})
	return st, err
}
