// Go: static and without a C library; goroutines, channels, timers, a garbage collector, a socket, a child.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func work(number int) string {
	words := map[string]int{}
	word := fmt.Sprint(number)
	for i := 0; i < 4000; i++ {
		word = fmt.Sprintf("%x", sha256.Sum256([]byte(word)))
		words[word[:2]] += i
	}
	sum := 0
	for _, count := range words {
		sum += count * count
	}
	return fmt.Sprint(word, sum)
}

func main() {
	here := os.Getenv("CONFORM_DIR")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go func() {
		server, err := listener.Accept()
		must(err)
		_, err = io.Copy(server, server)
		must(err)
		server.Close()
	}()
	client, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	tasks, results := make(chan int), make([]string, 24)
	var workers, cycle sync.WaitGroup
	for i := 0; i < 4; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := range tasks {
				results[number] = work(number)
				cycle.Done()
			}
		}()
	}
	for {
		if _, err := os.Stat(here + "/enough"); err == nil {
			break
		}
		cycle.Add(len(results))
		for number := range results {
			tasks <- number
		}
		sent := bytes.Repeat([]byte("there and back "), 20000)
		back := make([]byte, len(sent))
		go func() {
			_, err := client.Write(sent)
			must(err)
		}()
		_, err := io.ReadFull(client, back)
		must(err)
		select {
		case <-time.After(5 * time.Millisecond):
		}
		child := exec.Command("tr", "a-z", "A-Z")
		child.Stdin = bytes.NewReader([]byte("from a child"))
		said, err := child.Output()
		must(err)
		cycle.Wait()
		sum := sha256.Sum256([]byte(fmt.Sprint(results, sha256.Sum256(back), string(said))))
		lines, err := os.OpenFile(here+"/lines", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		must(err)
		_, err = fmt.Fprintf(lines, "%x\n", sum[:10])
		must(err)
		must(lines.Close())
	}
	close(tasks)
	workers.Wait()
	must(client.Close())
}
