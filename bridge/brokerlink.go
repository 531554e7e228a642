package bridge

import (
	"context"
	"log/slog"
	"slices"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// brokerLink is a link over mqttlink.
type brokerLink struct{ *mqttlink.Link }

func newBrokerLink(cfg mqttlink.Config, receive func(inbound), log *slog.Logger) (link, error) {
	cfg.Receive = func(m *mqttlink.Message) { receive(inbound{m, m.Ack}) }
	l, err := mqttlink.New(cfg, log)
	if err != nil {
		return nil, err
	}
	return brokerLink{l}, nil
}

// Publish sends p and tells a repeat from a first time, where the broker does.
func (l brokerLink) Publish(ctx context.Context, p mqttlink.Publish) (duplicate bool, err error) {
	props, err := l.PublishProps(ctx, p)
	return slices.Contains(props, moment.Property{Key: "duplicate", Value: "true"}), err
}
