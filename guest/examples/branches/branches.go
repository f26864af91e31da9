// branches: the three most likely beginnings of the answer, each with how it goes on; and how often the tenant asked.
package main

import (
	"errors"
	"fmt"

	"realm"
	"realm/abi"
)

func branch(trunk *realm.Context, first int32) (string, error) {
	c, err := trunk.Fork()
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Append(first); err != nil {
		return "", err
	}
	begin, err := realm.Decode([]int32{first}, abi.TextSpecial)
	if err != nil {
		return "", err
	}
	answer, err := c.Generate(realm.ModeEvents, realm.MaxTokens(8), realm.Temperature(0))
	if err != nil {
		return "", err
	}
	defer answer.Close()
	rest, err := answer.Text()
	return begin + rest, err
}

func branches() error {
	prompt, err := realm.OwnPrompt()
	if err != nil {
		return err
	}
	trunk, err := realm.NewContext()
	if err != nil {
		return err
	}
	defer trunk.Close()
	if _, err := trunk.AppendPrompt(prompt); err != nil {
		return err
	}
	pass, err := trunk.Forward(nil, 1, 0)
	if err != nil {
		return err
	}
	defer pass.Close()
	top, err := pass.Top(0, 3)
	if err != nil {
		return err
	}
	for i, first := range top {
		text, err := branch(trunk, first.Token)
		if err != nil {
			return err
		}
		fmt.Fprintf(realm.Client, "%d. %d/1000 nats: %s\n", i+1, int(first.Logprob*1000), text)
	}
	asked, err := realm.StoreGet("asked")
	if errors.Is(err, realm.ErrNotFound) {
		asked = []byte{0}
	} else if err != nil {
		return err
	}
	asked[0]++
	if err := realm.StorePut("asked", asked); err != nil {
		return err
	}
	_, err = fmt.Fprintf(realm.Client, "asked %d times", asked[0])
	return err
}

func main() { realm.Main(branches) }
