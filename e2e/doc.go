// Package e2e holds the end-to-end tests: the programs as they are shipped, as
// child processes, with the clients that people really use (socket.io-client,
// mqtt.js, mosquitto's), over real TCP on loopback, and kill -9. The Socket.IO
// server, which serves more than the app asks of it, is also held by itself
// against socket.io-client, engine.io-client and python3-socketio.
//
// It has no code but tests. What can be shown in one process on fake time
// belongs in e2e/sim. `make deps` installs what the tests need; without it
// they fail and say so.
//
// PAIRSYNC_E2E_ROUNDS is how often the crash tests kill a program (default 5),
// PAIRSYNC_E2E_SEED repeats the random choices of a run that failed.
package e2e
