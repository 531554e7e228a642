package simtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// world runs f in a bubble with a network, and a connection from "phone" to
// "server" on which the faults that plan made already count.
func world(t *testing.T, plan func(n *Network), f func(t *testing.T, n *Network, phone, server net.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(t, 1)
		ln := n.Listen("server")
		if plan != nil {
			plan(n)
		}
		phone, server := connect(t, n, ln)
		f(t, n, phone, server)
	})
}

func connect(t *testing.T, n *Network, ln net.Listener) (phone, server net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	phone, err := n.Dial(t.Context(), "phone", "server")
	if err != nil {
		t.Fatal(err)
	}
	return phone, <-accepted
}

// read reads until an error and returns both.
func read(c net.Conn) (string, error) {
	var got bytes.Buffer
	_, err := got.ReadFrom(c)
	return got.String(), err
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func TestBytesThenEOF(t *testing.T) {
	world(t, nil, func(t *testing.T, n *Network, phone, server net.Conn) {
		write(t, phone, "hello")
		write(t, server, "welcome")
		synctest.Wait()
		buf := make([]byte, 16)
		if k, err := phone.Read(buf); err != nil || string(buf[:k]) != "welcome" {
			t.Fatalf("got %q, %v", buf[:k], err)
		}
		phone.Close()
		if got, err := read(server); got != "hello" || err != nil {
			t.Errorf("got %q, %v; want hello and a clean end", got, err)
		}
		_, err := server.Write([]byte("late"))
		wantErr(t, "write to a closed peer", err, syscall.EPIPE)
		_, err = phone.Read(buf)
		wantErr(t, "read after close", err, net.ErrClosed)
		wantErr(t, "second close", phone.Close(), net.ErrClosed)
		synctest.Wait()
		if got := n.Connections("phone", "server"); got != 0 {
			t.Errorf("%d connections left", got)
		}
		if up, down := n.Moved("phone", "server"), n.Moved("server", "phone"); up != 5 || down != 7 {
			t.Errorf("moved %d up and %d down, want 5 and 7", up, down)
		}
	})
}

func TestCutResetsBothEnds(t *testing.T) {
	world(t, nil, func(t *testing.T, n *Network, phone, server net.Conn) {
		write(t, phone, "arrived")
		synctest.Wait()
		if got := n.Cut("server", Any); got != 1 {
			t.Fatalf("cut %d connections, want 1", got)
		}
		got, err := read(server)
		if got != "arrived" {
			t.Errorf("got %q, want what had arrived", got)
		}
		wantErr(t, "server read", err, syscall.ECONNRESET)
		_, err = phone.Read(make([]byte, 1))
		wantErr(t, "phone read", err, syscall.ECONNRESET)
		_, err = phone.Write([]byte("x"))
		wantErr(t, "phone write", err, syscall.ECONNRESET)
		if n.Cut("phone", "server") != 0 {
			t.Error("a connection was cut twice")
		}
	})
}

// TestCutAfter cuts at every offset of a message, in both directions.
func TestCutAfter(t *testing.T) {
	const message = "a photo of the sea"
	for _, from := range []string{"phone", "server"} {
		to := map[string]string{"phone": "server", "server": "phone"}[from]
		for offset := range len(message) + 1 {
			world(t, func(n *Network) { n.CutAfter(from, to, int64(offset)) }, func(t *testing.T, n *Network, phone, server net.Conn) {
				sender, receiver := phone, server
				if from == "server" {
					sender, receiver = server, phone
				}
				sender.Write([]byte(message))
				got, err := read(receiver)
				if got != message[:offset] {
					t.Errorf("from %s, cut after %d: got %q", from, offset, got)
				}
				wantErr(t, "receiver", err, syscall.ECONNRESET)
				_, err = sender.Read(make([]byte, 1))
				wantErr(t, "sender", err, syscall.ECONNRESET)
			})
		}
	}
}

func TestCutAsSoonAsOpen(t *testing.T) {
	world(t, func(n *Network) { n.CutAfter("phone", "server", 0) }, func(t *testing.T, n *Network, phone, server net.Conn) {
		for _, c := range []net.Conn{phone, server} {
			_, err := c.Read(make([]byte, 1))
			wantErr(t, "read", err, syscall.ECONNRESET)
		}
	})
}

func TestHealMovesStalled(t *testing.T) {
	world(t, nil, func(t *testing.T, n *Network, phone, server net.Conn) {
		n.Stall(Any, Any)
		write(t, phone, "held")
		synctest.Wait()
		n.Heal()
		if _, err := io.ReadFull(server, make([]byte, 4)); err != nil {
			t.Error(err)
		}
	})
}

func TestCutPlansAreUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(t, 1)
		ln := n.Listen("server")
		survives := func() bool {
			t.Helper()
			phone, server := connect(t, n, ln)
			defer phone.Close()
			phone.Write([]byte("abc"))
			_, err := io.ReadFull(server, make([]byte, 3))
			return err == nil
		}
		n.CutAfter("phone", "server", 1)
		if survives() || !survives() {
			t.Error("CutAfter must cut the next connection and no other")
		}
		n.CutEachAfter(Any, "server", 1)
		if survives() || survives() {
			t.Error("CutEachAfter must cut every connection")
		}
		n.Heal()
		if !survives() {
			t.Error("Heal must end CutEachAfter")
		}
	})
}

