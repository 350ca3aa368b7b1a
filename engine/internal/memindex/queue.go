package memindex

const queueChunk = 1024

// ticket names a key node that holds more than readers above ref will need:
// versions beyond two, or a Delete.
type ticket struct {
	ref  uint64 // the node's newest version when the ticket was drawn
	addr uint32
}

// queue is a first-in, first-out list of tickets in chunks, so that it grows
// without moving what it holds. Only the writer uses it. A node has at most
// one ticket (queuedBit) and is not freed before it is drawn.
type queue struct {
	chunks []*[queueChunk]ticket
	first  int // index of the oldest ticket in chunks[0]
	n      int
	spare  *[queueChunk]ticket
}

func (q *queue) push(t ticket) {
	i := q.first + q.n
	if i/queueChunk == len(q.chunks) {
		c := q.spare
		if q.spare = nil; c == nil {
			c = new([queueChunk]ticket)
		}
		q.chunks = append(q.chunks, c)
	}
	q.chunks[i/queueChunk][i%queueChunk] = t
	q.n++
}

// oldest returns the ref of the oldest ticket; the queue is not empty.
func (q *queue) oldest() uint64 { return q.chunks[0][q.first].ref }

func (q *queue) pop() ticket {
	t := q.chunks[0][q.first]
	q.n--
	if q.first++; q.first == queueChunk || q.n == 0 {
		q.spare = q.chunks[0]
		q.chunks = q.chunks[1:]
		q.first = 0
	}
	return t
}

func (q *queue) bytes() int64 {
	return int64(len(q.chunks)+1) * queueChunk * 16
}
