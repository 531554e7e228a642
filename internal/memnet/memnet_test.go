package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipe runs f in a bubble with two connected ends.
func pipe(t *testing.T, f func(t *testing.T, a, b net.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe("a", "b")
		defer a.Close()
		defer b.Close()
		f(t, a, b)
	})
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func TestPipeCarriesBothWays(t *testing.T) {
	pipe(t, func(t *testing.T, a, b net.Conn) {
		// Both write before either reads: net.Pipe would hang here.
		a.Write([]byte("from a"))
		b.Write([]byte("from b"))
		a.Close()
		if got, err := io.ReadAll(b); string(got) != "from a" || err != nil {
			t.Errorf("b got %q, %v", got, err)
		}
		if a.LocalAddr().String() != "a" || a.RemoteAddr().String() != "b" || b.RemoteAddr().String() != "a" || a.LocalAddr().Network() != "mem" {
			t.Errorf("addresses: %v %v %v", a.LocalAddr(), a.RemoteAddr(), b.RemoteAddr())
		}
	})
}

func TestClose(t *testing.T) {
	one := make([]byte, 1)
	t.Run("the peer reads the rest, then EOF", func(t *testing.T) {
		pipe(t, func(t *testing.T, a, b net.Conn) {
			a.Write([]byte("xy"))
			a.Close()
			for _, want := range "xy" {
				if _, err := b.Read(one); err != nil || one[0] != byte(want) {
					t.Fatalf("got %q, %v", one, err)
				}
			}
			_, err := b.Read(one)
			wantErr(t, "read", err, io.EOF)
			_, err = b.Write(one)
			wantErr(t, "write to a closed peer", err, io.ErrClosedPipe)
		})
	})
	t.Run("one's own end fails at once", func(t *testing.T) {
		pipe(t, func(t *testing.T, a, b net.Conn) {
			b.Write([]byte("never read"))
			a.Close()
			wantErr(t, "second close", a.Close(), nil)
			_, err := a.Read(one)
			wantErr(t, "read", err, io.ErrClosedPipe)
			_, err = a.Write(one)
			wantErr(t, "write", err, io.ErrClosedPipe)
		})
	})
	t.Run("it wakes everybody who waits", func(t *testing.T) {
		for _, closer := range []string{"a", "b"} {
			pipe(t, func(t *testing.T, a, b net.Conn) {
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := a.Read(one); err == nil {
						t.Error("read succeeded")
					}
				})
				wg.Go(func() {
					_, err := a.Write(make([]byte, 2*DefaultBufferBytes))
					wantErr(t, "write", err, io.ErrClosedPipe)
				})
				synctest.Wait()
				map[string]net.Conn{"a": a, "b": b}[closer].Close()
				wg.Wait()
			})
		}
	})
}

func TestDeadlines(t *testing.T) {
	full := make([]byte, DefaultBufferBytes+1)
	read := func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }
	write := func(c net.Conn) error { _, err := c.Write(full); return err }
	for name, test := range map[string]struct {
		set func(net.Conn, time.Time) error
		do  func(net.Conn) error
	}{
		"read":       {net.Conn.SetReadDeadline, read},
		"write":      {net.Conn.SetWriteDeadline, write},
		"both read":  {net.Conn.SetDeadline, read},
		"both write": {net.Conn.SetDeadline, write},
	} {
		t.Run(name, func(t *testing.T) {
			pipe(t, func(t *testing.T, a, b net.Conn) {
				start := time.Now()
				wait := func(what string, want time.Duration) {
					t.Helper()
					err := test.do(a)
					wantErr(t, what, err, os.ErrDeadlineExceeded)
					var timeout net.Error
					if !errors.As(err, &timeout) || !timeout.Timeout() {
						t.Errorf("%s: %v is no timeout", what, err)
					}
					if got := time.Since(start); got != want {
						t.Errorf("%s: ended after %v, want %v", what, got, want)
					}
				}
				test.set(a, start.Add(time.Minute))
				wait("deadline", time.Minute)
				wait("it stays expired", time.Minute)
				test.set(a, start.Add(time.Hour))
				wait("a new one", time.Hour)
				test.set(a, start)
				wait("one in the past", time.Hour)
				// One set while waiting counts, the earlier one no more.
				test.set(a, start.Add(2*time.Hour))
				time.AfterFunc(time.Minute, func() { test.set(a, start.Add(3*time.Hour)) })
				wait("moved", 3*time.Hour)
				test.set(a, time.Time{})
				time.AfterFunc(24*time.Hour, func() { test.set(a, time.Now()) })
				wait("none, then now", 27*time.Hour)
			})
		})
	}
}

