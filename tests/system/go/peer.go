// A peer that knows encoding/gob itself. `peer strange` writes one JSON line per frame it makes up; `peer echo KIND` reads
// hex payloads from stdin, decodes each with the structs of the original programs plus the extension fields, and answers
// with its JSON and with what Go's encoder makes of it.
package main

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"os"
	"time"
)

type ImgType int
type ImgInfo struct {
	OriginalName string
	Typ          ImgType
	Width        uint
	Height       uint
	ImgData      []byte
}
type Request struct {
	ImgInfo
	TargetWidth, TargetHeight uint
	CreatedAt                 int64
	DryRun                    bool
}
type RequestExt struct {
	ImgInfo
	TargetWidth, TargetHeight uint
	CreatedAt                 int64
	DryRun                    bool
	ID                        uint
	Fit, Format               string
	Quality                   uint
}
type Response struct {
	ImgInfo
	ResizedWidth, ResizedHeight uint
	ProcessingTime, CreatedAt   int64
}
type ResponseExt struct {
	ImgInfo
	ResizedWidth, ResizedHeight uint
	ProcessingTime, CreatedAt   int64
	ID, Status                  uint
	Error, Server               string
	Queue, Workers              uint
}

type Point struct{ X, Y int }
type Chain struct {
	Value int
	Next  *Chain
}
type Strange struct {
	Before   map[string][]Point
	Grid     [3][2]uint
	Pointer  *float32
	ImgInfo  ImgInfo
	Complex  complex128
	Chain    Chain
	Raws     [][]byte
	Flags    []bool
	ByID     map[int]map[string]float64
	TargetWidth, TargetHeight uint
	Empty    []string
	After    string
}

type row struct {
	Name string
	Hex  string
	JSON string `json:",omitempty"`
}

func gobOf(value any) string {
	var out bytes.Buffer
	if err := gob.NewEncoder(&out).Encode(value); err != nil {
		panic(err)
	}
	return hex.EncodeToString(out.Bytes())
}

func strange() []row {
	half := float32(0.5)
	info := ImgInfo{OriginalName: "s.png", Typ: 1, ImgData: []byte{1, 2, 3}}
	full := Strange{
		Before: map[string][]Point{"a": {{1, -2}, {0, 0}}, "b": {}}, Grid: [3][2]uint{{1, 2}, {0, 300}, {5, 6}},
		Pointer: &half, ImgInfo: info, Complex: complex(1.5, -2), Chain: Chain{1, &Chain{2, &Chain{0, nil}}},
		Raws: [][]byte{{9}, {}, bytes.Repeat([]byte{7}, 300)}, Flags: []bool{true, false},
		ByID: map[int]map[string]float64{-7: {"x": 0.1}}, TargetWidth: 7, TargetHeight: 1 << 40, After: "end",
	}
	gob.Register(Point{})
	return []row{
		{Name: "strange", Hex: gobOf(full)},
		{Name: "strange-zero", Hex: gobOf(Strange{ImgInfo: info})},
		{Name: "interface", Hex: gobOf(struct {
			ImgInfo ImgInfo
			Any     any
		}{info, Point{1, 2}})},
		{Name: "interface-in-slice", Hex: gobOf(struct {
			ImgInfo ImgInfo
			Any     []any
		}{info, nil})},
		{Name: "marshaler", Hex: gobOf(struct {
			ImgInfo ImgInfo
			At      time.Time
		}{info, time.Unix(1, 2)})},
		{Name: "wrong-type", Hex: gobOf(struct{ TargetWidth int }{-5})},
		{Name: "nothing-in-common", Hex: gobOf(struct{ Colour string }{"red"})},
		{Name: "not-a-struct", Hex: gobOf([]int{1, 2, 3})},
		{Name: "number", Hex: gobOf(42)},
		{Name: "scalar-imginfo", Hex: gobOf(struct{ ImgInfo string }{"x"})},
	}
}

func answer(kind string, payload []byte) row {
	dec := gob.NewDecoder(bytes.NewReader(payload))
	var value any
	switch kind {
	case "Request":
		value = &Request{}
	case "RequestExt":
		value = &RequestExt{}
	case "Response":
		value = &Response{}
	default:
		value = &ResponseExt{}
	}
	if err := dec.Decode(value); err != nil {
		return row{Name: "error", JSON: err.Error()}
	}
	text, _ := json.Marshal(value)
	return row{Name: kind, Hex: gobOf(value), JSON: string(text)}
}

func main() {
	out := json.NewEncoder(os.Stdout)
	if os.Args[1] == "strange" {
		for _, one := range strange() {
			out.Encode(one)
		}
		return
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		payload, err := hex.DecodeString(lines.Text())
		if err != nil {
			panic(err)
		}
		out.Encode(answer(os.Args[2], payload))
	}
}
