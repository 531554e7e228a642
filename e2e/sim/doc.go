// Package sim holds tests of whole worlds: the real daemon, phones that behave
// as the app does, real agents as frames and plain MQTT clients, joined by the
// links of internal/simtest and run on the fake clock of testing/synctest, so
// that days pass in moments and every cut falls on a chosen byte.
//
// What they hold the system to is the promise of the product: a photo that was
// acknowledged to its sender reaches the partner's phone and frames, in the
// order in which it was sent, once to the eye, and nobody else; whatever
// happens to links, servers and devices meanwhile (book.check says it in
// code). A world ends with no goroutine left: synctest itself fails otherwise.
//
// It has no code besides its tests.
//
//	world_test.go   the world: network, server, restarts, crashes
//	split_test.go   a server of one broker and two bridges, for cuts between them
//	phone_test.go   a phone as the app is; outbox_test.go is how it sends
//	frame_test.go   an agent, its page and its local API
//	peer_test.go    a plain MQTT client
//	fickle_test.go  plain clients that do not behave, for the random worlds
//	swaps_test.go   pairs that end and a device that is revoked, likewise
//	book_test.go    what was sent and who must have seen it
//
// Run with PAIRSYNC_SIM_SEED=n to replay a random schedule, and with
// PAIRSYNC_SIM_SEEDS=n to try that many new ones.
package sim
