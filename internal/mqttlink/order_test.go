package mqttlink

import "testing"

// TestNoGapBeforeTheEnd: of what was read when the connection failed, a part may
// still be handed on, but the reader must stop at the first message that is
// not. That one comes again on the next connection, and would be out of order
// behind later ones.
func TestNoGapBeforeTheEnd(t *testing.T) {
	c := &connection{events: make(chan event, eventQueue), gone: make(chan struct{})}
	close(c.gone)
	for range 100 { // handed on or not: both are tried
		err := c.handle(&published{msg: Message{Topic: "t"}})
		if handedOn := len(c.events) == 1; handedOn != (err == nil) {
			t.Fatalf("handed on %t, and the reader is told %v", handedOn, err)
		}
		for len(c.events) > 0 {
			<-c.events
		}
	}
}
