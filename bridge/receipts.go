package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// How long a receipt's publish may take, and the waits before further tries,
// which double.
const (
	receiptTimeout  = 30 * time.Second
	firstReceiptTry = time.Second
	lastReceiptTry  = 30 * time.Second
)

// deliverReceipt publishes the receipt until the broker has accepted it or
// said that it never will. False means that the session ended first.
func (s *session) deliverReceipt(ctx context.Context, photo string, receipt mqttlink.Publish) bool {
	for wait := firstReceiptTry; ; wait = min(2*wait, lastReceiptTry) {
		err := s.publishReceipt(ctx, receipt)
		var reason *mqttlink.ReasonError
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil || errors.Is(err, mqttlink.ErrClosed):
			return false
		case errors.As(err, &reason) && !reason.Retryable():
			s.log.Warn("receipt refused", "photo", photo, "err", err)
			return true
		}
		s.log.Info("receipt not yet accepted", "photo", photo, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
}

func (s *session) publishReceipt(ctx context.Context, receipt mqttlink.Publish) error {
	ctx, cancel := context.WithTimeout(ctx, receiptTimeout)
	defer cancel()
	if err := s.link.AwaitUp(ctx); err != nil {
		return err
	}
	_, err := s.link.Publish(ctx, receipt)
	return err
}

// receipt is the word of the user's phone that it has the photo.
func (s *session) receipt(d *delivery, at time.Time) mqttlink.Publish {
	id := moment.ReceiptID(d.m.User, d.m.ID, s.u.key.device, moment.StatusStored)
	r := moment.Moment{Pair: d.m.Pair, User: s.u.key.user, Kind: moment.Receipt, ID: id}
	body, err := json.Marshal(moment.ReceiptBody{
		Moment: d.m.ID, Sender: d.m.User, Status: moment.StatusStored, Device: s.u.key.device, At: at.UTC(),
	})
	if err != nil {
		s.log.Error("receipt cannot be encoded", "photo", d.m.ID, "err", err) // a year beyond 9999; parseTime allows none
	}
	return mqttlink.Publish{Topic: r.Topic(), Payload: body, ContentType: "application/json", QoS: 1}
}