// TestDeadlineOfOneSide checks that deadlines do not cross over.
func TestDeadlineOfOneSide(t *testing.T) {
	pipe(t, func(t *testing.T, a, b net.Conn) {
		past := time.Now().Add(-time.Second)
		a.SetReadDeadline(past)
		b.SetWriteDeadline(past)
		if _, err := a.Write([]byte("x")); err != nil {
			t.Errorf("a's write: %v", err)
		}
		if _, err := b.Read(make([]byte, 1)); err != nil {
			t.Errorf("b's read: %v", err)
		}
	})
}

// TestBackPressure checks that a writer waits for a reader when the buffer is
// full, tells how much went out when its deadline passes, and loses nothing.
func TestBackPressure(t *testing.T) {
	pipe(t, func(t *testing.T, a, b net.Conn) {
		sent := make([]byte, DefaultBufferBytes*5+3)
		for i := range sent {
			sent[i] = byte(i * 31 >> 3)
		}
		a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := a.Write(sent)
		if n != DefaultBufferBytes || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v; want a full buffer of %d", n, err, DefaultBufferBytes)
		}
		a.SetWriteDeadline(time.Time{})
		go func() {
			if m, err := a.Write(sent[n:]); m != len(sent)-n || err != nil {
				t.Errorf("wrote %d, %v", m, err)
			}
			a.Close()
		}()
		var got bytes.Buffer
		for size := 1; ; size = size*3%50_021 + 1 {
			m, err := io.CopyN(&got, b, int64(size))
			if err == io.EOF {
				break
			}
			if err != nil || m != int64(size) {
				t.Fatalf("read %d, %v", m, err)
			}
			synctest.Wait() // the writer fills what was read
		}
		if !bytes.Equal(got.Bytes(), sent) {
			t.Errorf("got %d bytes, want the %d that were sent", got.Len(), len(sent))
		}
	})
}

// TestWritesStayWhole checks what net.Conn promises to several writers: the
// bytes of one Write are not mixed with another's.
func TestWritesStayWhole(t *testing.T) {
	pipe(t, func(t *testing.T, a, b net.Conn) {
		const size = 3 * DefaultBufferBytes
		var wg sync.WaitGroup
		for _, c := range "xyz" {
			wg.Go(func() {
				if _, err := a.Write(bytes.Repeat([]byte{byte(c)}, size)); err != nil {
					t.Error(err)
				}
			})
		}
		got := make([]byte, 3*size)
		if _, err := io.ReadFull(b, got); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		for i := range 3 {
			part := got[i*size : (i+1)*size]
			if n := bytes.Count(part, part[:1]); n != size {
				t.Errorf("part %d holds %d of %d bytes of one write", i, n, size)
			}
		}
	})
}

func TestEmptyReadsAndWrites(t *testing.T) {
	pipe(t, func(t *testing.T, a, b net.Conn) {
		for _, c := range []net.Conn{a, b} {
			if n, err := c.Read(nil); n != 0 || err != nil {
				t.Errorf("empty read: %d, %v", n, err)
			}
			if n, err := c.Write(nil); n != 0 || err != nil {
				t.Errorf("empty write: %d, %v", n, err)
			}
		}
	})
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen("server")
		if l.Addr().String() != "server" {
			t.Errorf("address %v", l.Addr())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := l.Dial(ctx, "early")
		wantErr(t, "nobody accepts", err, context.DeadlineExceeded)

		go func() {
			c, err := l.Dial(t.Context(), "phone")
			if err != nil {
				t.Error(err)
				return
			}
			c.Write([]byte("hello"))
			c.Close()
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil || c.RemoteAddr() != Addr("phone") || c.LocalAddr() != Addr("server") {
			t.Errorf("got %q, %v from %v", got, err, c.RemoteAddr())
		}

		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := l.Accept()
			wantErr(t, "waiting accept", err, net.ErrClosed)
		})
		synctest.Wait()
		l.Close()
		wantErr(t, "second close", l.Close(), nil)
		wg.Wait()
		// Both at once, many times: a closed listener connects nobody.
		for range 200 {
			wg.Go(func() {
				_, err := l.Dial(t.Context(), "late")
				wantErr(t, "dial after close", err, ErrRefused)
			})
			wg.Go(func() {
				_, err := l.Accept()
				wantErr(t, "accept after close", err, net.ErrClosed)
			})
		}
		wg.Wait()
	})
}

func TestCloseEndsWaitingDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Listen("server")
		time.AfterFunc(time.Second, func() { l.Close() })
		_, err := l.Dial(t.Context(), "phone")
		wantErr(t, "dial", err, ErrRefused)
	})
}

// BenchmarkPhoto moves a photo of 2 MB to a reader with a small buffer.
func BenchmarkPhoto(b *testing.B) {
	near, far := Pipe("a", "b")
	defer near.Close()
	defer far.Close()
	photo, buf := make([]byte, 2<<20), make([]byte, 4<<10)
	b.SetBytes(int64(len(photo)))
	b.ReportAllocs()
	for b.Loop() {
		go near.Write(photo)
		for n := 0; n < len(photo); {
			m, err := far.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
}
