package socketio

import "sync"

const (
	// inboxEvents and inboxBytes bound the events that wait for a socket's
	// handlers; beyond them the client is made to wait.
	inboxEvents = 64
	inboxBytes  = 8 << 20
)

// task is something to run on a socket's goroutine; size counts what it holds.
type task struct {
	run  func()
	size int
}

// serial runs tasks one after the other. Its goroutine exists only while there
// are tasks: an idle socket has none.
type serial struct {
	start func(func()) // runs a goroutine that the server waits for

	mu      sync.Mutex // guards the fields below
	room    *sync.Cond // on mu; nil until somebody waits
	tasks   []task
	bytes   int
	running bool
	ended   bool
}

// push queues a task; with wait it first waits for room. It returns false,
// and will not run the task, after end.
func (s *serial) push(t task, wait bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for wait && !s.ended && (len(s.tasks) >= inboxEvents || s.bytes > 0 && s.bytes+t.size > inboxBytes) {
		if s.room == nil {
			s.room = sync.NewCond(&s.mu)
		}
		s.room.Wait()
	}
	if s.ended {
		return false
	}
	s.add(t)
	return true
}

// end queues the last task.
func (s *serial) end(t task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	s.add(t)
	if s.room != nil {
		s.room.Broadcast()
	}
}

// add queues t. The caller holds mu.
func (s *serial) add(t task) {
	s.tasks = append(s.tasks, t)
	s.bytes += t.size
	if !s.running {
		s.running = true
		s.start(s.loop)
	}
}

func (s *serial) loop() {
	for {
		s.mu.Lock()
		if len(s.tasks) == 0 {
			s.running, s.tasks = false, nil
			s.mu.Unlock()
			return
		}
		t := s.tasks[0]
		s.tasks[0] = task{}
		s.tasks = s.tasks[1:]
		s.bytes -= t.size
		if s.room != nil {
			s.room.Broadcast()
		}
		s.mu.Unlock()
		t.run()
	}
}