func TestStallAndResume(t *testing.T) {
	world(t, nil, func(t *testing.T, n *Network, phone, server net.Conn) {
		n.Stall("phone", "server")
		write(t, phone, "held")
		server.SetReadDeadline(time.Now().Add(time.Hour))
		start := time.Now()
		_, err := server.Read(make([]byte, 1))
		wantErr(t, "read on a stalled link", err, os.ErrDeadlineExceeded)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != time.Hour {
			t.Errorf("got %v after %v, want a timeout after 1h", err, time.Since(start))
		}
		write(t, server, "back") // the other direction still moves
		if _, err := io.ReadFull(phone, make([]byte, 4)); err != nil {
			t.Error(err)
		}
		phone.Close()
		synctest.Wait()
		n.Resume("phone", "server")
		server.SetReadDeadline(time.Time{})
		if got, err := read(server); got != "held" || err != nil {
			t.Errorf("after Resume: got %q, %v; want held and the end", got, err)
		}
	})
}

func TestStalledWriterWaits(t *testing.T) {
	world(t, nil, func(t *testing.T, n *Network, phone, server net.Conn) {
		n.Isolate("server")
		phone.SetWriteDeadline(time.Now().Add(time.Minute))
		k, err := phone.Write(make([]byte, 4<<20))
		wantErr(t, "write", err, os.ErrDeadlineExceeded)
		if k < 256<<10 || k > 600<<10 {
			t.Errorf("a stalled link took %d bytes, want some 512 KiB", k)
		}
		n.Rejoin("server")
		if _, err := io.CopyN(io.Discard, server, int64(k)); err != nil {
			t.Error(err)
		}
	})
}

func TestDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(t, 1)
		dial := func(timeout time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			c, err := n.Dialer("phone", "server")(ctx)
			if err == nil {
				c.Close()
			}
			return err
		}
		wantErr(t, "nobody listens", dial(time.Second), syscall.ECONNREFUSED)
		ln := n.Listen("server")
		wantErr(t, "nobody accepts", dial(time.Second), context.DeadlineExceeded)
		go func() {
			for {
				if _, err := ln.Accept(); err != nil {
					wantErr(t, "accept", err, net.ErrClosed)
					return
				}
			}
		}()
		n.Refuse(Any, "server", true)
		wantErr(t, "refused", dial(time.Second), syscall.ECONNREFUSED)
		n.Refuse(Any, "server", false)
		n.Isolate("phone")
		wantErr(t, "isolated", dial(time.Second), context.DeadlineExceeded)
		time.AfterFunc(time.Minute, func() { n.Rejoin("phone") })
		n.Delay(Any, Any, 2*time.Second, 0)
		start := time.Now()
		wantErr(t, "after rejoin", dial(time.Hour), nil)
		if got := time.Since(start); got != time.Minute {
			t.Errorf("dial took %v, want 1m", got)
		}
		ln.Close()
		n.Listen("server") // the name is free again
	})
}

