package main

import (
	"encoding/json"

	"pairsync/bridge/socketio"
)

type rawMessage = json.RawMessage

// restore decodes a value and puts the attachments back into their places.
func restore(e *socketio.Event, raw json.RawMessage) (any, error) {
	if data, ok := e.Attachment(raw); ok {
		return socketio.Binary(data), nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil && list != nil {
		values := make([]any, len(list))
		for i := range list {
			var err error
			if values[i], err = restore(e, list[i]); err != nil {
				return nil, err
			}
		}
		return values, nil
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) == nil && object != nil {
		values := make(map[string]any, len(object))
		for key := range object {
			var err error
			if values[key], err = restore(e, object[key]); err != nil {
				return nil, err
			}
		}
		return values, nil
	}
	var value any
	err := json.Unmarshal(raw, &value)
	return value, err
}
