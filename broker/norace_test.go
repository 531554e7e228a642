//go:build !race

package broker

const underRace = 1
