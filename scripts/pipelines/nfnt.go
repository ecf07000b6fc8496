// The Go pipeline of bench_images.py: image/jpeg, image/png, image/gif and nfnt/resize's Lanczos3. The same
// messages as python.py; CPU includes the garbage collector's threads.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/gif"
	"image/jpeg"
	"image/png"
	"os"
	"runtime"
	"syscall"

	"github.com/nfnt/resize"
)

type job struct {
	Path          string
	Width, Height uint
	Out           string
}

func cpu() float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return float64(used.Utime.Sec+used.Stime.Sec) + float64(used.Utime.Usec+used.Stime.Usec)/1e6
}

func send(message map[string]any) {
	text, _ := json.Marshal(message)
	fmt.Println(string(text))
}

func shrink(data []byte, width, height uint) ([]byte, error) {
	source, kind, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	made := resize.Resize(width, height, source, resize.Lanczos3)
	var out bytes.Buffer
	switch kind {
	case "png":
		err = png.Encode(&out, made)
	case "gif":
		err = gif.Encode(&out, made, nil)
	default:
		err = jpeg.Encode(&out, made, nil)
	}
	return out.Bytes(), err
}

func main() {
	send(map[string]any{"ready": runtime.Version() + ", nfnt/resize"})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var request job
		if err := json.Unmarshal(lines.Bytes(), &request); err != nil {
			panic(err)
		}
		data, err := os.ReadFile(request.Path)
		if err != nil {
			panic(err)
		}
		started := cpu()
		answer, err := shrink(data, request.Width, request.Height)
		spent := cpu() - started
		if err != nil {
			send(map[string]any{"error": err.Error()})
			continue
		}
		if request.Out != "" {
			_ = os.WriteFile(request.Out, answer, 0o644)
		}
		send(map[string]any{"cpu": spent, "bytes": len(answer)})
	}
}
