// Guests in the threads of a Go program, beside all that Go does with signals: its scheduler preempts goroutines by
// SIGURG, its profiler strikes every thread by SIGPROF, guests too, and its own faults (a nil pointer) are SIGSEGV.
//
//	go run .
//
// finds the library where `cmake --install` has put it in /usr/local; elsewhere say where it is:
//
//	CGO_CFLAGS=-I$PREFIX/include CGO_LDFLAGS=-L$PREFIX/lib go run .
//
// What a Go program must do is in guest.c: LS_WITHOUT_AUTODISARM, and an interrupt signal that is not Go's. The first executor is made when
// Go's handlers are in place, so that these find Go's thread-local storage whatever a guest does to FS. A goroutine
// need not stay in one thread.
package main

/*
#cgo LDFLAGS: -llockstep -lpthread
#include "guest.h"
*/
import "C"

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

type instruction []byte

// guest is a program and its state. One goroutine at a time may run it.
type guest struct {
	controller *C.ls_controller
}

func text(e *C.ls_error) error {
	return errors.New(C.GoString(&e.text[0]))
}

func newGuest(program []instruction) (*guest, error) {
	var code, lengths []byte
	for _, i := range program {
		code = append(code, i...)
		lengths = append(lengths, byte(len(i)))
	}
	var e C.ls_error
	c := C.guest_create((*C.uint8_t)(unsafe.Pointer(&code[0])), (*C.uint8_t)(unsafe.Pointer(&lengths[0])),
		C.uint32_t(len(program)), &e)
	if c == nil {
		return nil, text(&e)
	}
	return &guest{c}, nil
}

func (g *guest) run(limit time.Duration) (C.ls_stop, error) {
	var stop C.ls_stop
	var e C.ls_error
	if C.guest_run(g.controller, C.uint32_t(limit/time.Millisecond), &stop, &e) != C.LS_OK {
		return stop, text(&e)
	}
	return stop, nil
}

func (g *guest) close() {
	C.ls_controller_destroy(g.controller)
}

var programs = []struct {
	name   string
	code   []instruction
	limit  time.Duration
	kind   C.ls_stop_kind
	signal C.int
	rounds int
}{
	{"inc rax", []instruction{{0x48, 0xff, 0xc0}}, 0, C.LS_STOP_EXIT, 0, 500},
	{"ud2", []instruction{{0x0f, 0x0b}}, 0, C.LS_STOP_FAULT, 4, 500},
	{"mov rax, [0]", []instruction{{0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0}}, 0, C.LS_STOP_FAULT, 11, 500},
	{"jmp $", []instruction{{0xeb, 0xfe}}, 20 * time.Millisecond, C.LS_STOP_TIMEOUT, 0, 10},
	// FS, by which Go's handlers find what they need, is the guest's.
	{"mov fs, 0; jmp $", []instruction{{0x31, 0xc0}, {0x8e, 0xe0}, {0xeb, 0xfe}},
		20 * time.Millisecond, C.LS_STOP_TIMEOUT, 0, 10},
}

// Go's own fault, in a thread that may run guests as well.
func nilPointer() (recovered bool) {
	defer func() { recovered = recover() != nil }()
	var p *int
	*p = 1
	return false
}

func work(runs *int64) error {
	for _, p := range programs {
		g, err := newGuest(p.code)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for i := 0; i < p.rounds; i++ {
			stop, err := g.run(p.limit)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if stop.kind != p.kind || stop.signal != p.signal {
				return fmt.Errorf("%s: %s, signal %d", p.name, C.GoString(C.ls_stop_kind_name(stop.kind)), stop.signal)
			}
			if !nilPointer() {
				return errors.New("a nil pointer went by")
			}
			atomic.AddInt64(runs, 1)
		}
		g.close()
	}
	return nil
}

// What preempts: collections stop all goroutines, and those that never call anything are stopped by a signal.
func disturb() {
	for i := 0; i < 2; i++ {
		go func() {
			for n := 0; ; n++ {
			}
		}()
	}
	go func() {
		for {
			runtime.GC()
			time.Sleep(time.Millisecond)
		}
	}()
}

func main() {
	const workers = 4
	var profile bytes.Buffer
	var runs int64
	var all sync.WaitGroup
	failed := make(chan error, workers)
	if err := pprof.StartCPUProfile(&profile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	disturb()
	for i := 0; i < workers; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := work(&runs); err != nil {
				failed <- err
			}
		}()
	}
	all.Wait()
	pprof.StopCPUProfile()
	select {
	case err := <-failed:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	default:
	}
	fmt.Printf("%d runs ended as they should, beside the scheduler and the profiler\n", runs)
}
