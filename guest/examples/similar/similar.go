// similar: notes that are found by what they mean. Each line of the prompt but the last is a note, kept in the tenant's
// store with its embedding: the hidden state that a forward pass leaves behind its last token. The last line is compared
// with all that there are, those of earlier requests too; its pass is under way while the notes are kept.
package main

import (
	"encoding/binary"
	"fmt"
	"strings"

	"realm"
	"realm/abi"
)

// embed starts the pass that embeds a text; it goes on without its context.
func embed(text string) (*realm.PendingPass, error) {
	tokens, err := realm.Encode(text, abi.TextAddSpecial)
	if err != nil {
		return nil, err
	}
	context, err := realm.NewContext()
	if err != nil {
		return nil, err
	}
	defer context.Close()
	return context.StartForward(tokens, 1, abi.ForwardHidden)
}

// embedding is what the pass leaves behind.
func embedding(pending *realm.PendingPass) ([]float32, error) {
	pass, err := pending.Wait()
	if err != nil {
		return nil, err
	}
	defer pass.Close()
	return pass.Hidden(0)
}

// likeness of a kept one to what was asked: the cosine, squared with its sign.
func likeness(asked, kept []float32) float32 {
	var both, own float32
	for i := range kept {
		both += asked[i] * kept[i]
		own += kept[i] * kept[i]
	}
	return max(both, -both) * both / own
}

func find(asked []float32) (best string, n int, err error) {
	keys, err := realm.StoreList("note/")
	if err != nil {
		return "", 0, err
	}
	var most float32
	kept := make([]float32, len(asked))
	for _, key := range keys {
		value, err := realm.StoreGet(key)
		if err != nil {
			return "", 0, err
		}
		if len(value) != 4*len(kept) {
			continue // another model's
		}
		if _, err := binary.Decode(value, binary.LittleEndian, kept); err != nil {
			return "", 0, err
		}
		if like := likeness(asked, kept); n == 0 || like > most {
			best, most = key[len("note/"):], like
		}
		n++
	}
	return best, n, nil
}

func keep(note string) error {
	pending, err := embed(note)
	if err != nil {
		return err
	}
	kept, err := embedding(pending)
	if err != nil {
		return err
	}
	value, err := binary.Append(nil, binary.LittleEndian, kept)
	if err != nil {
		return err
	}
	return realm.StorePut("note/"+note, value)
}

func similar() error {
	prompt, err := realm.Input("prompt")
	if err != nil {
		return err
	}
	lines := strings.Split(prompt, "\n")
	last := len(lines) - 1
	question, err := embed(lines[last])
	if err != nil {
		return err
	}
	for _, note := range lines[:last] {
		if err := keep(note); err != nil {
			return err
		}
	}
	asked, err := embedding(question)
	if err != nil {
		return err
	}
	best, n, err := find(asked)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(realm.Client, "%s (1 of %d)", best, n)
	return err
}

func main() { realm.Main(similar) }
