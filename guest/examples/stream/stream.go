// stream: hands the answer on as it comes, counts its tokens, and signs with what it counted.
package main

import (
	"errors"
	"fmt"

	"realm"
)

func stream() error {
	model, err := realm.Input("model")
	if errors.Is(err, realm.ErrNotFound) {
		model = "a model"
	} else if err != nil {
		return err
	}
	prompt, err := realm.OwnPrompt()
	if err != nil {
		return err
	}
	defer prompt.Close()
	answer, err := prompt.Generate(realm.ModeEvents)
	if err != nil {
		return err
	}
	defer answer.Close()
	tokens := 0
	for event, err := range answer.Events() {
		if err != nil {
			return err
		}
		if event.Token >= 0 {
			tokens++
		}
		if err := realm.Emit(event.Text); err != nil {
			return err
		}
	}
	ids, err := prompt.Tokens()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(realm.Client, "\n\n-- %s: %d tokens in, %d out", model, len(ids), tokens)
	return err
}

func main() { realm.Main(stream) }
