package badgerdb

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// job is one function waiting for the writer.
type job struct {
	cost  int
	prune bool // only deletes: let through while the disk is too full to put
	fn    func(*Tx) error
	done  func(error)
}

// queue hands jobs to the writer in order. Its bound is a number of bytes,
// counted from push until the job was answered.
type queue struct {
	room  *semaphore.Weighted
	limit int
	least int
	ready chan struct{} // capacity 1; a hint that jobs or closed changed

	mu     sync.Mutex // guards the fields below
	jobs   []job
	closed bool
}

func newQueue(limit, least int) *queue {
	return &queue{
		room:  semaphore.NewWeighted(int64(limit)),
		limit: limit,
		least: least,
		ready: make(chan struct{}, 1),
	}
}

// push waits for room and appends j. It fails only when ctx ends or the queue
// is closed first.
func (q *queue) push(ctx context.Context, j job) error {
	j.cost = min(max(j.cost, q.least), q.limit)
	if err := q.room.Acquire(ctx, int64(j.cost)); err != nil {
		return err
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		q.room.Release(int64(j.cost))
		return ErrClosed
	}
	q.jobs = append(q.jobs, j)
	q.mu.Unlock()
	q.wake()
	return nil
}

// take removes the jobs that make up the next batch: at least one if there is
// one, and more while they cost less than limit together.
func (q *queue) take(limit int) (batch []job, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, cost := 0, 0
	for n < len(q.jobs) && (n == 0 || cost+q.jobs[n].cost <= limit) {
		cost += q.jobs[n].cost
		n++
	}
	batch = q.jobs[:n:n]
	if q.jobs = q.jobs[n:]; len(q.jobs) == 0 {
		q.jobs = nil
	}
	return batch, q.closed
}

// answered gives back the room of a job.
func (q *queue) answered(j job) { q.room.Release(int64(j.cost)) }

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}
