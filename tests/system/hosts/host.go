// A Host on Go's own HTTP parser: answers each whole request, and writes a line for it to the file that it was given.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

type seen struct {
	Method string `json:"method"`
	Target string `json:"target"`
	Length int64  `json:"length"`
}

func main() {
	log, err := os.OpenFile(os.Args[1], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	answer := func(response http.ResponseWriter, request *http.Request) {
		length, err := io.Copy(io.Discard, request.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		line, _ := json.Marshal(seen{request.Method, request.RequestURI, length})
		log.Write(append(line, '\n'))
		response.Write(line)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	server := http.Server{Handler: http.HandlerFunc(answer), DisableGeneralOptionsHandler: true}
	server.Serve(listener)
}
