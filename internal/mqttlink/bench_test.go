package mqttlink

import (
	"bufio"
	"context"
	"io"
	"net"
	"testing"

	"github.com/eclipse/paho.golang/packets"

	"pairsync/internal/moment"
)

// photoBytes is the size of photo that the benchmarks of the project use.
const photoBytes = 200_000

var benchProperties = []moment.Property{{Key: "caption", Value: "hello"}, {Key: "taken-at", Value: "2026-01-02T03:04:05Z"},
	{Key: "sender-name", Value: "Anna"}, {Key: "message-id", Value: "m1"}}

// benchServer accepts one connection on TCP loopback, answers CONNECT, and
// hands the connection to serve. It does as little as a server can.
func benchServer(b *testing.B, serve func(net.Conn, *bufio.Reader)) *Link {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		packets.ReadPacket(r)
		conn.Write(encode(&packets.Connack{Properties: &packets.Properties{}}))
		serve(conn, r)
	}()
	b.Cleanup(func() { ln.Close(); <-ended })
	l := newLink(b, Config{
		Dial:    func(context.Context) (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) },
		Receive: func(m *Message) { m.Ack() },
	})
	b.SetBytes(photoBytes)
	b.ReportAllocs()
	return l
}

func BenchmarkPublish200KB(b *testing.B) {
	l := benchServer(b, func(c net.Conn, r *bufio.Reader) {
		for id := uint16(1); ; id++ {
			if id == 0 {
				id++
			}
			if _, err := r.ReadByte(); err != nil {
				return
			}
			n, err := readLength(r)
			if err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
				return
			}
			c.Write(appendPuback(nil, id))
		}
	})
	awaitUp(b, l)
	p := Publish{Topic: "pairs/p/photos/anna/1", Payload: make([]byte, photoBytes), ContentType: "image/jpeg", Properties: benchProperties, QoS: 1}
	for b.Loop() {
		if err := l.Publish(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReceive200KB(b *testing.B) {
	p := &Publish{Topic: "pairs/p/photos/anna/1", Payload: make([]byte, photoBytes), ContentType: "image/jpeg", Properties: benchProperties, QoS: 1}
	packet := append(publishHead(p, 1, false), p.Payload...)
	send := make(chan struct{})
	acked := make(chan struct{})
	l := benchServer(b, func(c net.Conn, r *bufio.Reader) {
		ack := make([]byte, 4)
		for range send {
			c.Write(packet)
			if _, err := io.ReadFull(r, ack); err != nil {
				return
			}
			acked <- struct{}{}
		}
	})
	b.Cleanup(func() { close(send) })
	awaitUp(b, l)
	for b.Loop() {
		send <- struct{}{}
		<-acked
	}
}
