package sim

import (
	"context"
	"encoding/base64"
	"time"

	"pairsync/bridge/socketio"
)

// send puts a new photo of about size bytes into the outbox.
func (p *phone) send(size int) *photo {
	ph := p.w.book.make(p.user, p.host, size)
	p.sendPhoto(ph)
	return ph
}

func (p *phone) sendPhoto(ph *photo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outbox = append(p.outbox, ph)
	p.change()
}

// sendAll sends the outbox, one photo after the other, each until it is
// answered for good.
func (p *phone) sendAll(ctx context.Context) {
	for {
		p.mu.Lock()
		var ph *photo
		if len(p.outbox) > 0 {
			ph = p.outbox[0]
		}
		c, joined, changed := p.client, p.joined, p.changed
		p.mu.Unlock()
		if ph == nil || !joined {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !p.sendOnce(ctx, c, ph) && !pause(ctx, time.Second) {
			return
		}
	}
}

// sendOnce makes one attempt and reports whether the photo is done with.
func (p *phone) sendOnce(ctx context.Context, c *socketio.Client, ph *photo) bool {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	args, err := c.EmitWithAck(ctx, "send_photo", sendBody(ph, "m-"+ph.id))
	if err != nil {
		return false
	}
	in := decode[struct {
		Success, Retryable bool
		Code               string
	}](args)
	if !in.Success && in.Retryable {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !in.Success {
		p.refused[ph.id] = in.Code
	}
	p.outbox = p.outbox[1:]
	p.change()
	return true
}

func sendBody(ph *photo, messageID string) map[string]any {
	body := map[string]any{
		"photoId": ph.id, "photoData": base64.StdEncoding.EncodeToString(ph.bytes), "partnerId": ph.to,
		"timestamp": time.Now().UnixMilli(), "caption": "a caption",
	}
	if messageID != "" {
		body["messageId"] = messageID
	}
	return body
}

// flush sends photos of the book at once, without messageId and without asking
// for an answer.
func (p *phone) flush(ids []string) error {
	p.mu.Lock()
	c := p.client
	p.mu.Unlock()
	for _, id := range ids {
		if err := c.Emit("send_photo", sendBody(p.w.book.photo(id), "")); err != nil {
			return err
		}
	}
	return nil
}

// idle reports whether everything was sent and acknowledged.
func (p *phone) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.outbox) == 0
}
