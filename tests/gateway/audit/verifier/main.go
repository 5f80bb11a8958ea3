// Verifies a log's directory with golang.org/x/mod/sumdb/note and sumdb/tlog, which this project did not write.
//
//	verifier DIRECTORY VKEY[,VKEY...] [OLD-CHECKPOINT...]
//
// The directory's checkpoint must be signed by VKEY, or by one of several if the log has changed its key; the tree made of all entries must have its root; every tile, full or
// partial, must hold that tree's hashes; random leaves must be proven from the tiles; and every older checkpoint must be
// signed and proven to be the beginning of the tree. Exits with 1 and says what is wrong and where.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	proofs     = 200
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: verifier DIRECTORY VKEY[,VKEY...] [OLD-CHECKPOINT...]")
		os.Exit(2)
	}
	summary, err := verify(os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(summary)
}

func verify(dir, vkeys string, old []string) (string, error) {
	var verifiers []note.Verifier
	for _, vkey := range strings.Split(vkeys, ",") {
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return "", err
		}
		verifiers = append(verifiers, verifier)
	}
	tree, err := checkpoint(filepath.Join(dir, "checkpoint"), verifiers)
	if err != nil {
		return "", err
	}
	stored, leaves, err := rebuild(dir, tree)
	if err != nil {
		return "", err
	}
	tiles, err := checkTiles(dir, tree, stored)
	if err != nil {
		return "", err
	}
	// From here on hashes come from the tiles alone, and tlog checks each of them against the root.
	reader := tlog.TileHashReader(tree, tileReader(dir))
	for i := 0; tree.N > 0 && i < proofs; i++ {
		n := rand.Int63n(tree.N)
		proof, err := tlog.ProveRecord(tree.N, n, reader)
		if err != nil {
			return "", fmt.Errorf("inclusion of entry %d: %w", n, err)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, n, leaves[n]); err != nil {
			return "", fmt.Errorf("inclusion of entry %d: %w", n, err)
		}
	}
	for _, path := range old {
		before, err := checkpoint(path, verifiers)
		if err != nil {
			return "", err
		}
		proof, err := tlog.ProveTree(tree.N, before.N, reader)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, before.N, before.Hash); err != nil {
			return "", fmt.Errorf("%s: not the beginning of the log: %w", path, err)
		}
	}
	return fmt.Sprintf("%d entries, %d tiles, %d older checkpoints", tree.N, tiles, len(old)), nil
}

// checkpoint reads a signed tree head: origin, size and root, each on a line.
func checkpoint(path string, verifiers []note.Verifier) (tlog.Tree, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return tlog.Tree{}, err
	}
	signed, err := note.Open(data, note.VerifierList(verifiers...))
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("%s: %w", path, err)
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) < 4 || lines[0] != signed.Sigs[0].Name {
		return tlog.Tree{}, fmt.Errorf("%s: not a checkpoint of %s", path, signed.Sigs[0].Name)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("%s: %w", path, err)
	}
	hash, err := tlog.ParseHash(lines[2])
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("%s: %w", path, err)
	}
	return tlog.Tree{N: size, Hash: hash}, nil
}

// rebuild makes the whole tree from the entry bundles alone and holds its root against the checkpoint.
func rebuild(dir string, tree tlog.Tree) (storedHashes, []tlog.Hash, error) {
	var stored storedHashes
	var leaves []tlog.Hash
	for first := int64(0); first < tree.N; first += tileWidth {
		width := min64(tileWidth, tree.N-first)
		path := located(dir, "entries", first/tileWidth, width)
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		for n := first; n < first+width; n++ {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, nil, fmt.Errorf("%s: entry %d is cut off", path, n)
			}
			length := 2 + int(binary.BigEndian.Uint16(data))
			hashes, err := tlog.StoredHashes(n, data[2:length], stored)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: entry %d: %w", path, n, err)
			}
			stored = append(stored, hashes...)
			leaves = append(leaves, hashes[0])
			data = data[length:]
		}
		if len(data) > 0 {
			return nil, nil, fmt.Errorf("%s: more than %d entries", path, width)
		}
	}
	if tree.N == 0 {
		return stored, leaves, nil
	}
	root, err := tlog.TreeHash(tree.N, stored)
	if err != nil {
		return nil, nil, err
	}
	if root != tree.Hash {
		return nil, nil, fmt.Errorf("%s: not the entries that the checkpoint signs, whose root is %v", suspect(dir, leaves), tree.Hash)
	}
	return stored, leaves, nil
}