func TestDelayAndRate(t *testing.T) {
	world(t, func(n *Network) { n.Rate("phone", Any, 1000) }, func(t *testing.T, n *Network, phone, server net.Conn) {
		n.Delay("phone", "server", 300*time.Millisecond, 0)
		start := time.Now()
		write(t, phone, string(make([]byte, 5000)))
		if _, err := io.ReadFull(server, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		if got, want := time.Since(start), 5300*time.Millisecond; got != want {
			t.Errorf("5000 bytes took %v, want %v", got, want)
		}
		start = time.Now()
		write(t, server, "x")
		server.Close()
		read(phone)
		if got := time.Since(start); got != 0 {
			t.Errorf("the other direction took %v", got)
		}
	})
}

// TestJitter checks that a seed draws the same arrivals, another seed others,
// and that bytes stay in order.
func TestJitter(t *testing.T) {
	arrivals := func(seed uint64) (at []time.Duration, got string) {
		synctest.Test(t, func(t *testing.T) {
			n := NewNetwork(t, seed)
			n.Delay("phone", "server", time.Millisecond, time.Second)
			phone, server := connect(t, n, n.Listen("server"))
			start := time.Now()
			go func() {
				for i := range 20 {
					phone.Write([]byte{byte('a' + i)})
					time.Sleep(10 * time.Millisecond)
				}
				phone.Close()
			}()
			buf := make([]byte, 1)
			for {
				if _, err := server.Read(buf); err != nil {
					return
				}
				got += string(buf)
				at = append(at, time.Since(start))
			}
		})
		return at, got
	}
	same := func(a, b []time.Duration) bool {
		for i := range a {
			if a[i] != b[i] {
				return false
			}
		}
		return len(a) == len(b)
	}
	first, got := arrivals(7)
	if want := "abcdefghijklmnopqrst"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	second, _ := arrivals(7)
	other, _ := arrivals(8)
	if !same(first, second) || same(first, other) {
		t.Errorf("seed 7: %v\nseed 7: %v\nseed 8: %v", first, second, other)
	}
}

func TestCorrupt(t *testing.T) {
	world(t, func(n *Network) { n.Corrupt("phone", "server", 3) }, func(t *testing.T, n *Network, phone, server net.Conn) {
		sent := []byte("0123456789")
		phone.Write(sent[:2])
		synctest.Wait()
		phone.Write(sent[2:])
		phone.Close()
		got, _ := read(server)
		differ := 0
		for i := range got {
			if got[i] != sent[i] {
				differ++
				if i != 3 {
					t.Errorf("byte %d was flipped, want 3", i)
				}
			}
		}
		if differ != 1 || len(got) != len(sent) {
			t.Errorf("got %q from %q, want one byte flipped", got, sent)
		}
	})
}

// TestCloseEndsEverything leaves links in every state behind; the bubble
// fails if a goroutine of theirs remains.
func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(t, 1)
		ln := n.Listen("server")
		connect(t, n, ln)
		phone, _ := connect(t, n, ln)
		n.Stall(Any, Any)
		phone.Write(make([]byte, 300<<10))
		phone.Close()
		dialed := make(chan error)
		go func() {
			_, err := n.Dial(t.Context(), "phone", "server")
			dialed <- err
		}()
		synctest.Wait()
		n.Close()
		wantErr(t, "waiting dial", <-dialed, syscall.ECONNREFUSED)
		n.Close()
		_, err := ln.Accept()
		wantErr(t, "accept after close", err, net.ErrClosed)
		_, err = n.Dial(t.Context(), "phone", "server")
		wantErr(t, "dial after close", err, syscall.ECONNREFUSED)
	})
}

func TestHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(t, 1)
		ln := n.Listen("server:8080")
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.RemoteAddr)
		})}
		go server.Serve(ln)
		defer server.Close()
		transport := &http.Transport{DialContext: n.DialContext("phone")}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get("http://server:8080/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, _ := io.ReadAll(resp.Body); string(got) != "phone:1" {
			t.Errorf("got %q, want phone:1", got)
		}
	})
}
