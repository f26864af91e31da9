// edit: an answer that is edited while it is written. Where the model writes one word it gets another, and goes on from
// there as if it had chosen that itself. The engine runs ahead meanwhile: it waits for the program only where the
// program is more than eight tokens behind.
package main

import (
	"strings"

	"realm"
	"realm/abi"
)

const (
	word  = "Paris"
	other = "Lyon"
)

type answer struct {
	g    *realm.Generation
	text string
	ends []int // of the text behind each token
	sent int
}

// rewrite puts the other word in the place of the one at an index.
func (a *answer) rewrite(at int) error {
	keep, from := 0, 0
	for ; a.ends[keep] <= at; keep++ {
		from = a.ends[keep]
	}
	piece := a.text[from:at] + other // the word may begin inside a token
	tokens, err := realm.Encode(piece, abi.TextContinues)
	if err != nil {
		return err
	}
	a.text = a.text[:from] + piece
	a.ends = a.ends[:keep]
	for range tokens {
		a.ends = append(a.ends, len(a.text))
	}
	return a.g.Rewind(keep, tokens...)
}

// send gives the client what can be no beginning of the word any more, and confirms it.
func (a *answer) send(safe int) error {
	sure, to := 0, a.sent
	for ; sure < len(a.ends) && a.ends[sure] <= safe; sure++ {
		to = max(to, a.ends[sure])
	}
	if safe == len(a.text) {
		to = safe
	}
	if err := a.g.Confirm(sure); err != nil || to == a.sent {
		return err
	}
	piece := a.text[a.sent:to]
	a.sent = to
	return realm.Emit(piece)
}

func (a *answer) take() error {
	for event, err := range a.g.Events() {
		if err != nil {
			return err
		}
		a.text += event.Text
		if event.Token >= 0 {
			a.ends = append(a.ends, len(a.text))
		}
		if at := strings.Index(a.text[a.sent:], word); at >= 0 {
			if err := a.rewrite(a.sent + at); err != nil {
				return err
			}
		}
		if err := a.send(len(a.text) - len(word) + 1); err != nil {
			return err
		}
	}
	return a.send(len(a.text))
}

func edit() error {
	prompt, err := realm.OwnPrompt()
	if err != nil {
		return err
	}
	g, err := prompt.Generate(realm.ModeAhead, realm.RunAhead(8), realm.MaxTokens(64), realm.Temperature(0))
	if err != nil {
		return err
	}
	defer g.Close()
	a := &answer{g: g}
	return a.take()
}

func main() { realm.Main(edit) }
