// A WASI command by stock Go: arguments, environment, goroutines, sleeping, the missing files, exit codes.
package main

import (
	"fmt"
	"os"
	"time"
	"unsafe"
)

//go:wasmimport realm emit
func emit(p unsafe.Pointer, n uint32) int32

func main() {
	began := time.Now()
	c := make(chan int)
	go func() {
		time.Sleep(20 * time.Millisecond)
		c <- 42
	}()
	answer := <-c
	_, err := os.ReadFile("/etc/passwd")
	fmt.Println("printed")
	text := []byte(fmt.Sprintf("args=%q env=%q answer=%d slept=%t files=%t", os.Args, os.Getenv("GREETING"), answer,
		time.Since(began) >= 20*time.Millisecond, err == nil))
	emit(unsafe.Pointer(&text[0]), uint32(len(text)))
	if len(os.Args) > 1 && os.Args[1] == "fail" {
		os.Exit(3)
	}
}
