package ship

import "shiplog/wal"

// The pure decisions, for the tables of the external tests.

type (
	View      = view
	Urgency   = urgency
	Freshness = freshness
)

const (
	Nothing = nothing
	Lazily  = lazily
	AtOnce  = atOnce
)

var (
	Place   = place
	MayCut  = mayCut
	Believe = believe
	Urgent  = urgent
	Final   = final
)

func NewView(h []wal.HistoryEntry, tail, end wal.LSN) View { return view{h, tail, end} }

func (p Positions) Ordered() Positions { return p.ordered() }

func (f *freshness) Mark(committed wal.LSN, clock int64) { f.mark(committed, clock) }
func (f *freshness) See(visible wal.LSN) int64           { return f.see(visible) }
