package load

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
)

// maxBatch is how many bytes of messages go into one write, at least one
// message: small ones share the price of a system call.
const maxBatch = 64 << 10

// Publishing is a number of messages to publish.
type Publishing struct {
	Topic   string // of each, with its number behind it
	First   int    // the first number
	Count   int
	Window  int    // how many may be unacknowledged, less than 65,535
	Payload []byte // of each; it is only read
}

// Publish sends all messages at QoS 1 and returns when the last is
// acknowledged. An error code in a PUBACK is an error.
func (c *Client) Publish(p Publishing) error {
	before := c.acked.Load()
	// woken has room for one: a PUBACK that finds it full changes nothing,
	// since the sender looks at the count again.
	woken := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() { ended <- c.takeAcks(p.Count, woken) }()

	var id uint16 // the last one used; 0 is none
	var batch batch
	for sent := 0; sent < p.Count; {
		room := p.Window - (sent - int(c.acked.Load()-before))
		if room <= 0 {
			select {
			case <-woken:
				continue
			case err := <-ended:
				return orEarly(err)
			}
		}
		batch.reset()
		for range min(room, p.Count-sent) {
			if id++; id == 0 {
				id = 1
			}
			batch.add(p.Topic, p.First+sent, id, p.Payload)
			sent++
			if batch.bytes >= maxBatch {
				break
			}
		}
		if err := batch.write(c.nc); err != nil {
			c.nc.Close() // ends takeAcks, which may know why
			if why := <-ended; why != nil {
				err = fmt.Errorf("%w (%w)", err, why)
			}
			return err
		}
	}
	return <-ended
}

// orEarly is the error of an acknowledger that ended before the sender did.
func orEarly(err error) error {
	if err == nil {
		return fmt.Errorf("more PUBACKs came than messages were sent")
	}
	return err
}

// takeAcks reads n PUBACKs.
func (c *Client) takeAcks(n int, woken chan<- struct{}) error {
	c.in = bufio.NewReaderSize(c.in, 4<<10)
	var body [2]byte
	for i := range n {
		p, err := c.next()
		if err != nil {
			return fmt.Errorf("after %d PUBACKs: %w", i, err)
		}
		if p.kind != typePuback {
			return c.unexpected(p)
		}
		if p.length < 2 || p.length > maxSmallPacket {
			return errMalformed
		}
		if _, err := io.ReadFull(c.in, body[:]); err != nil {
			return err
		}
		if p.length > 2 {
			code, err := c.in.ReadByte()
			if err != nil {
				return err
			}
			if code >= 0x80 {
				return fmt.Errorf("PUBACK %d says 0x%02X", i, code)
			}
			if _, err := c.in.Discard(p.length - 3); err != nil {
				return err
			}
		}
		c.acked.Add(1)
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	return nil
}

// batch is what one write sends: heads in a buffer of its own, payloads where
// they are.
type batch struct {
	heads   []byte
	ends    []int // of each head
	number  []byte
	payload []byte
	bufs    net.Buffers
	bytes   int
}

func (b *batch) reset() { b.heads, b.ends, b.bytes = b.heads[:0], b.ends[:0], 0 }

func (b *batch) add(topic string, number int, id uint16, payload []byte) {
	b.number = strconv.AppendInt(b.number[:0], int64(number), 10)
	b.heads = appendPublish(b.heads, topic, b.number, id, len(payload))
	b.ends = append(b.ends, len(b.heads))
	b.payload = payload
	b.bytes += len(payload)
}

func (b *batch) write(w net.Conn) error {
	bufs := b.bufs[:0]
	from := 0
	for _, to := range b.ends {
		bufs = append(bufs, b.heads[from:to], b.payload)
		from = to
	}
	b.bufs = bufs // WriteTo eats its own
	_, err := bufs.WriteTo(w)
	return err
}
