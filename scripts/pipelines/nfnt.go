// The Go pipeline of bench_images.py: image/jpeg, image/png, image/gif and nfnt/resize's Lanczos3. The same
// conversation as python.py; CPU includes the garbage collector's threads.
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

func say(message map[string]any) {
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
	say(map[string]any{"ready": runtime.Version() + ", nfnt/resize"})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked job
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		data, err := os.ReadFile(asked.Path)
		if err != nil {
			panic(err)
		}
		started := cpu()
		answer, err := shrink(data, asked.Width, asked.Height)
		spent := cpu() - started
		if err != nil {
			say(map[string]any{"error": err.Error()})
			continue
		}
		if asked.Out != "" {
			_ = os.WriteFile(asked.Out, answer, 0o644)
		}
		say(map[string]any{"cpu": spent, "bytes": len(answer)})
	}
}
