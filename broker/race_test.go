//go:build race

package broker

// underRace makes the largest worlds a tenth as large: the detector makes them
// ten times slower, and is there for what meets, not for how much.
const underRace = 10