// suspect is the first bundle that does not agree with its tile, or the directory if all do.
func suspect(dir string, leaves []tlog.Hash) string {
	for first := 0; first < len(leaves); first += tileWidth {
		width := min64(tileWidth, int64(len(leaves)-first))
		var want []byte
		for _, leaf := range leaves[first : first+int(width)] {
			want = append(want, leaf[:]...)
		}
		got, _ := os.ReadFile(located(dir, "0", int64(first/tileWidth), width))
		if !bytes.Equal(got, want) {
			return located(dir, "entries", int64(first/tileWidth), width)
		}
	}
	return dir
}

// checkTiles holds every file below tile/ against the tree, also the partial ones that a wider one has followed.
func checkTiles(dir string, tree tlog.Tree, stored storedHashes) (int, error) {
	need := map[string]bool{}
	for level := 0; tree.N>>(tileHeight*level) > 0; level++ {
		hashes := tree.N >> (tileHeight * level)
		for first := int64(0); first < hashes; first += tileWidth {
			need[located(dir, strconv.Itoa(level), first/tileWidth, min64(tileWidth, hashes-first))] = true
		}
	}
	count := 0
	err := filepath.WalkDir(filepath.Join(dir, "tile"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			if errors.Is(err, fs.ErrNotExist) && tree.N == 0 {
				return nil
			}
			return err
		}
		tile, err := parsed(dir, path)
		if err != nil {
			return err
		}
		want, err := tlog.ReadTileData(tile, stored)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(path, "/tile/entries/") {
			got = leafHashes(got)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: does not hold the hashes of the entries", path)
		}
		delete(need, path)
		count++
		return nil
	})
	if err != nil {
		return 0, err
	}
	for path := range need {
		return 0, fmt.Errorf("%s: missing", path)
	}
	return count, nil
}

// leafHashes is the tile that belongs to a bundle; of a bundle that is cut off, none.
func leafHashes(bundle []byte) []byte {
	var tile []byte
	for len(bundle) > 0 {
		if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
			return nil
		}
		length := 2 + int(binary.BigEndian.Uint16(bundle))
		hash := tlog.RecordHash(bundle[2:length])
		tile = append(tile, hash[:]...)
		bundle = bundle[length:]
	}
	return tile
}

type storedHashes []tlog.Hash

func (stored storedHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(stored)) {
			return nil, errors.New("no such hash in this tree")
		}
		hashes[i] = stored[index]
	}
	return hashes, nil
}

type tileReader string

func (dir tileReader) Height() int { return tileHeight }

func (dir tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		content, err := os.ReadFile(located(string(dir), strconv.Itoa(tile.L), tile.N, int64(tile.W)))
		if err != nil {
			return nil, err
		}
		data[i] = content
	}
	return data, nil
}

func (dir tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// located is where C2SP tlog-tiles puts a tile or a bundle.
func located(dir, kind string, index, width int64) string {
	path := fmt.Sprintf("%03d", index%1000)
	for index /= 1000; index > 0; index /= 1000 {
		path = fmt.Sprintf("x%03d/%s", index%1000, path)
	}
	path = filepath.Join(dir, "tile", kind, path)
	if width < tileWidth {
		path += fmt.Sprintf(".p/%d", width)
	}
	return path
}

// parsed is the tile that a path names, or that a bundle belongs to; x/mod's names have the height in front.
func parsed(dir, path string) (tlog.Tile, error) {
	relative, err := filepath.Rel(filepath.Join(dir, "tile"), path)
	if err != nil {
		return tlog.Tile{}, err
	}
	relative = strings.Replace(filepath.ToSlash(relative), "entries/", "0/", 1)
	tile, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, relative))
	if err != nil {
		return tlog.Tile{}, fmt.Errorf("%s: not the name of a tile", path)
	}
	return tile, nil
}

func min64(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}
